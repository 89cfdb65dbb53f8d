"""Tests counts of codes in long trainings and for many codes."""

import keras
import numpy as np
import pytest
from helpers import draw, numpy, restore, weights
from quantizers import EVERY, SHAPE

import keras_vqvae
from keras_vqvae.backend import backend
from keras_vqvae.layers import code_counts

FULL = 2**31 - 1
"""The largest int32, which is JAX's largest integer."""


def sums(before, counts):
    """Returns the counts after an update: beyond 2^31, or saturated on JAX."""
    total = before.astype("int64") + counts
    return np.minimum(total, FULL) if keras.backend.backend() == "jax" else total


@pytest.mark.each_backend
@pytest.mark.parametrize("name", ["ema", "fsq", "residual_shared", "grouped_residual"])
def test_counts_never_wrap(name):
    layer = EVERY[name]()
    layer.build((None, *SHAPE))
    start, x = weights(layer), draw(4, *SHAPE)
    layer(x, training=True)
    counts = numpy(layer.code_counts).copy()
    restore(layer, start)
    before = np.where(counts > 1, FULL - 1, 5).astype("int32")
    layer.code_counts.assign(before)
    layer(x, training=True)
    assert counts.max() > 1
    np.testing.assert_array_equal(numpy(layer.code_counts), sums(before, counts))
    layer.reset_code_counts()
    np.testing.assert_array_equal(numpy(layer.code_counts), 0)


@pytest.mark.each_backend
def test_counts_of_a_file_from_another_backend_never_wrap():
    layer, store = EVERY["ema"](), {}
    layer.build((None, *SHAPE))
    layer.save_own_variables(store)
    (counts,) = (name for name, value in store.items() if value is layer.code_counts)
    store = {name: numpy(value) for name, value in store.items()}
    store[counts] = np.arange(FULL - 7, FULL + 9)
    layer.load_own_variables(store)
    np.testing.assert_array_equal(numpy(layer.code_counts), sums(store[counts], 0))


@pytest.mark.parametrize("metric", [keras_vqvae.CodebookPerplexity(4), keras_vqvae.CodebookUsage(4)])
def test_counts_of_metrics_never_wrap(metric):
    metric.counts.assign(np.array([[FULL - 1, FULL - 1, 5, 0]], "int32"))
    metric.update_state([0, 0, 0, 1, 2])
    expected = sums(np.array([[FULL - 1, FULL - 1, 5, 0]]), np.array([[3, 1, 1, 0]]))
    np.testing.assert_array_equal(numpy(metric.counts), expected)
    result = 2.0 if isinstance(metric, keras_vqvae.CodebookPerplexity) else 0.75
    np.testing.assert_allclose(numpy(metric.result()), result, rtol=1e-4)


@pytest.mark.parametrize("name", ["optimizer", "ema", "sim", "ibq", "gumbel", "fsq", "lfq", "residual", "projected"])
def test_quantizers_above_the_counting_limit_train_the_same(name, monkeypatch):
    """Codebooks of any size are counted, because the counts identify dead codes."""
    layers = []
    for most in (code_counts.MAX_COUNTED_CODES, 8):
        monkeypatch.setattr(code_counts, "MAX_COUNTED_CODES", most)
        keras.utils.set_random_seed(0)
        layers.append(EVERY[name]())
        layers[-1].build((None, *SHAPE))
        layers[-1](draw(4, *SHAPE), training=True)
    counted, vast = layers
    assert counted.code_counts is not None
    assert (vast.code_counts is not None) == vast.has_codebook
    for one, other in zip(vast.losses, counted.losses, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    np.testing.assert_array_equal(numpy(vast(draw(4, *SHAPE))), numpy(counted(draw(4, *SHAPE))))


@pytest.mark.each_backend
def test_the_number_of_blocks_in_a_program_is_bounded():
    for codes in (2**12, 2**20, 2**24 + 1):
        block = backend.block_codes(codes)
        assert block >= backend.BLOCK_CODES
        if keras.backend.backend() != "torch":
            assert -(-codes // block) <= backend.MAX_BLOCKS
