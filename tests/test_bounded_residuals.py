"""Tests residuals of quantizers with fixed codes: each stage divides the bins of the previous stage."""

import itertools

import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import draw, numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_vqvae

SOME = st.lists(st.integers(2, 8), min_size=1, max_size=3)


def fsq(levels, symmetric=False):
    return keras_vqvae.FiniteScalarQuantizer(levels, symmetric=symmetric)


def residual(quantizer, depth, dim):
    layer = keras_vqvae.ResidualQuantizer(quantizer, depth)
    layer.build((None, dim))
    return layer


def unbound(levels, symmetric, values):
    """Inverts FSQ's bound: returns the inputs that it maps to `values`."""
    levels = np.array(levels, "float64")
    if symmetric:
        return np.arctanh(values)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2 == 0, 0.5, 0)
    return np.arctanh((values * (levels // 2) + offset) / half) - np.arctanh(offset / half)


def limits(levels, symmetric):
    """Returns the first and the last code."""
    levels = np.array(levels)
    return -np.ones(len(levels)), np.ones(len(levels)) if symmetric else (levels - 1) // 2 / (levels // 2)


def partial(layer, indices, depth):
    indices = indices.copy()
    indices[:, depth:] = -1
    return numpy(layer.decode(indices))


@settings(max_examples=8)
@given(levels=SOME, symmetric=st.booleans())
def test_each_stage_lowers_the_error_by_the_square_of_the_number_of_levels(levels, symmetric):
    layer = residual(fsq(levels, symmetric), 4, len(levels))
    values = np.random.default_rng(0).uniform(*limits(levels, symmetric), (4000, len(levels)))
    x = unbound(levels, symmetric, values).astype("float32")
    quantized, indices = layer(x, return_indices=True)
    indices = numpy(indices)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))
    squares = [np.square(partial(layer, indices, depth) - numpy(quantized)).mean(0) for depth in (1, 2, 3)]
    # If inputs are uniform over a bin, `D` further stages remove the fraction `1 - levels^-2D` of the squared error.
    left = [1 - np.array(levels, "float64") ** (-2 * (4 - depth)) for depth in (1, 2, 3)]
    for before, after, one, other in zip(squares[:-1], squares[1:], left[:-1], left[1:], strict=True):
        np.testing.assert_allclose(before / after, np.square(levels) * one / other, rtol=0.15)


@settings(max_examples=8)
@given(levels=st.integers(2, 8), symmetric=st.booleans())
def test_every_combination_of_indices_within_the_bounds_is_reached(levels, symmetric):
    layer = residual(fsq((levels,), symmetric), 3, 1)
    combinations = np.array(list(itertools.product(range(levels), repeat=3)), "int32")
    values = numpy(layer.decode(combinations)).astype("float64")
    assert len(np.unique(np.round(values, 6))) == levels**3
    lowest, highest = limits([levels], symmetric)
    inside = ((values >= lowest) & (values <= highest) & (np.abs(values) < 1))[:, 0]
    # Half of the first bin and half of the last lie outside.
    assert inside.sum() >= (levels - 1) * levels**2 - 1
    x = unbound((levels,), symmetric, values[inside])
    np.testing.assert_array_equal(numpy(layer.encode(x.astype("float32"))), combinations[inside])


@pytest.mark.parametrize("depth", [2, 4])
def test_stages_of_one_bit_form_a_binary_fraction(depth):
    layer = residual(keras_vqvae.LookupFreeQuantizer(1), depth, 1)
    combinations = np.array(list(itertools.product((0, 1), repeat=depth)), "int32")
    values = numpy(layer.decode(combinations))
    np.testing.assert_allclose(values[:, 0], np.linspace(-2 + 0.5 ** (depth - 1), 2 - 0.5 ** (depth - 1), 2**depth))
    np.testing.assert_array_equal(numpy(layer.encode(values)), combinations)


def test_a_residual_of_spherical_bits_normalizes_only_once():
    layer = residual(keras_vqvae.BinarySphericalQuantizer(4), 6, 4)
    z = draw(500, 4)
    expected = z / np.linalg.norm(z, axis=-1, keepdims=True)
    # Each of the six stages halves the size, so the sum reaches almost twice the first code.
    inside = np.abs(expected) < 0.96
    error = (numpy(layer(z)) - expected)[inside]
    assert np.abs(error).max() <= 0.5 * 0.5**5 + 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda: fsq((5, 4)),
        lambda: fsq((5, 4), True),
        lambda: keras_vqvae.LookupFreeQuantizer(2),
        lambda: keras_vqvae.BinarySphericalQuantizer(2),
    ],
    ids=["fsq", "symmetric fsq", "lfq", "bsq"],
)
def test_a_residual_of_one_stage_equals_its_quantizer(make):
    x = draw(40, 2)
    layer, alone = residual(make(), 1, 2), make()
    np.testing.assert_array_equal(numpy(layer.encode(x))[:, 0], numpy(alone.encode(x)))
    np.testing.assert_array_equal(numpy(layer(x)), numpy(alone(x)))
    for one, other in zip(*(layer_gradients(q, x, np.ones_like(x))[:1] for q in (layer, alone)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_residual_of_residuals_is_one_residual():
    x = draw(40, 2)
    plain = residual(fsq((5, 4)), 4, 2)
    nested = residual(keras_vqvae.ResidualQuantizer(fsq((5, 4)), 2), 2, 2)
    np.testing.assert_array_equal(numpy(nested.encode(x)).reshape(40, 4), numpy(plain.encode(x)))
    np.testing.assert_allclose(numpy(nested(x)), numpy(plain(x)), atol=1e-6)


def test_a_residual_of_groups_equals_groups_of_residuals():
    x = draw(40, 4)
    inside = residual(keras_vqvae.GroupedQuantizer(fsq((5, 4)), 2), 3, 4)
    outside = keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(fsq((5, 4)), 3), 2)
    np.testing.assert_array_equal(numpy(inside(x)), numpy(outside(x)))
    np.testing.assert_array_equal(numpy(inside.encode(x)).swapaxes(1, 2), numpy(outside.encode(x)))


@pytest.mark.parametrize(
    "make", [lambda: fsq((5, 4)), lambda: keras_vqvae.GroupedQuantizer(fsq((5,)), 2)], ids=["fsq", "groups"]
)
def test_a_shared_codebook_of_fixed_codes_is_refused(make):
    with pytest.raises(ValueError, match="shared_codebook.*Received: shared_codebook=True"):
        keras_vqvae.ResidualQuantizer(make(), 2, shared_codebook=True)


@pytest.mark.parametrize("make", [lambda: fsq((8, 5)), lambda: keras_vqvae.LookupFreeQuantizer(2)], ids=["fsq", "lfq"])
def test_stages_finer_than_float32_are_refused(make):
    with pytest.raises(ValueError, match="finer.*Received: levels="):
        keras_vqvae.ResidualQuantizer(make(), 1000)


@pytest.mark.parametrize("symmetric", [False, True])
def test_inputs_beyond_the_bounds_get_the_nearest_code(symmetric):
    """`MultiScaleQuantizer` produces such inputs as residuals of a coarser grid."""
    layer = fsq((5, 4), symmetric)
    layer.set_stage(0)
    layer.build((None, 2))
    x = 3 * draw(200, 2)
    np.testing.assert_array_equal(numpy(layer.encode(x)), oracle.nearest_code(x, numpy(layer.codebook)))
