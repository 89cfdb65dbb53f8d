"""Tests what every quantizer in `quantizers.py` promises about training and precision."""

import functools

import keras
import numpy as np
import pytest
from helpers import assert_same_weights, compiled, draw, graph, numpy, weights
from keras import layers, ops
from quantizers import DIM, DRAW_OUTPUTS, DRAW_STATE, EVERY, FOR_THE_BASE, SHAPE


def test_trainable_false_freezes_everything(make):
    model = keras.Sequential([keras.Input(SHAPE), layers.Dense(DIM), make(trainable=False)])
    compiled(model, keras.optimizers.SGD(0.1), "mse", traced=False)
    before = weights(model.layers[1])
    dense = weights(model.layers[0])
    for _ in range(2):
        model.train_on_batch(draw(4, *SHAPE), draw(4, *SHAPE))
    assert_same_weights(before, weights(model.layers[1]))
    assert any((dense[path] != value).any() for path, value in weights(model.layers[0]).items())


# Samples per batch: many, because random draws are compared. On JAX 8, which have 24 vectors: other tests have already
# compiled the operations for this number.
BATCH = 8 if keras.backend.backend() == "jax" else 64


def model_with(make):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3, 5))
    quantizer = make()
    return keras.Model(inputs, layers.Dense(DIM)(quantizer(layers.Dense(DIM)(inputs)))), quantizer


def values(variables):
    return [numpy(variable) for variable in variables]


def fit(model, rest=BATCH // 2, epochs=1):
    """Trains on three batches and one of `rest` samples. Returns the mean loss so far after each batch."""
    losses = []
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    samples = 3 * BATCH + rest
    x, y = draw(samples, 3, 5), draw(samples, 3, DIM, seed=1)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[record])
    return losses


@functools.cache
def trained(name):
    """Trains a model for two epochs. Several tests share it, because compiling takes longest.

    Returns it with its quantizer, the losses, and the values of its variables before and after.
    """
    model, quantizer = model_with(EVERY[name])
    compiled(model, "adam", "mse")
    start = values(model.variables)
    return model, quantizer, fit(model, epochs=2), start, values(model.variables)


def start_again(model, start):
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    for variable in model.optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(np.zeros(variable.shape, variable.dtype))


@pytest.mark.each_backend("ema", "gumbel", "composed_sim")
def test_fit_trains_any_model_and_is_reproducible(make, name):
    model, quantizer, losses, start, end = trained(name)
    for one, again in zip(start, values(model_with(make)[0].variables), strict=True):
        np.testing.assert_array_equal(one, again)
    assert np.isfinite(losses).all()
    changed = {
        variable.path
        for variable, before, after in zip(model.variables, start, end, strict=True)
        if (before != after).any()
    }
    assert quantizer.code_counts.path in changed
    if hasattr(quantizer, "codebook") and quantizer.variables[0].shape == quantizer.codebook.shape:
        assert quantizer.variables[0].path in changed
    # Restart from the same weights, because a second model would be compiled again.
    start_again(model, start)
    np.testing.assert_array_equal(fit(model, epochs=2), losses)
    for one, again in zip(end, values(model.variables), strict=True):
        np.testing.assert_array_equal(one, again)
    assert numpy(quantizer.code_counts).sum() == 7 * BATCH // 4 * numpy(quantizer.encode(draw(4, *SHAPE))).size


@pytest.mark.each_backend("ema")
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="TorchInductor compiles for minutes on a small machine")
def test_jit_compile_gives_the_same_results(name):
    model, _, losses, start, _ = trained(name)
    start_again(model, start)
    # The same layers, compiled the other way: by default, Keras uses XLA on JAX but not for TensorFlow on a CPU.
    other = keras.Model(model.input, model.output)
    compiled(other, "adam", "mse", jit_compile=not model.jit_compile)
    # More vectors than codes in all three steps: two dead codes that move to the same vector would tie, and rounding
    # would break the tie.
    again, steps = fit(other, rest=0), 3
    if keras.backend.backend() == "tensorflow":
        # XLA draws other numbers from an equal seed. The first loss precedes any replacement of dead codes.
        steps = 0 if name in DRAW_OUTPUTS else 1 if name in DRAW_STATE else 3
    np.testing.assert_allclose(again[:steps], losses[:steps], rtol=1e-4)
    start_again(model, start)
    x, y = draw(BATCH, 3, 5), draw(BATCH, 3, DIM, seed=1)
    np.testing.assert_allclose(other.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("mixed_float16", marks=pytest.mark.each_backend("ema", "gumbel", "composed_sim")),
        "mixed_bfloat16",
        "bfloat16",
        "float16",
    ],
)
def test_low_precision_policies_keep_weights_and_losses_in_float32(make, name, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input(SHAPE)
    quantizer = make()
    model = keras.Model(inputs, layers.Dense(1)(quantizer(layers.Dense(DIM)(inputs))))
    compiled(model, keras.optimizers.SGD(0.01), "mse", traced=policy == "mixed_float16" or name in FOR_THE_BASE)
    if policy in ("mixed_float16", "bfloat16") or name in FOR_THE_BASE:
        model.train_on_batch(draw(4, *SHAPE), draw(4, 3, 1))
        losses = quantizer.losses
    else:

        def losses_of_call(x):
            model(x, training=True)
            return quantizer.losses

        # A graph, because TensorFlow refuses more inside a graph than outside.
        losses = graph(losses_of_call)(ops.convert_to_tensor(draw(4, *SHAPE)))
    for loss in losses:
        assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    quantized = quantizer(draw(4, *SHAPE))
    assert keras.backend.standardize_dtype(quantized.dtype) == quantizer.compute_dtype
    np.testing.assert_array_equal(
        numpy(ops.cast(quantizer.decode(quantizer.encode(draw(4, *SHAPE))), "float32")),
        numpy(ops.cast(quantized, "float32")),
    )
    for variable in quantizer.variables:
        assert keras.backend.standardize_dtype(variable.dtype) in ("float32", "int32", "uint32", "int64")
