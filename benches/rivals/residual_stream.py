"""Tokens a second of Hugging Face transformers up to block 15 of SmolLM2, as `pullback harvest` runs it.

Usage: residual_stream.py MODEL_DIRECTORY GGUF_FILE [BATCHES]
Needs torch, transformers and gguf. The blocks above the site are taken off the model, so neither side pays
for them; batches are 8 sequences of 128 tokens, in f32.
"""

import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

directory, gguf = sys.argv[1:3]
batches = int(sys.argv[3]) if len(sys.argv) > 3 else 20
model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=gguf, dtype=torch.float32).model
model.layers = model.layers[:16]
model.eval()
times = []
with torch.inference_mode():
    for batch in range(batches + 2):
        ids = torch.randint(100, 40000, (8, 128), generator=torch.Generator().manual_seed(batch))
        start = time.perf_counter()
        model(ids, use_cache=False)
        times.append(time.perf_counter() - start)
rates = [8 * 128 / t for t in times[2:]]
print(f"transformers: median {statistics.median(rates):.0f} tokens/s over {batches} batches ({torch.get_num_threads()} threads)")
