"""Tokens a second of SAELens training one kind of sparse autoencoder, as `pullback sae train` is timed.

Usage: sae_training.py KIND D FEATURES K BATCH STEPS    (KIND: topk batchtopk matryoshka jumprelu gated relu)
Needs sae-lens. Data are random normal numbers: the time does not hang on them.
"""

import statistics
import sys
import time

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

kind = sys.argv[1]
d, features, k, batch, steps = map(int, sys.argv[2:7])
size = {"d_in": d, "d_sae": features}
kinds = {
    "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(k=k, **size)),
    "batchtopk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=k, **size)),
    "matryoshka": lambda: MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(
            k=k, matryoshka_widths=[features // 8, features // 4, features // 2, features], **size
        )
    ),
    "jumprelu": lambda: JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**size)),
    "gated": lambda: GatedTrainingSAE(GatedTrainingSAEConfig(**size)),
    "relu": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(**size)),
}
torch.manual_seed(0)
sae = kinds[kind]()
coefficients = {name: 1.0 for name in sae.get_coefficients()}
optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
dead = torch.zeros(features, dtype=torch.bool)
times = []
for step in range(steps + 2):
    x = torch.randn(batch, d)
    start = time.perf_counter()
    out = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=coefficients,
            dead_neuron_mask=dead,
            n_training_steps=step,
            is_logging_step=False,
        )
    )
    optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimizer.step()
    times.append(time.perf_counter() - start)
rate = batch / statistics.median(times[2:])
print(f"SAELens {kind}: median {rate:.0f} tokens/s, {features} features, batch {batch} ({torch.get_num_threads()} threads)")
