"""Held-out explained variance of a SAELens TopK autoencoder trained on a pullback store, for so many tokens.

Usage: sae_quality.py STORE FEATURES K BATCH TOKENS LR
Needs sae-lens. The data, their order apart, and the scale of the input are those of `pullback sae train`; Adam with 5 % of
warm-up and 30 % of linear decay, gradients clipped to 1 as SAELens's trainer does.
"""

import glob
import sys
import time

import numpy as np
import torch
from safetensors import safe_open
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

store = sys.argv[1]
features, k, batch, tokens = map(int, sys.argv[2:6])
lr = float(sys.argv[6])
# Flags of a row: first of its sequence, outlier, held out.
FIRST, OUTLIER, HELD_OUT = 1, 2, 4
parts, flags = [], []
for path in sorted(glob.glob(f"{store}/shard-*.safetensors")):
    with safe_open(path, "pt") as shard:
        parts.append(shard.get_tensor("activations"))
        flags.append(shard.get_tensor("flags"))
x, flags = torch.cat(parts), torch.cat(flags)
normal = (flags & (FIRST | OUTLIER)) == 0
train, held_out = x[normal & ((flags & HELD_OUT) == 0)], x[normal & ((flags & HELD_OUT) != 0)]
scale = x.shape[1] ** 0.5 / train.norm(dim=1).mean()
train, held_out = train * scale, held_out * scale

torch.manual_seed(0)
d = x.shape[1]
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=features, k=k))
optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
steps = tokens // batch
silent = torch.zeros(features)
order = torch.cat([torch.randperm(len(train)) for _ in range(steps * batch // len(train) + 1)])
start = time.perf_counter()
for step in range(steps):
    place = (step + 0.5) / steps
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, place / 0.05, (1 - place) / 0.3)
    rows = train[order[step * batch : (step + 1) * batch]]
    out = sae.training_forward_pass(
        TrainStepInput(
            sae_in=rows,
            coefficients={},
            dead_neuron_mask=silent > len(train) / 5,
            n_training_steps=step,
            is_logging_step=False,
        )
    )
    optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimizer.step()
    silent += batch
    silent[(out.feature_acts.to_dense() if out.feature_acts.is_sparse else out.feature_acts).detach().sum(0) > 0] = 0
seconds = time.perf_counter() - start
with torch.no_grad():
    y = torch.cat([sae.decode(sae.encode(part)) for part in held_out.split(2048)])
error = ((held_out - y).double() ** 2).sum(1).mean()
variance = ((held_out - held_out.mean(0)).double() ** 2).sum(1).mean()
print(
    f"SAELens: explained variance {1 - error / variance:.4f} on {len(held_out)} held-out rows, {int((silent > 0).sum())} silent in the last batch, "
    f"{steps * batch / seconds:.0f} tokens/s"
)
