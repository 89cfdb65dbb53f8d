import numpy as np
import oracle
import pytest
from gradients import gradients
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_vqvae
from keras_vqvae.backend import backend
from keras_vqvae.ops import codebook

pytestmark = pytest.mark.each_backend


def test_quantize_returns_the_codes_with_a_straight_through_gradient(rng):
    z_e = rng.normal(size=(2, 3, 4)).astype("float32")
    codes = rng.normal(size=(7, 4)).astype("float32")
    cotangent = ops.convert_to_tensor(rng.normal(size=z_e.shape), dtype="float32")
    z_q, indices = keras_vqvae.quantize(z_e, codes)
    np.testing.assert_array_equal(ops.convert_to_numpy(z_q), codes[oracle.nearest_code(z_e, codes)])
    np.testing.assert_array_equal(ops.convert_to_numpy(indices), oracle.nearest_code(z_e, codes))
    by_encoder, by_codebook = gradients(
        lambda z_e, codes: ops.sum(keras_vqvae.quantize(z_e, codes)[0] * cotangent), z_e, codes
    )
    np.testing.assert_array_equal(by_encoder, ops.convert_to_numpy(cotangent))
    np.testing.assert_array_equal(by_codebook, 0)


def test_lookup_passes_gradients_to_the_codebook(rng):
    codes = rng.normal(size=(7, 4)).astype("float32")
    indices = np.array([[0, 3, 3], [6, 0, 3]])
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_vqvae.lookup(codes, indices)), codes[indices])
    cotangent = rng.normal(size=(2, 3, 4)).astype("float32")
    (gradient,) = gradients(
        lambda codes: ops.sum(keras_vqvae.lookup(codes, indices) * ops.convert_to_tensor(cotangent)), codes
    )
    np.testing.assert_allclose(gradient, oracle.one_hot(indices, 7).T @ cotangent.reshape(6, 4), rtol=1e-5)


@pytest.mark.parametrize("indices", [[-1], [0, 5], [[1], [2**31 - 1]], [0.0], [True]])
def test_lookup_outside_the_codebook_is_an_error(indices):
    with pytest.raises(ValueError, match=r"indices.*Received: indices"):
        keras_vqvae.lookup(np.zeros((5, 2), "float32"), np.array(indices))


def test_init_codebook_is_standard_normal_and_reproducible():
    first = ops.convert_to_numpy(keras_vqvae.init_codebook(512, 64))
    np.testing.assert_array_equal(first, ops.convert_to_numpy(keras_vqvae.init_codebook(512, 64, seed=42)))
    assert (first != ops.convert_to_numpy(keras_vqvae.init_codebook(512, 64, seed=1))).all()
    # The tolerance is five standard errors of the mean and of the variance of 32768 draws.
    assert abs(first.mean()) < 5 / 181
    assert abs(first.var() - 1) < 5 * 2**0.5 / 181


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", None, True])
def test_sizes_that_are_not_positive_integers_are_named_in_errors(size):
    with pytest.raises(ValueError, match="num_embeddings.*Received: num_embeddings="):
        keras_vqvae.init_codebook(size, 4)
    with pytest.raises(ValueError, match="embedding_dim.*Received: embedding_dim="):
        keras_vqvae.init_codebook(4, size)


@given(num_embeddings=st.integers(1, 6), rows=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_counts_and_sums_equal_those_of_one_hot_codes(num_embeddings, rows, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, 3)).astype("float32")
    indices = rng.integers(num_embeddings, size=rows).astype("int32")
    valid = rng.random(rows) < 0.7
    vectors[~valid] = np.nan
    chosen = oracle.one_hot(indices, num_embeddings)[valid]
    expected = chosen.T @ vectors[valid]
    vectors, indices, valid = (ops.convert_to_tensor(array) for array in (vectors, indices, valid))
    counts = codebook.count_codes(indices, valid, num_embeddings)
    sums = backend.segment_sum(backend.masked(vectors, valid), indices, num_embeddings)
    np.testing.assert_array_equal(ops.convert_to_numpy(counts), chosen.sum(0))
    np.testing.assert_allclose(ops.convert_to_numpy(sums), expected, atol=1e-5)
