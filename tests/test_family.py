"""Tests SimVQ, IBQ and Gumbel quantizers against the formulas in NumPy: values, indices, losses and gradients."""

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import built, losses_of, numpy, softmax

import keras_vqvae


@pytest.fixture
def x(rng):
    return (2 * rng.normal(size=(40, 4))).astype("float32")


def test_sim_codes_are_a_linear_map_of_frozen_codes(x, rng):
    layer = built(keras_vqvae.SimVectorQuantizer(8, seed=1, commitment_weight=0.5, codebook_weight=2.0))
    layer.projection.assign(rng.normal(size=(4, 4)))
    frozen, projection = numpy(layer.frozen).astype("float64"), numpy(layer.projection)
    codes = frozen @ projection
    indices = oracle.nearest_code(x, codes)
    np.testing.assert_array_equal(numpy(layer.encode(x)), indices)
    error = oracle.mean_square(x - codes[indices])
    np.testing.assert_allclose(losses_of(layer, x), [0.5 * error, 2 * error], rtol=1e-4)
    _, (by_projection,) = layer_gradients(layer, x, np.zeros_like(x))
    pull = -2 * 2 / x.size * (x - codes[indices])
    np.testing.assert_allclose(by_projection, frozen[indices].T @ pull, atol=1e-5)
    layer.adapt(x, verbose=0)
    np.testing.assert_allclose(numpy(layer.codebook), numpy(keras_vqvae.kmeans(x, 8, seed=1, verbose=0)[0]), rtol=1e-5)


def test_index_backpropagation_matches_the_paper(x, rng):
    layer = built(keras_vqvae.IndexBackpropagationQuantizer(8, entropy_weight=0, seed=1))
    codebook = numpy(layer.codebook).copy()
    scores = x.astype("float64") @ codebook.T
    indices = scores.argmax(-1)
    np.testing.assert_array_equal(numpy(layer.encode(x)), indices)
    codes = codebook[indices]
    np.testing.assert_allclose(numpy(layer(x, training=True)), codes, atol=1e-6)
    error = oracle.mean_square(x - codes)
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], [error, error, 0.25 * error], rtol=1e-4)
    cotangent = rng.normal(size=x.shape).astype("float32")
    by_inputs, (by_codebook,) = layer_gradients(layer, x, cotangent)
    # `q = h E` gets the cotangent and the gradient of its loss. Both reach `p`, and the codes through `h`.
    by_q = cotangent - 2 / x.size * (x - codes)
    p = softmax(scores)
    by_p = by_q @ codebook.T
    by_scores = p * (by_p - (p * by_p).sum(-1, keepdims=True))
    pull = 2 / x.size * (x - codes)
    np.testing.assert_allclose(by_inputs, by_scores @ codebook + 2 * pull, atol=1e-5)
    one_hot = oracle.one_hot(indices, 8)
    np.testing.assert_allclose(by_codebook, one_hot.T @ (by_q - 0.25 * pull) + by_scores.T @ x, atol=1e-4)


def test_index_backpropagation_adds_an_entropy_of_inner_products(x):
    """The entropy is added to the other losses. Only valid vectors count."""
    layer = built(keras_vqvae.IndexBackpropagationQuantizer(8, 4, 0.3, 0.5, temperature=0.5, seed=1))
    mask = np.arange(len(x)) % 3 > 0
    layer(x, mask=mask, training=True)
    p = softmax(2 * x[mask].astype("float64") @ numpy(layer.codebook).T)
    mean = p.mean(0)
    expected = 0.3 * (-(p * np.log(p)).sum(-1).mean() + 0.5 * (mean * np.log(mean)).sum())
    np.testing.assert_allclose(numpy(layer.losses[-1]), expected, rtol=1e-4)


@pytest.mark.parametrize("offset", [0, 1024])
def test_gumbel_draws_codes_with_softmax_probabilities(offset):
    layer = built(keras_vqvae.GumbelQuantizer(4, seed=1, kl_weight=0.5, dead_code_threshold=0), 2)
    codes = np.array([[0, 0], [1, 0], [0, 1.5], [2, 2]], "float32") + offset
    layer.set_codebook(codes)
    z = np.tile(np.array([[0.375, 0.25]], "float32"), (4000, 1)) + offset
    drawn = numpy(layer(z, training=True))
    chosen = oracle.nearest_code(drawn, codes)
    np.testing.assert_allclose(drawn, codes[chosen], atol=1e-6)
    p = softmax(-oracle.distances(z[:1], codes))[0]
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / 4000, p, atol=0.03)
    np.testing.assert_allclose(
        [numpy(loss) for loss in layer.losses], [0.5 * (np.log(4) + (p * np.log(p)).sum())], rtol=1e-4
    )
    assert (numpy(layer(z)) == codes[0]).all()


