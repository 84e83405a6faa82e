"""Tokens a second of SAELens training a TopK autoencoder, at the sizes `pullback sae train` is timed with.

Usage: sae_training.py D FEATURES K BATCH STEPS
Needs sae-lens. Data are random normal numbers: the time does not hang on them.
"""

import statistics
import sys
import time

import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

d, features, k, batch, steps = map(int, sys.argv[1:6])
torch.manual_seed(0)
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=features, k=k))
optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
dead = torch.zeros(features, dtype=torch.bool)
times = []
for step in range(steps + 2):
    x = torch.randn(batch, d)
    start = time.perf_counter()
    out = sae.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=step, is_logging_step=False)
    )
    optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimizer.step()
    times.append(time.perf_counter() - start)
print(f"SAELens: median {batch / statistics.median(times[2:]):.0f} tokens/s, {features} features, batch {batch} ({torch.get_num_threads()} threads)")
