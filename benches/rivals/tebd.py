"""TEBD bond updates of TeNPy, in turn with pullback's matrix-product states.

Usage: tebd.py --pullback target/release/examples/tebd_rate [--bonds 32,64,128,256] [--layers 20] [--threads 2]
Needs physics-tenpy and numpy. The example (`cargo build --release --workspace --example tebd_rate`) quenches the critical
Ising chain until ten bonds in its middle are as wide as asked, writes that state, and applies layers of gates to those bonds.
TeNPy reads the same state (complex f64, no conserved charge) and applies the same gates with the same largest dimension.
It prints one JSON object: milliseconds an update of both by the clock and by the time that processors were busy (which other
work on the machine hardly touches), their ratios, and the weight that each discarded.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
import warnings

parser = argparse.ArgumentParser()
parser.add_argument("--pullback", required=True)
parser.add_argument("--bonds", default="32,64,128,256")
parser.add_argument("--layers", type=int, default=20)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = str(options.threads)

import numpy as np  # noqa: E402
import tenpy  # noqa: E402
from tenpy.algorithms.tebd import TEBDEngine  # noqa: E402
from tenpy.models.tf_ising import TFIChain  # noqa: E402
from tenpy.networks.mps import MPS  # noqa: E402

warnings.simplefilter("ignore")


def load(path):
    raw = open(path, "rb").read()
    sites = int(np.frombuffer(raw, "<u8", 1)[0])
    bonds = [1, *map(int, np.frombuffer(raw, "<u8", sites - 1, 8)), 1]
    at = 8 * sites
    values = []
    for bond in bonds[1:-1]:
        values.append(np.frombuffer(raw, "<f8", bond, at))
        at += 8 * bond
    tensors = []
    for left, right in zip(bonds, bonds[1:]):
        size = 2 * left * right
        flat = np.frombuffer(raw, "<c16", size, at)
        tensors.append(flat.reshape((left, 2, right), order="F").transpose(1, 0, 2))
        at += 16 * size
    one = np.ones(1)
    normalised = [one, *(v / np.linalg.norm(v) for v in values), one]
    return sites, tensors, normalised


def rival(path, ours):
    sites, tensors, values = load(path)
    # -ZZ - X with its axes exchanged is -XX - Z in TeNPy; the state is in the basis of Z, so the gates are made of it.
    model = TFIChain({"L": sites, "J": 1.0, "g": 1.0, "conserve": None, "bc_MPS": "finite"})
    turn = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    turned = [np.einsum("pq,qlr->plr", turn, b) for b in tensors]
    state = MPS.from_Bflat(model.lat.mps_sites(), turned, SVs=values, dtype=complex, form="B", permute=False)
    engine = TEBDEngine(state, model, {"trunc_params": {"chi_max": ours["bond"], "svd_min": 1e-14}, "order": 1})
    engine.calc_U(1, ours["dt"], type_evo="real")
    gates = engine._U[0]
    window = [i for i in range(ours["first"], ours["first"] + 10)]
    discarded = 0.0
    updates = 0
    start, busy = time.perf_counter(), time.process_time()
    for layer in range(ours["layers"]):
        for bond in window:
            if bond % 2 == layer % 2:
                discarded += engine.update_bond(bond + 1, gates[bond + 1]).eps
                updates += 1
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    assert updates == ours["updates"]
    return {
        "ms_per_update": 1e3 * seconds / updates,
        "processor_ms_per_update": 1e3 * busy / updates,
        "discarded": discarded,
    }


results = []
for bond in options.bonds.split(","):
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "state.bin")
        command = [options.pullback, bond, path, str(options.layers)]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        theirs = rival(path, ours)
    results.append({
        "bond": int(bond),
        "pullback_ms": round(ours["ms_per_update"], 4),
        "tenpy_ms": round(theirs["ms_per_update"], 4),
        "ratio": round(theirs["ms_per_update"] / ours["ms_per_update"], 2),
        "pullback_processor_ms": round(ours["processor_ms_per_update"], 4),
        "tenpy_processor_ms": round(theirs["processor_ms_per_update"], 4),
        "processor_ratio": round(theirs["processor_ms_per_update"] / ours["processor_ms_per_update"], 2),
        "pullback_discarded": ours["discarded"],
        "tenpy_discarded": theirs["discarded"],
    })
print(json.dumps({"tenpy": tenpy.__version__, "threads": options.threads, "layers": options.layers, "results": results}))
