"""Tests beam search against all sums of codes."""

import itertools

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import assert_same_weights, built, draw, losses_of, numpy, weights
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_vqvae
from keras_vqvae.backend import backend
from keras_vqvae.ops import search


def residual(beam_width, depth=3, size=5, **keywords):
    inner = keras_vqvae.VectorQuantizer(size, ema_decay=0.9, seed=1)
    return keras_vqvae.ResidualQuantizer(inner, depth, beam_width=beam_width, **keywords)


def beam(vectors, codebooks, width):
    """Runs the beam search in float64, one vector at a time. Returns the final errors in ascending order."""
    found = []
    for vector in np.asarray(vectors, "float64"):
        rests = vector[None]
        for codes in codebooks:
            rests = (rests[:, None] - np.asarray(codes, "float64")).reshape(-1, len(vector))
            rests = rests[np.argsort(np.square(rests).sum(-1), kind="stable")[:width]]
        found.append(np.square(rests).sum(-1))
    return np.array(found)


@pytest.mark.each_backend(slow=True)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    width=st.integers(1, 9),
    block=st.sampled_from([1, 100, 1 << 20]),
    far=st.sampled_from([0, 100]),
)
def test_beam_search_finds_the_sums_of_a_float64_search(sizes, width, block, far):
    codebooks = [draw(size, 3, seed=i) + far * (i == 0) for i, size in enumerate(sizes)]
    vectors = draw(11, 3, seed=9) + far
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "BLOCK_SCORES", block)
        paths = search.beam_search(ops.convert_to_tensor(vectors), list(map(ops.convert_to_tensor, codebooks)), width)
    sums = sum(codes[numpy(path)].astype("float64") for codes, path in zip(codebooks, paths, strict=True))
    expected = beam(vectors, codebooks, width)
    np.testing.assert_allclose(np.square(vectors[:, None] - sums).sum(-1), expected, rtol=1e-3, atol=1e-3)


def test_a_beam_of_all_sums_finds_the_nearest_sum():
    layer, x = built(residual(25)), draw(40, 4)
    books = [numpy(quantizer.codebook) for quantizer in layer.quantizers]
    sums = np.array([sum(codes) for codes in itertools.product(*books)])
    quantized, indices = layer(x, return_indices=True)
    found = np.square(numpy(quantized) - x).sum(-1)
    np.testing.assert_allclose(found, oracle.distances(x, sums).min(-1), rtol=1e-4)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))


def test_a_beam_of_width_1_takes_the_nearest_code_of_each_stage():
    layer, x = built(residual(1)), draw(40, 4)
    paths = search.beam_search(ops.convert_to_tensor(x), [ops.copy(q.codebook) for q in layer.quantizers], 1)
    np.testing.assert_array_equal(np.concatenate(list(map(numpy, paths)), -1), numpy(layer.encode(x)))


@pytest.mark.parametrize("width", [2, 4])
def test_stages_learn_from_the_residuals_of_the_chosen_sums(width):
    """Losses, counts and moving averages use the residuals along the chosen sums."""
    layer, x = built(residual(width)), draw(40, 4)
    books = [numpy(quantizer.codebook).astype("float64") for quantizer in layer.quantizers]
    indices = numpy(layer.encode(x))
    losses = losses_of(layer, x)
    rest = x
    for stage, (quantizer, codes) in enumerate(zip(layer.quantizers, books, strict=True)):
        chosen = codes[indices[:, stage]]
        np.testing.assert_allclose(losses[stage], 0.25 * np.square(rest - chosen).mean(), rtol=1e-4)
        np.testing.assert_array_equal(numpy(quantizer.code_counts), np.bincount(indices[:, stage], minlength=5))
        used = np.unique(indices[:, stage])
        means = np.array([rest[indices[:, stage] == code].mean(0) for code in used])
        # The first assignment puts a code on the mean of its vectors.
        np.testing.assert_allclose(numpy(quantizer.codebook)[used], means, rtol=1e-3, atol=1e-5)
        rest = rest - chosen


def gaussian(n):
    return draw(n, 4)


def clusters(n):
    centers = draw(60, 8, seed=1)
    return (centers[np.arange(n) % 60] + 0.1 * draw(n, 8)).astype("float32")


@pytest.mark.parametrize("make", [gaussian, clusters])
def test_adapt_with_a_beam_lowers_the_error(make):
    """On held-out data, the error is below that of a beam over the codebooks of greedy k-means."""
    train, test = np.split(make(3000), 2)
    greedy, beamed = residual(1, size=16), residual(4, size=16)
    greedy.adapt(train, verbose=0)
    beamed.adapt(train, verbose=0)
    error = oracle.mean_square(numpy(beamed(test)) - test)
    books = [numpy(quantizer.codebook) for quantizer in greedy.quantizers]
    assert error < 0.95 * beam(test, books, 4)[:, 0].mean() / test.shape[1]


