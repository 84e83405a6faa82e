"""Tokens a second of Hugging Face transformers on SmolLM2, in f32, as `examples/bench_forward.rs` measures pullback.

Usage: forward.py --mode residual|logits|backward|generate --model FILE.gguf [--repeats N] [--threads N] [--paced]
Needs torch, transformers and gguf.

  residual   the stream after 16 of the 30 blocks, 8 sequences of 128 tokens; the blocks above are taken off
  logits     the whole model to the logits, 8 x 128
  backward   the whole model and a loss on its logits, 8 x 128, and back to the stream before block 8;
             the weights are frozen, so only activations get gradients
  generate   64 greedy tokens of one sequence after a prompt of 16, with the cache; time and rate include the prompt

It prints one JSON object: the rate of each repeat and their median. With --paced it first says that it is ready, then
does one repeat for each line it reads and prints its rate, so that another program can take turns.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

BATCH, TIME, PROMPT, NEW = 8, 128, 16, 64
WARM_UP = 2


def random_ids(seed, batch, length):
    return torch.randint(100, 40000, (batch, length), generator=torch.Generator().manual_seed(seed))


def residual(model):
    body = model.model
    body.layers = body.layers[:16]
    body.norm = torch.nn.Identity()

    @torch.inference_mode()
    def step(seed):
        body(random_ids(seed, BATCH, TIME), use_cache=False)
        return BATCH * TIME

    return step


def logits(model):
    @torch.inference_mode()
    def step(seed):
        model(random_ids(seed, BATCH, TIME), use_cache=False)
        return BATCH * TIME

    return step


def backward(model):
    model.requires_grad_(False)
    cut = {}

    def leaf(_module, args, kwargs):
        stream = args[0] if args else kwargs.pop("hidden_states")
        cut["stream"] = stream.detach().requires_grad_()
        return (cut["stream"], *args[1:]), kwargs

    model.model.layers[8].register_forward_pre_hook(leaf, with_kwargs=True)

    def step(seed):
        ids = random_ids(seed, BATCH, TIME)
        out = model(ids, use_cache=False).logits
        targets = ids.roll(-1, 1)
        torch.nn.functional.cross_entropy(out.flatten(0, 1), targets.flatten()).backward()
        assert cut["stream"].grad is not None
        return BATCH * TIME

    return step


def generate(model):
    @torch.inference_mode()
    def step(seed):
        ids = random_ids(seed, 1, PROMPT)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            use_cache=True,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            pad_token_id=2,
        )
        assert out.shape[1] == PROMPT + NEW
        return NEW

    return step


MODES = {"residual": residual, "logits": logits, "backward": backward, "generate": generate}


def rate(step, seed):
    start = time.perf_counter()
    tokens = step(seed)
    return tokens / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--paced", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model.parent, gguf_file=arguments.model.name, dtype=torch.float32
    ).eval()
    step = MODES[arguments.mode](model)
    for seed in range(WARM_UP):
        step(seed)
    rates = []
    if arguments.paced:
        print(json.dumps({"ready": True}), flush=True)
        for seed, _ in enumerate(sys.stdin):
            rates.append(rate(step, WARM_UP + seed))
            print(json.dumps({"tokens_per_second": rates[-1]}), flush=True)
        return
    rates = [rate(step, WARM_UP + seed) for seed in range(arguments.repeats)]
    print(
        json.dumps(
            {
                "program": "transformers",
                "mode": arguments.mode,
                "threads": torch.get_num_threads(),
                "tokens_per_second": statistics.median(rates),
                "rates": rates,
            }
        )
    )


if __name__ == "__main__":
    main()
