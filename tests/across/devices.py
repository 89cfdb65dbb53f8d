"""Trains every quantizer on all devices that XLA shows: `python devices.py OUTPUT [codebook]`.

With `codebook`, codebooks are sharded over half of the devices. It writes the weights after a step, and the arrays
that the step sends across devices.
"""

import json
import pathlib
import re
import sys

import jax
import keras
import numpy as np
import pytest
from helpers import set_layout
from quantizers import INNER, QUANTIZERS, SHAPE, vector

import keras_vqvae
from keras_vqvae.backend import backend
from keras_vqvae.ops import search

BATCH = 1000
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-start)?\("
)

keras.utils.set_random_seed(0)
output, spread = pathlib.Path(sys.argv[1]), "codebook" in sys.argv
# Block sizes that divide neither the vectors nor each device's part of them.
backend.BLOCK_SCORES, backend.BLOCK_CODES = 1 << 12, 12
if jax.device_count() > 1:
    set_layout("codebook" if spread else "data")

makes = QUANTIZERS | {
    # The middle stage has one before and one after it.
    "residual": lambda: keras_vqvae.ResidualQuantizer(vector(), 3),
    "residual_sim": lambda: keras_vqvae.ResidualQuantizer(INNER["sim"](SHAPE[-1]), 2, beam_width=4),
    # One codebook gets a batch whose parts differ in size.
    "scales_shared": lambda: keras_vqvae.MultiScaleQuantizer(vector(), (1, 2, 3), shared_codebook=True),
}
if spread:
    makes = {name: makes[name] for name in ("optimizer", "ema", "cosine", "residual", "grouped", "ibq")}
x = np.random.default_rng(0).normal(size=(BATCH, *SHAPE)).astype("float32")
inputs = keras.Input(SHAPE)
hidden = keras.layers.Dense(SHAPE[-1], kernel_initializer=keras.initializers.GlorotUniform(seed=0))(inputs)
layers = {name: make() for name, make in makes.items()}
model = keras.Model(inputs, [layer(hidden) for layer in layers.values()])
rows_of_a_device, nearest_code = set(), search.nearest_code


def recorded(vectors, *others):
    rows_of_a_device.add(len(vectors.addressable_shards[0].data))
    return nearest_code(vectors, *others)


with pytest.MonkeyPatch.context() as patch:
    patch.setattr(search, "nearest_code", recorded)
    for layer in layers.values():
        if isinstance(layer, keras_vqvae.VectorQuantizer):
            layer.adapt(x, epochs=2, seed=0, verbose=0)


def crossing(program):
    return [
        (kind, [int(n) for n in re.findall(r"\d+", dims)])
        for shapes, kind in COLLECTIVE.findall(program.as_text())
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


@jax.jit
def step(trainable, others, x):
    def loss(trainable):
        outputs, learned, losses = model.stateless_call(trainable, others, x, training=True, return_losses=True)
        return sum(((x - output) ** 2).mean() for output in outputs) + sum(losses), learned

    slopes, others = jax.grad(loss, has_aux=True)(trainable)
    return [weight - 0.1 * slope for weight, slope in zip(trainable, slopes, strict=True)], others


variables = model.trainable_variables, model.non_trainable_variables
state = *([v.value for v in part] for part in variables), backend.spread_rows(x)
program = step.lower(*state).compile()
learned = {
    id(v): value for pair in zip(variables, program(*state), strict=True) for v, value in zip(*pair, strict=True)
}
results = {
    f"{name}/{weight.path.split('/')[-1]}-{i}": np.asarray(learned[id(weight)])
    for name, layer in layers.items()
    for i, weight in enumerate(layer.weights)
}
# The devices do not divide this number of rows. Indices are reduced to one number, because the test compares what
# crosses devices with the largest of the results.
odd = np.asarray(nearest_code(x.reshape(-1, SHAPE[-1])[:2999], layers["ema"].codebook))
results["odd"] = np.sum(odd * np.arange(1.0, len(odd) + 1))
# Enough codes for a search in groups.
many = np.random.default_rng(1).normal(size=(256, SHAPE[-1])).astype("float32")
backend.BLOCK_CODES = 128
if spread:
    many = jax.device_put(many, layers["ema"].embeddings.value.sharding)
vectors = backend.spread_rows(x.reshape(-1, SHAPE[-1]))
grouped = jax.jit(nearest_code).lower(vectors, many).compile()
results["grouped"] = np.sum(np.asarray(grouped(vectors, many)) * np.arange(1.0, len(vectors) + 1))
np.savez(output, **results)
found = {"adapt": list(rows_of_a_device), "step": crossing(program), "grouped": crossing(grouped)}
if spread:
    # The two groups do not divide nine codes.
    with pytest.raises(ValueError, match="could not be created") as refused:
        keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(9, name="nine"), 2).build((None, 4))
    found["refused"] = str(refused.value)
output.with_suffix(".json").write_text(json.dumps(found))
