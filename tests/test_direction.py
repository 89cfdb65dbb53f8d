"""Tests `distance="direction"` against NumPy: codes are compared by direction but returned at their own norm."""

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import built, losses_of, numpy
from keras import ops

import keras_vqvae


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def x(rng):
    return (rng.normal(size=(60, 4)) * rng.uniform(0.01, 10, size=(60, 1))).astype("float32")


def direction(kind=keras_vqvae.VectorQuantizer, **keywords):
    """Returns a layer whose codes have norms from 0.1 to 5, and these codes."""
    layer = built(kind(6, distance="direction", seed=3, **keywords))
    generator = np.random.default_rng(5)
    layer.set_codebook(unit(generator.normal(size=(6, 4))) * generator.uniform(0.1, 5, size=(6, 1)))
    return layer, numpy(layer.codebook).copy()


def test_the_code_of_the_most_similar_direction_is_returned_unnormalized(x):
    layer, codebook = direction()
    quantized, indices = layer(x, return_indices=True)
    expected = (unit(x) @ unit(codebook).T).argmax(-1)
    assert (expected != oracle.nearest_code(x, codebook)).any()
    np.testing.assert_array_equal(numpy(indices), expected)
    np.testing.assert_array_equal(numpy(quantized), codebook[expected])
    error = oracle.mean_square(x - codebook[expected])
    np.testing.assert_allclose(losses_of(layer, x), [0.25 * error, error], rtol=1e-5)
    np.testing.assert_array_equal(numpy(keras_vqvae.nearest_code(x, codebook, distance="direction")), expected)


def test_gradients_are_those_of_unnormalized_vectors_and_codes(x, rng):
    layer, codebook = direction()
    cotangent = rng.normal(size=x.shape).astype("float32")
    by_inputs, (by_codebook,) = layer_gradients(layer, x, cotangent)
    indices = (unit(x) @ unit(codebook).T).argmax(-1)
    pull = 2 / x.size * (x - codebook[indices])
    np.testing.assert_allclose(by_inputs, cotangent + 0.25 * pull, atol=1e-5)
    np.testing.assert_allclose(by_codebook, -oracle.one_hot(indices, 6).T @ pull, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e18])
def test_the_norm_of_a_vector_does_not_matter(x, size):
    layer, _ = direction()
    expected = numpy(layer.encode(unit(x)))
    np.testing.assert_array_equal(numpy(layer.encode(unit(x) * np.float32(size))), expected)
    found = keras_vqvae.nearest_code(unit(x) * np.float32(size), layer.codebook, distance="direction")
    np.testing.assert_array_equal(numpy(found), expected)


def test_the_moving_average_is_over_unnormalized_vectors(x):
    layer, codebook = direction(ema_decay=0.9, dead_code_threshold=0)
    indices = (unit(x) @ unit(codebook).T).argmax(-1)
    layer(x, training=True)
    for code in np.unique(indices):
        # The first vectors put a code on their mean.
        np.testing.assert_allclose(numpy(layer.codebook)[code], x[indices == code].mean(0), rtol=1e-4, atol=1e-5)


def test_a_step_of_k_means_assigns_by_direction_and_takes_plain_means(x):
    start = np.random.default_rng(5).normal(size=(6, 4)).astype("float32")
    indices = (unit(x) @ unit(start).T).argmax(-1)
    codes, counts = keras_vqvae.kmeans(x, 6, init=start, epochs=1, distance="direction", seed=0, verbose=0)
    means = np.stack([x[indices == code].mean(0) for code in range(6)])
    np.testing.assert_allclose(numpy(codes), means, rtol=1e-4, atol=1e-5)
    again = (unit(x) @ unit(means).T).argmax(-1)
    np.testing.assert_array_equal(counts, np.bincount(again, minlength=6))


def test_k_means_increases_the_projections_onto_the_codes(rng):
    x = (rng.normal(size=(500, 3)) * rng.uniform(0.1, 10, size=(500, 1))).astype("float32")
    start, _ = keras_vqvae.kmeans(x, 8, epochs=1, distance="direction", seed=0, verbose=0)
    sums = []
    for epochs in (1, 2, 4, 8):
        codes, _ = keras_vqvae.kmeans(x, 8, init=start, epochs=epochs, distance="direction", seed=0, verbose=0)
        sums.append((x @ unit(numpy(codes)).T).max(-1).sum())
    assert sums == sorted(sums)
    assert sums[-1] > 1.003 * sums[0]


def test_k_means_starts_on_different_directions(rng):
    """Each of six directions gets a code, although the vectors of one are a thousand times longer than the others."""
    directions = unit(rng.normal(size=(6, 8)))
    x = np.repeat(directions, 50, 0) * np.repeat([1e3, 1, 1, 1, 1, 1], 50)[:, None]
    x = (x * rng.uniform(0.5, 2, size=(300, 1))).astype("float32")
    codes, counts = keras_vqvae.kmeans(x, 6, epochs=1, distance="direction", seed=0, verbose=0)
    np.testing.assert_allclose((directions @ unit(numpy(codes)).T).max(-1), 1, rtol=1e-4)
    np.testing.assert_array_equal(counts, 50)


