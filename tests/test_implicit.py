"""Tests quantizers without a codebook against the formulas in NumPy: values, indices, losses and gradients."""

import numpy as np
import oracle
import pytest
from gradients import gradients, layer_gradients
from helpers import built, losses_of, numpy, softmax
from keras import ops

import keras_vqvae


@pytest.fixture
def x(rng):
    return (2 * rng.normal(size=(40, 4))).astype("float32")


LEVELS = [(2,) * 4, (3,) * 4, (4, 5, 8, 2), (8, 5, 5, 5), (7, 6, 3, 4)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("levels", LEVELS)
def test_finite_scalars_match_the_paper(x, levels, symmetric):
    layer = built(keras_vqvae.FiniteScalarQuantizer(levels, symmetric=symmetric))
    steps, z = np.array(levels, float), x.astype("float64")
    if symmetric:
        digits = np.floor((steps - 1) * (np.tanh(z) + 1) / 2 + 0.5)
        codes = 2 / (steps - 1) * digits - 1
        slope = 1 - np.tanh(z) ** 2
    else:
        h = (steps - 1) * 1.001 / 2
        o = np.where(steps % 2 == 0, 0.5, 0)
        s = np.arctanh(o / h)
        rounded = np.round(np.tanh(z + s) * h - o)
        codes, digits = rounded / (steps // 2), rounded + steps // 2
        slope = (1 - np.tanh(z + s) ** 2) * h / (steps // 2)
    quantized, indices = layer(x, return_indices=True)
    np.testing.assert_allclose(numpy(quantized), codes, atol=1e-6)
    # The first digit is the least significant.
    np.testing.assert_array_equal(numpy(indices), (digits * np.cumprod([1, *levels[:-1]])).sum(-1))
    by_inputs, _ = layer_gradients(layer, x, np.ones_like(x))
    np.testing.assert_allclose(by_inputs, slope, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_of_finite_scalars_can_be_reached(levels, symmetric):
    """The inverse of the bound maps the center of each bin to an input that gets the bin's code."""
    layer = built(keras_vqvae.FiniteScalarQuantizer(levels, symmetric=symmetric))
    indices = np.arange(layer.num_embeddings, dtype="int32")
    codes = numpy(layer.decode(indices)).astype("float64")
    assert len(np.unique(codes, axis=0)) == layer.num_embeddings
    steps = np.array(levels, float)
    if symmetric:
        z = np.arctanh(np.clip(codes, -0.999, 0.999))
    else:
        h, o = (steps - 1) * 1.001 / 2, np.where(steps % 2 == 0, 0.5, 0)
        z = np.arctanh(np.clip((codes * (steps // 2) + o) / h, -0.9999, 0.9999)) - np.arctanh(o / h)
    np.testing.assert_array_equal(numpy(layer.encode(z.astype("float32"))), indices)


def test_noise_replaces_rounding_within_half_a_level(x):
    layer = built(keras_vqvae.FiniteScalarQuantizer((5, 5, 5, 5), noise=0.5, seed=1))
    exact = numpy(layer(x))
    np.testing.assert_array_equal(exact, numpy(built(keras_vqvae.FiniteScalarQuantizer((5, 5, 5, 5)))(x)))
    noisy = numpy(layer(x, training=True))
    bounded = np.tanh(x) * 1.001
    moved = noisy != exact
    assert 0.3 < moved.mean() < 0.7
    # The noise is at most half a level, which is 1 / 4.
    assert np.abs(noisy - bounded)[moved].max() <= 0.25 + 1e-6
    assert (numpy(layer(x, training=True)) != noisy).any()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras_vqvae.LookupFreeQuantizer(18),
        lambda: keras_vqvae.BinarySphericalQuantizer(18),
        lambda: keras_vqvae.FiniteScalarQuantizer((8,) * 6),
        lambda: keras_vqvae.FiniteScalarQuantizer((2,) * 30),
    ],
    ids=["lfq", "bsq", "fsq of 8 levels", "fsq of 2 levels"],
)
def test_vast_codebooks_encode_and_decode_without_a_table(layer, rng):
    layer = layer()
    layer.build((None, len(layer.levels)))
    indices = rng.integers(layer.num_embeddings, size=200).astype("int32")
    codes = numpy(layer.decode(indices))
    # The outermost levels need inputs far out, where tanh saturates. Signs are fixed points anyway.
    if min(layer.levels) == 2:
        away = codes if not isinstance(layer, keras_vqvae.FiniteScalarQuantizer) else 20 * (codes + 0.5)
        np.testing.assert_array_equal(numpy(layer.encode(away)), indices)
    z = rng.normal(size=(50, len(layer.levels))).astype("float32")
    np.testing.assert_array_equal(numpy(layer.decode(layer.encode(z))), numpy(layer(z)))


def test_codes_are_counted_up_to_16_million():
    counted, vast = built(keras_vqvae.LookupFreeQuantizer(24), 24), built(keras_vqvae.LookupFreeQuantizer(25), 25)
    assert counted.code_counts.shape == (2**24,)
    assert vast.code_counts is None
    vast(np.ones((3, 25), "float32"), training=True)


def all_bits(num_bits, size=1.0):
    """Returns all codes. The first axis is the most significant bit."""
    return size * (2.0 * (np.arange(2**num_bits)[:, None] >> np.arange(num_bits)[::-1] & 1) - 1)


def test_indices_have_at_most_30_bits():
    codes = np.concatenate([-np.ones((1, 30), "float32"), np.ones((1, 30), "float32")])
    layer = built(keras_vqvae.LookupFreeQuantizer(30), 30)
    np.testing.assert_array_equal(numpy(layer.encode(codes)), [0, 2**30 - 1])
    with pytest.raises(ValueError, match="num_bits=31"):
        keras_vqvae.LookupFreeQuantizer(31)


@pytest.mark.parametrize("spherical", [False, True])
def test_binary_codes_and_losses_equal_those_of_an_explicit_codebook(x, spherical):
    kind = keras_vqvae.BinarySphericalQuantizer if spherical else keras_vqvae.LookupFreeQuantizer
    layer = built(kind(4, commitment_weight=0.5, entropy_weight=0.3, diversity_weight=0.7, temperature=1 / 0.6))
    z = x.astype("float64") / (np.linalg.norm(x, axis=-1, keepdims=True) if spherical else 1)
    codes = all_bits(4, 0.5 if spherical else 1.0)
    np.testing.assert_allclose(numpy(layer.codebook), codes, rtol=1e-6)
    indices = oracle.nearest_code(z, codes)
    quantized, found = layer(x, return_indices=True)
    np.testing.assert_array_equal(numpy(found), indices)
    np.testing.assert_allclose(numpy(quantized), codes[indices], rtol=1e-6)
    p = softmax(-0.6 * oracle.distances(z, codes))
    sure = -(p * np.log(p)).sum(-1).mean()
    mean = p.mean(0)
    spread = -(mean * np.log(mean)).sum()
    if spherical:
        # The spherical quantizer's entropy is a sum over bits.
        ones = (mean[:, None] * (codes > 0)).sum(0)
        spread = -(ones * np.log(ones) + (1 - ones) * np.log(1 - ones)).sum()
    expected = [0.5 * oracle.mean_square(z - codes[indices]), 0.3 * (sure - 0.7 * spread)]
    np.testing.assert_allclose(losses_of(layer, x), expected, rtol=1e-4)


@pytest.mark.parametrize("num_bits", [1, 5])
def test_the_lookup_free_entropy_has_the_gradient_of_an_explicit_codebook(rng, num_bits):
    z = (0.3 * rng.normal(size=(20, num_bits))).astype("float32")
    layer = built(keras_vqvae.LookupFreeQuantizer(num_bits, commitment_weight=0, temperature=1.0), num_bits)
    codes = ops.convert_to_tensor(all_bits(num_bits), dtype="float32")

    def listed(z):
        log_p = ops.log_softmax(-ops.sum(ops.square(z[:, None] - codes), -1), -1)
        p = ops.exp(log_p)
        mean = ops.mean(p, 0)
        return 0.1 * (-ops.mean(ops.sum(p * log_p, -1)) + ops.sum(mean * ops.log(mean)))

    (expected,) = gradients(listed, z)
    by_inputs, _ = layer_gradients(layer, z, np.zeros_like(z))
    np.testing.assert_allclose(by_inputs, expected, atol=1e-6)


def test_resetting_missing_counts_is_no_error():
    layer = keras_vqvae.LookupFreeQuantizer(25)
    layer.reset_code_counts()
    layer.build((None, 25))
    layer.reset_code_counts()
    assert layer.code_counts is None