def test_adapt_fits_a_stage_to_the_residuals_of_nearly_best_sums(monkeypatch):
    """These are those of each vector's four best sums whose squared error is at most twice the lowest."""
    x, seen = draw(50, 4), []
    adapt = keras_vqvae.VectorQuantizer.adapt

    def spy(self, vectors, *args, **keywords):
        counts = adapt(self, vectors, *args, **keywords)
        seen.append((np.array(vectors), numpy(self.codebook).copy()))
        return counts

    monkeypatch.setattr(keras_vqvae.VectorQuantizer, "adapt", spy)
    residual(6, size=12).adapt(x, verbose=0)
    (_, codes), (second, _) = seen[:2]
    rests = x[:, None].astype("float64") - codes
    errors = np.sort(np.square(rests).sum(-1), axis=1)[:, :4]
    expected = np.sort(errors[errors <= 2 * errors[:, :1]])
    assert len(x) < len(expected) < 4 * len(x)
    np.testing.assert_allclose(np.sort(np.square(second).sum(-1)), expected, rtol=1e-3, atol=1e-5)


def test_adapt_with_a_beam_counts_each_vector_once():
    x = draw(200, 4)
    layer = residual(4)
    layer.adapt(x, verbose=0)
    indices = numpy(layer.encode(x))
    for stage, quantizer in enumerate(layer.quantizers):
        np.testing.assert_allclose(numpy(quantizer.ema_counts).sum(), 5, rtol=1e-5)
        # The counts are those before the last move of the codes, which was small.
        fractions = numpy(quantizer.ema_counts) / 5
        np.testing.assert_allclose(fractions, np.bincount(indices[:, stage], minlength=5) / 200, atol=0.1)


def test_adapt_with_a_beam_ignores_nonfinite_vectors():
    x = draw(200, 4)
    bad = np.concatenate([x[:50], np.full((3, 4), np.nan, "float32"), x[50:]])
    one, other = residual(4), residual(4)
    one.adapt(x, verbose=0)
    other.adapt(bad, verbose=0)
    for a, b in zip(one.quantizers, other.quantizers, strict=True):
        np.testing.assert_allclose(numpy(a.codebook), numpy(b.codebook), atol=1e-5)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.VectorQuantizer(8, distance="cosine", seed=1), 3),
        lambda: keras_vqvae.SimVectorQuantizer(8, seed=1),
        lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.VectorQuantizer(8, seed=1), 3),
    ],
    ids=["cosine", "sim", "projected"],
)
def test_beam_search_works_with_every_kind_of_codebook(inner):
    keras.utils.set_random_seed(0)
    x = draw(20, 4)
    layer = built(keras_vqvae.ResidualQuantizer(inner(), 2, beam_width=4))
    books = [numpy(quantizer.decode(np.arange(8))) for quantizer in layer.quantizers]
    np.testing.assert_allclose(np.square(numpy(layer(x)) - x).sum(-1), beam(x, books, 4)[:, 0], rtol=1e-4)
    by_inputs, by_weights = layer_gradients(layer, x, np.ones_like(x))
    for gradient in (by_inputs, *by_weights):
        assert np.isfinite(gradient).all()


def test_the_beam_width_is_saved_and_works_in_groups():
    inner = residual(3, quantizer_dropout=0.5, shared_codebook=True)
    layer = built(keras_vqvae.GroupedQuantizer(inner, 2), 8)
    again = keras_vqvae.GroupedQuantizer.from_config(layer.get_config())
    assert again.quantizers[0].beam_width == 3
    again.build((None, 8))
    again.set_weights(layer.get_weights())
    x = draw(2, 5, 8)
    np.testing.assert_array_equal(numpy(again.encode(x)), numpy(layer.encode(x)))
    before = weights(layer)
    layer(np.full_like(x, np.nan), training=True)
    seeds = [path for path in before if "seed" in path]
    assert_same_weights(*({k: v for k, v in w.items() if k not in seeds} for w in (before, weights(layer))))


@pytest.mark.parametrize("width", [0, -1, 1.5, True, "2"])
def test_beam_widths_that_are_not_positive_integers_are_refused(width):
    with pytest.raises(ValueError, match="beam_width.*Received"):
        residual(width)


@pytest.mark.parametrize(
    "inner",
    [
        keras_vqvae.FiniteScalarQuantizer((5, 4)),
        keras_vqvae.LookupFreeQuantizer(4),
        keras_vqvae.GumbelQuantizer(8),
        keras_vqvae.IndexBackpropagationQuantizer(8),
        keras_vqvae.GroupedQuantizer(keras_vqvae.VectorQuantizer(8), 2),
        keras_vqvae.ProjectedQuantizer(keras_vqvae.FiniteScalarQuantizer((5, 4)), 2),
        keras_vqvae.VectorQuantizer(8, distance="direction", name="direction"),
        keras_vqvae.ProjectedQuantizer(keras_vqvae.VectorQuantizer(8, distance="direction"), 2, name="projected"),
    ],
    ids=lambda inner: inner.name,
)
def test_quantizers_without_beam_search_are_refused(inner):
    with pytest.raises(ValueError, match="beam_width.*distance.*Received"):
        keras_vqvae.ResidualQuantizer(inner, 2, beam_width=2)