@pytest.mark.parametrize("end", ["minval", "maxval"])
def test_gumbel_noise_is_finite_at_both_ends_of_the_uniform_range(monkeypatch, end):
    def uniform(shape, dtype, seed, **ends):
        return keras.ops.full(shape, ends[end], dtype)

    layer = built(keras_vqvae.GumbelQuantizer(4, dead_code_threshold=0, seed=1), 2)
    monkeypatch.setattr(keras.random, "uniform", uniform)
    x = np.array([[0.3, -0.2]], "float32")
    # With equal noise for all codes, the nearest one is drawn.
    np.testing.assert_allclose(numpy(layer(x, training=True)), numpy(layer(x)), atol=1e-6)


def test_gumbel_gradients_are_those_of_the_relaxation(rng):
    """At a low temperature, the draw hardly depends on its input. At a high one it has the mean code's gradients."""
    x = rng.normal(size=(6, 2)).astype("float32")
    layer = built(keras_vqvae.GumbelQuantizer(4, temperature=1e6, seed=1, kl_weight=0, dead_code_threshold=0), 2)
    by_inputs, _ = layer_gradients(layer, x, np.ones_like(x))
    codebook = numpy(layer.codebook)
    # At a high temperature `d softmax(a / T) / da` is `(I - 1 / K) / (K T)`, and `da / dz` is `2 E`.
    by_p = codebook.sum(-1)
    expected = ((by_p - by_p.mean()) / 4 / 1e6) @ (2 * codebook)
    np.testing.assert_allclose(by_inputs, np.tile(expected, (6, 1)), rtol=1e-3)


@pytest.mark.each_backend
def test_a_schedule_sets_temperatures_in_nested_models(x):
    quantizer = keras_vqvae.GumbelQuantizer(8, temperature=2.0)
    model = keras.Sequential([keras.Input((4,)), keras.Sequential([keras.Input((4,)), quantizer])])
    model.compile("sgd", "mse")
    seen = []

    def schedule(epoch, temperature):
        seen.append((epoch, temperature))
        return temperature / 2

    model.fit(x, x, epochs=3, verbose=0, callbacks=[keras_vqvae.TemperatureScheduler(schedule)])
    assert seen == [(0, 2.0), (1, 1.0), (2, 0.5)]
    assert float(numpy(quantizer.temperature)) == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    {
        "levels": (lambda: keras_vqvae.FiniteScalarQuantizer((5, 1)), r"Received: levels=\(5, 1\)"),
        "no levels": (lambda: keras_vqvae.FiniteScalarQuantizer(()), r"Received: levels=\(\)"),
        "product": (lambda: keras_vqvae.FiniteScalarQuantizer((2,) * 31), "2.31 - 1.*Received: levels="),
        "noise": (lambda: keras_vqvae.FiniteScalarQuantizer(noise=1.5), "Received: noise=1.5"),
        "bits": (lambda: keras_vqvae.LookupFreeQuantizer(0), "Received: num_bits=0"),
        "many bits": (lambda: keras_vqvae.BinarySphericalQuantizer(31), "Received: num_bits=31"),
        "cold": (lambda: keras_vqvae.LookupFreeQuantizer(3, temperature=0), "Received: temperature=0"),
        "temperature": (lambda: keras_vqvae.GumbelQuantizer(4, temperature=0), "Received: temperature=0"),
        "ibq": (lambda: keras_vqvae.IndexBackpropagationQuantizer(4, entropy_weight=-1), "Received: entropy_weight=-1"),
        "kl": (lambda: keras_vqvae.GumbelQuantizer(4, kl_weight=-1), "Received: kl_weight=-1"),
        "sim": (lambda: keras_vqvae.SimVectorQuantizer(4, ema_decay=0.9), "Received: ema_decay=0.9"),
        "axis": (lambda: built(keras_vqvae.FiniteScalarQuantizer((5, 5)), 3), r"Received: len\(levels\)=2"),
        "adapt": (lambda: keras_vqvae.LookupFreeQuantizer(3).adapt(np.ones((3, 3))), "no codebook"),
        "list": (lambda: keras_vqvae.FiniteScalarQuantizer((2,) * 30).codebook, "Received: num_embeddings=1073741824"),
    }.values(),
)
def test_wrong_arguments_are_named_in_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_kl_loss_of_gumbel_has_the_gradient_of_finite_differences(rng):
    layer = built(keras_vqvae.GumbelQuantizer(8, kl_weight=0.7, seed=1, dead_code_threshold=0), 3)
    x = rng.normal(size=(6, 3)).astype("float32")
    by_inputs, _ = layer_gradients(layer, x, np.zeros_like(x))
    codes, z = numpy(layer.codebook).astype("float64"), x.astype("float64")

    def divergence(vectors):
        p = softmax(-np.square(vectors[:, None] - codes).sum(-1))
        return 0.7 * (p * np.log(8 * p)).sum(-1).mean()

    expected = np.zeros_like(z)
    for place in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-5
        expected[place] = (divergence(z + step) - divergence(z - step)) / 2e-5
    np.testing.assert_allclose(by_inputs, expected, atol=1e-6)
