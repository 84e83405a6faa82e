"""Two-qubit gates a second of qulacs, in turn with pullback's state vector.

Usage: statevector.py --pullback target/release/examples/statevector_rate [--sites 24] [--steps 2] [--repeats 5] [--threads 2]
Needs qulacs and numpy. Both sides apply brickwork of one dense random gate in complex f64; the example of pullback-chain
(`cargo build --release -p pullback-chain --example statevector_rate`) prints its own seconds, so that neither start nor
set-up counts. It prints one JSON object: gates a second of both in each turn, medians, and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("--pullback", required=True)
parser.add_argument("--sites", type=int, default=24)
parser.add_argument("--steps", type=int, default=2)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
# Read by qulacs when it is imported, and by rayon.
os.environ["OMP_NUM_THREADS"] = os.environ["QULACS_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402
import qulacs  # noqa: E402

rng = np.random.default_rng(1)
gate, _ = np.linalg.qr(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))
circuit = qulacs.QuantumCircuit(options.sites)
gates = 0
for _ in range(options.steps):
    for first in (0, 1):
        for site in range(first, options.sites - 1, 2):
            circuit.add_dense_matrix_gate([site, site + 1], gate)
            gates += 1
state = qulacs.QuantumState(options.sites)
circuit.update_quantum_state(state)


def rival():
    start = time.perf_counter()
    circuit.update_quantum_state(state)
    return gates / (time.perf_counter() - start)


def ours():
    command = [options.pullback, str(options.sites), str(options.steps), "1"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


rates = {"qulacs": [], "pullback": []}
shares = []
for _ in range(options.repeats):
    rates["qulacs"].append(rival())
    answer = ours()
    rates["pullback"].append(answer["gates_per_second"])
    shares.append(answer["share_of_bandwidth"])
ratios = [ours / theirs for ours, theirs in zip(rates["pullback"], rates["qulacs"])]
print(json.dumps({
    "qulacs": qulacs.__version__,
    "sites": options.sites,
    "gates": gates,
    "threads": options.threads,
    "rates": rates,
    "medians": {name: statistics.median(values) for name, values in rates.items()},
    "ratio": statistics.median(ratios),
    "ratio_from_to": [min(ratios), max(ratios)],
    "share_of_bandwidth": statistics.median(shares),
}))
