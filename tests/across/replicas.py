"""Trains quantizers in two PyTorch processes, or in one: `python replicas.py OUTPUT [RANK STORE]`."""

import contextlib
import os
import signal
import sys

import keras
import numpy as np
import pytest
from keras import ops
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import keras_vqvae

output, replica = sys.argv[1], sys.argv[2:]
rank = int(replica[0]) if replica else 0
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
codebook = np.random.default_rng(1).normal(size=(16, 4)).astype("float32")
codebook[3:6] = 100
results = {}
# Only the first process has vectors in the last batch.
last = x[:5] if rank == 0 else x[:0]
if replica:
    distributed.init_process_group("gloo", init_method=f"file://{replica[1]}", rank=rank, world_size=2)
    # Each process gets half of every batch, reordered so that both halves together are the batch of a single process.
    x = x.reshape(4, 2, 8, 4)[:, rank].reshape(32, 4)

for threshold in (0, 0.1):
    # Seeds differ between processes, as they do by default.
    layer = keras_vqvae.VectorQuantizer(16, ema_decay=0.9, dead_code_threshold=threshold, seed=rank)
    layer.build((None, 4))
    layer.set_codebook(codebook)
    for batch in [*np.split(x, 4), last]:
        layer(batch, training=True)
    for name in ("codebook", "ema_counts", "code_counts"):
        results[f"{name}-{threshold}"] = ops.convert_to_numpy(getattr(layer, name))

# These losses are not means over vectors, but entropies of a batch.
regularizer = keras_vqvae.AssignmentEntropy()
for name, quantizer in {
    "lfq": keras_vqvae.LookupFreeQuantizer(4),
    "bsq": keras_vqvae.BinarySphericalQuantizer(4),
    "ibq": keras_vqvae.IndexBackpropagationQuantizer(16, seed=0),
    "regularized": keras_vqvae.VectorQuantizer(16, assignment_regularizer=regularizer, seed=0),
}.items():
    dense = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(seed=0))
    model = keras.Sequential([keras.Input((4,)), dense, quantizer])
    together = DistributedDataParallel(model) if replica else model
    quantized = together(ops.convert_to_tensor(x), training=True)
    (quantized.square().mean() + sum(model.losses)).backward()
    results[f"gradient-{name}"] = dense.kernel.value.grad.numpy()

keras.utils.set_random_seed(0)
encoder, decoder = keras_vqvae.build(4, embedding_dim=2, encoder_sizes=(4,), decoder_sizes=(4,))
model = keras_vqvae.VQVAE(encoder, keras_vqvae.FiniteScalarQuantizer((3, 3)), decoder)
prior = keras_vqvae.AutoregressivePrior(3, (4,), num_layers=1, num_heads=1, hidden_dim=4, dropout=0.0)
for trained, data in ((model, x), (prior, np.digitize(x, (-0.5, 0.5)))):
    trained.compile(keras.optimizers.SGD(0.1))
    apart = replica and not hasattr(trained, "ddp_model")
    with pytest.raises(NotImplementedError, match="2 processes with Keras") if apart else contextlib.nullcontext():
        trained.fit(data, batch_size=8 if replica else 16, shuffle=False, verbose=0)
    # Keras 3.16 and later.
    if hasattr(trained, "ddp_model"):
        weights = [ops.convert_to_numpy(weight).ravel() for weight in trained.trainable_variables]
        results[f"trained-{trained.name}"] = np.concatenate(weights)

np.savez(output, **results)
if replica:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        layer(x, training=True)
    except RuntimeError:
        # Exit at once, without waiting for the other process.
        sys.exit()
    raise AssertionError("trained without the other process")
