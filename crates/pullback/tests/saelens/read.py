"""Reads dictionaries with SAELens's own loaders and compares codes and outputs with ours.

    python read.py DIR    # prints a line of JSON for each directory in DIR; `tests/saelens.rs` writes them

Each directory holds a dictionary in one of the formats, and beside it the codes (`codes.safetensors`, as `sae encode`
writes them) and outputs (`output.safetensors`) that pullback has for the rows of DIR/x.safetensors.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import sae_lens
import torch
from safetensors.torch import load_file
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class


def built(config: dict, state: dict) -> SAE:
    config = loaders.handle_config_defaulting(config)
    sae_class, config_class = get_sae_class(config["architecture"])
    sae = sae_class(config_class.from_dict(config))
    sae.load_state_dict(state)
    return sae


def from_hub(loader, directory: Path, overrides: dict | None = None, folder: str = "") -> SAE:
    """A loader that downloads, with a directory in place of the hub."""

    def found(repo_id, filename, **_):
        return str(directory / Path(filename).name)

    with mock.patch.object(loaders, "hf_hub_download", found):
        config, state, _ = loader("google/gemma-scope-2b-pt-res", folder, "cpu", False, overrides)
    return built(config, state)


def load(directory: Path, d: int, m: int) -> SAE:
    if (directory / "sae_weights.safetensors").exists():
        return SAE.load_from_disk(directory)
    if (directory / "ae.pt").exists():
        return from_hub(loaders.dictionary_learning_sae_huggingface_loader_1, directory)
    if (directory / "sae.safetensors").exists():
        with tempfile.TemporaryDirectory() as root:
            # The loader reads the layer from the name. Single precision has to be asked for, and that the decoder bias is
            # taken from the input: sparsify does so whether or not it normalises the decoder, the loader only if not.
            named = shutil.copytree(directory, Path(root) / "layers.1")
            overrides = {"dtype": "float32", "apply_b_dec_to_input": True}
            config, state = loaders.sparsify_disk_loader(named, cfg_overrides=overrides)
        # It transposes `W_dec [m, d]`, which is stored as SAELens itself has it; its own class refuses the result.
        assert state["W_dec"].shape == (d, m), "SAELens no longer transposes the decoder of sparsify: compare as it is"
        state["W_dec"] = state["W_dec"].T
        return built(config, state)
    folder = "layer_1/width_16k/average_l0_9"
    return from_hub(loaders.gemma_2_sae_huggingface_loader, directory, {"d_in": d, "d_sae": m}, folder)


def dense(path: Path, m: int) -> torch.Tensor:
    codes = load_file(path)
    offsets = codes["offsets"]
    rows = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    out = torch.zeros(len(offsets) - 1, m)
    out[rows, codes["indices"]] = codes["values"]
    return out


def main(root: Path) -> None:
    (x,) = load_file(root / "x.safetensors").values()
    for directory in sorted(path for path in root.iterdir() if path.is_dir()):
        size = json.loads((directory / "size.json").read_text())
        sae = load(directory, size["d"], size["m"])
        with torch.no_grad():
            codes = sae.encode(x)
            output = sae.decode(codes)
        ours = dense(directory / "codes.safetensors", size["m"])
        (our_output,) = load_file(directory / "output.safetensors").values()
        relative = lambda a, b: ((a - b).abs().max() / b.abs().max()).item()
        line = {
            "name": directory.name,
            "architecture": sae.cfg.architecture(),
            "l0": (codes != 0).float().sum(1).mean().item(),
            "same_support": bool(((codes != 0) == (ours != 0)).all()),
            "codes": relative(ours, codes),
            "output": relative(our_output, output),
            "saelens": sae_lens.__version__,
        }
        print(json.dumps(line), flush=True)


main(Path(sys.argv[1]))