def test_adapt_equals_k_means_by_direction(x):
    layer, _ = direction()
    layer.adapt(x, verbose=0)
    codes, _ = keras_vqvae.kmeans(x, 6, distance="direction", seed=3, verbose=0)
    np.testing.assert_allclose(numpy(layer.codebook), numpy(codes), rtol=1e-5)


def test_an_assignment_regularizer_gets_directions(x):
    regularizer = keras_vqvae.AssignmentEntropy(temperature=0.5)
    layer, codebook = direction(assignment_regularizer=regularizer)
    directions = (ops.convert_to_tensor(unit(each), dtype="float32") for each in (x, codebook))
    expected = regularizer(*directions, ops.ones(len(x), "bool"))
    np.testing.assert_allclose(losses_of(layer, x)[-1], numpy(expected), rtol=1e-4)


def test_gumbel_draws_by_direction(x):
    """It draws as the Euclidean layer does for vectors and codes of unit norm."""
    layer, codebook = direction(keras_vqvae.GumbelQuantizer)
    other = built(keras_vqvae.GumbelQuantizer(6, seed=3))
    other.set_codebook(unit(codebook))
    drawn, drawn_units = numpy(layer(x, training=True)), numpy(other(unit(x), training=True))
    np.testing.assert_allclose(unit(drawn), drawn_units, atol=1e-5)
    assert np.abs(np.linalg.norm(drawn, axis=-1) - 1).min() > 0.01
    np.testing.assert_allclose(losses_of(layer, x), losses_of(other, unit(x)), rtol=1e-4)
    np.testing.assert_array_equal(numpy(layer.encode(x)), numpy(other.encode(unit(x))))


def test_sim_codes_are_compared_by_direction(x):
    layer, codebook = direction(keras_vqvae.SimVectorQuantizer)
    np.testing.assert_array_equal(numpy(layer.encode(x)), (unit(x) @ unit(codebook).T).argmax(-1))


def test_index_backpropagation_refuses_distance_by_direction():
    with pytest.raises(ValueError, match="distance.*Received: distance='direction'"):
        keras_vqvae.IndexBackpropagationQuantizer(8, distance="direction")


def test_adapt_keeps_the_constraint_on_the_codes(x):
    layer, _ = direction(embeddings_constraint=keras.constraints.MaxNorm(0.5, axis=-1))
    layer.adapt(5 * x, verbose=0)
    assert np.linalg.norm(numpy(layer.codebook), axis=-1).max() < 0.5001


def cosine():
    return keras_vqvae.VectorQuantizer(8, distance="cosine", seed=1)


RESIDUALS = {
    "residual": lambda: keras_vqvae.ResidualQuantizer(cosine(), 2),
    "shared": lambda: keras_vqvae.ResidualQuantizer(cosine(), 2, shared_codebook=True),
    "sim": lambda: keras_vqvae.ResidualQuantizer(keras_vqvae.SimVectorQuantizer(8, distance="cosine"), 2),
    "of groups": lambda: keras_vqvae.ResidualQuantizer(keras_vqvae.GroupedQuantizer(cosine(), 2), 2),
    "of residuals": lambda: keras_vqvae.ResidualQuantizer(keras_vqvae.ResidualQuantizer(cosine(), 1), 2),
    "in groups": lambda: keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(cosine(), 2), 2),
    "in a projection": lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.ResidualQuantizer(cosine(), 2), 2),
    "scales": lambda: keras_vqvae.MultiScaleQuantizer(cosine(), (1, 2)),
    "scales of groups": lambda: keras_vqvae.MultiScaleQuantizer(keras_vqvae.GroupedQuantizer(cosine(), 2), (1, 2)),
}


@pytest.mark.parametrize("make", RESIDUALS.values(), ids=RESIDUALS)
def test_cosine_codes_are_refused_if_they_must_refine(make):
    with pytest.raises(ValueError, match="distance='cosine'.*'direction'.*Received: distance='cosine'"):
        make()


def test_cosine_codes_are_accepted_if_they_need_not_refine(x):
    for layer in (
        keras_vqvae.ResidualQuantizer(cosine(), 1),
        keras_vqvae.GroupedQuantizer(cosine(), 2),
        # The projection back to the inputs sets the norm.
        keras_vqvae.ResidualQuantizer(keras_vqvae.ProjectedQuantizer(cosine(), 2), 2),
    ):
        assert tuple(layer(x).shape) == x.shape
    keras_vqvae.MultiScaleQuantizer(cosine(), (4,))


def test_each_stage_by_direction_lowers_the_error(rng):
    x = rng.normal(size=(600, 4)).astype("float32")
    layer = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(32, distance="direction", seed=1), 4)
    layer.adapt(x, verbose=0)
    indices = numpy(layer.encode(x))
    cut = [np.where(np.arange(4) < depth, indices, -1) for depth in range(1, 5)]
    errors = np.array([oracle.mean_square(numpy(layer.decode(codes)) - x) for codes in cut])
    assert (errors[1:] < 0.75 * errors[:-1]).all(), errors
