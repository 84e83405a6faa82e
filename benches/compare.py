"""Compares pullback with transformers on SmolLM2: both are loaded, then take turns, one repeat at a time.

Usage: compare.py --model FILE.gguf [--modes residual logits backward generate] [--hooks none all-residual one-active]
                  [--repeats N] [--binary PATH] [--python PATH]
Prints a Markdown table of the median tokens a second of each mode, with the ratio to transformers and the range of
the ratios of neighbouring repeats. What a mode does is said in rivals/forward.py.

Without --binary the example is built with `cargo build --release`. --python is the interpreter that has torch,
transformers and gguf; by default the one that runs this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODES = ["residual", "logits", "backward", "generate"]
HOOKS = ["none", "all-residual", "one-active"]


class Program:
    """A program that does one repeat when told."""

    def __init__(self, name, command, threads):
        threads = {key: str(threads) for key in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.name = name
        self.rates = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | threads | {"HF_HUB_OFFLINE": "1"},
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} stopped with status {self.process.wait()}: {' '.join(map(str, self.process.args))}")
        return json.loads(line)

    def repeat(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rates.append(self.answer()["tokens_per_second"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def build():
    subprocess.run(
        ["cargo", "build", "--release", "-p", "pullback-model", "--example", "bench_forward"], cwd=ROOT, check=True
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release/examples/bench_forward"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--hooks", nargs="+", choices=HOOKS, default=HOOKS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    binary = arguments.binary or build()
    print("| mode | program | hooks | tokens/s | to transformers | from, to |")
    print("|---|---|---|---|---|---|")
    for mode in arguments.modes:
        common = ["--mode", mode, "--model", arguments.model, "--paced"]
        rival = Program("transformers", [arguments.python, HERE / "rivals/forward.py", *common], arguments.threads)
        rival.answer()
        ours = []
        for hooks in arguments.hooks:
            if mode == "generate" and hooks == "all-residual":
                continue
            ours.append(Program(hooks, [binary, *common, "--hooks", hooks], arguments.threads))
            ours[-1].answer()
        for _ in range(arguments.repeats):
            for program in (rival, *ours):
                program.repeat()
        median = statistics.median(rival.rates)
        print(f"| {mode} | transformers | | {median:.0f} | 1 | |")
        for program in ours:
            program.close()
            ratios = [a / b for a, b in zip(program.rates, rival.rates, strict=True)]
            own = statistics.median(program.rates)
            print(
                f"| {mode} | pullback | {program.name} | {own:.0f} | {own / median:.2f}"
                f" | {min(ratios):.2f}, {max(ratios):.2f} |",
                flush=True,
            )
        rival.close()


if __name__ == "__main__":
    main()
