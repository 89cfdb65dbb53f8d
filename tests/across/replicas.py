"""Trains a quantizer in two processes of PyTorch, or alone: `python replicas.py OUTPUT [RANK STORE]`."""

import sys

import numpy as np
from keras import ops
from torch import distributed

import keras_vqvae

output, replica = sys.argv[1], sys.argv[2:]
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
codebook = np.random.default_rng(1).normal(size=(16, 4)).astype("float32")
codebook[3:6] = 100
results = {}
if replica:
    rank = int(replica[0])
    distributed.init_process_group("gloo", init_method=f"file://{replica[1]}", rank=rank, world_size=2)
    # Each process has half of every batch, in an order in which its part holds what a single process sees.
    x = x.reshape(4, 2, 8, 4)[:, rank].reshape(32, 4)

for threshold in (0, 0.1):
    # Seeds differ between processes, as they do where nobody sets them.
    layer = keras_vqvae.VectorQuantizer(
        16, ema_decay=0.9, dead_code_threshold=threshold, seed=int(replica[0]) if replica else 0
    )
    layer.build((None, 4))
    layer.codebook.assign(codebook)
    for batch in np.split(x, 4):
        layer(batch, training=True)
    for name in ("codebook", "ema_counts", "code_counts"):
        results[f"{name}-{threshold}"] = ops.convert_to_numpy(getattr(layer, name))
np.savez(output, **results)
