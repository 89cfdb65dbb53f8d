import keras
import numpy as np
import pytest
from gradients import gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

import keras_vqvae
from keras_vqvae.ops import estimators


@given(
    hnp.arrays("float32", (3, 2), elements=st.floats(-1e6, 1e6, width=32)),
    hnp.arrays("float32", (3, 2), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_straight_through_returns_exactly_the_codes(z_e, z_q):
    """The usual formula `z_e + (z_q - z_e)` has a rounding error."""
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_vqvae.straight_through(z_e, z_q)), z_q)


def test_straight_through_has_the_gradient_of_the_identity(rng):
    z_e, z_q, cotangent = rng.normal(size=(3, 5, 2)).astype("float32")
    by_encoder, by_codes = gradients(
        lambda z_e, z_q: ops.sum(keras_vqvae.straight_through(z_e, z_q) * ops.convert_to_tensor(cotangent)), z_e, z_q
    )
    np.testing.assert_array_equal(by_encoder, cotangent)
    np.testing.assert_array_equal(by_codes, 0)


def rotation_matrix(z, q):
    """Computes each vector's scaled rotation to its code, as in the paper: `|q| / |z| (I - 2 w w' + 2 c u')`."""
    matrices = []
    for z_n, q_n in zip(np.asarray(z, "float64"), np.asarray(q, "float64"), strict=True):
        u, c = z_n / np.linalg.norm(z_n), q_n / np.linalg.norm(q_n)
        w = (u + c) / np.linalg.norm(u + c)
        scale = np.linalg.norm(q_n) / np.linalg.norm(z_n)
        matrices.append(scale * (np.eye(len(u)) - 2 * np.outer(w, w) + 2 * np.outer(c, u)))
    return np.stack(matrices)


def cotangent_gradients(estimator, z_e, z_q, cotangent):
    return gradients(lambda z, q: ops.sum(estimator(z, q) * ops.convert_to_tensor(cotangent)), z_e, z_q)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_rotation_matches_the_closed_form(rng, scale):
    z_e, z_q, cotangent = rng.normal(size=(3, 6, 4)).astype("float32")
    z_q = z_q * np.float32(scale)
    z_e = z_e * np.float32(scale)
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_vqvae.rotation(z_e, z_q)), z_q)
    by_encoder, by_codes = cotangent_gradients(keras_vqvae.rotation, z_e, z_q, cotangent)
    matrices = rotation_matrix(z_e, z_q)
    # The matrix rotates each vector onto its code.
    np.testing.assert_allclose(np.einsum("nij,nj->ni", matrices, z_e.astype("float64")), z_q, rtol=1e-4)
    np.testing.assert_allclose(by_encoder, np.einsum("ni,nij->nj", cotangent, matrices), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(by_codes, 0)


@pytest.mark.parametrize("corner", ["zero vector", "zero code", "opposite code"])
def test_rotation_copies_the_gradient_if_there_is_no_rotation(rng, corner):
    z_e, z_q, cotangent = rng.normal(size=(3, 6, 4)).astype("float32")
    if corner == "zero vector":
        z_e[:] = 0
    elif corner == "zero code":
        z_q[:] = 0
    else:
        z_q = -3 * z_e
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_vqvae.rotation(z_e, z_q)), z_q)
    by_encoder, _ = cotangent_gradients(keras_vqvae.rotation, z_e, z_q, cotangent)
    np.testing.assert_allclose(by_encoder, cotangent, rtol=1e-6)


def test_rotation_of_a_vector_that_equals_its_code_copies_the_gradient(rng):
    z_e, cotangent = rng.normal(size=(2, 6, 4)).astype("float32")
    by_encoder, _ = cotangent_gradients(keras_vqvae.rotation, z_e, z_e, cotangent)
    np.testing.assert_allclose(by_encoder, cotangent, atol=1e-5)


def test_diveq_without_noise_returns_the_codes_with_the_gradient_of_the_distance(rng):
    z_e, z_q, cotangent = rng.normal(size=(3, 6, 4)).astype("float32")

    def estimator(z, q):
        return keras_vqvae.diveq(z, q, seed=1, stddev=0.0)

    np.testing.assert_allclose(ops.convert_to_numpy(estimator(z_e, z_q)), z_q, atol=1e-6)
    by_encoder, by_codes = cotangent_gradients(estimator, z_e, z_q, cotangent)
    direction = (z_q - z_e) / np.linalg.norm(z_q - z_e, axis=-1, keepdims=True)
    along = np.sum(cotangent * direction, -1, keepdims=True) * direction
    np.testing.assert_allclose(by_encoder, cotangent - along, atol=1e-5)
    np.testing.assert_allclose(by_codes, along, atol=1e-5)


@pytest.mark.parametrize("estimator", [keras_vqvae.diveq, keras_vqvae.nsvq])
def test_noise_keeps_the_distance_and_is_reproducible(rng, estimator):
    z_e, z_q = rng.normal(size=(2, 6, 4)).astype("float32")
    moved = ops.convert_to_numpy(estimator(z_e, z_q, seed=5))
    np.testing.assert_allclose(np.linalg.norm(moved - z_e, axis=-1), np.linalg.norm(z_q - z_e, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(ops.convert_to_numpy(estimator(z_e, z_q, seed=5)), moved)
    assert (ops.convert_to_numpy(estimator(z_e, z_q, seed=6)) != moved).any()


@pytest.mark.parametrize("estimator", [keras_vqvae.diveq, keras_vqvae.nsvq])
def test_noise_has_the_gradient_of_the_distance(rng, estimator):
    """The formula is `z + |q - z| n`. The direction `n` is random but constant for gradients."""
    z_e, z_q, cotangent = rng.normal(size=(3, 6, 4)).astype("float32")
    by_encoder, by_codes = cotangent_gradients(lambda z, q: estimator(z, q, seed=3), z_e, z_q, cotangent)
    moved = ops.convert_to_numpy(estimator(z_e, z_q, seed=3))
    distance = np.linalg.norm(z_q - z_e, axis=-1, keepdims=True)
    expected = np.sum(cotangent * (moved - z_e) / distance, -1, keepdims=True) * (z_q - z_e) / distance
    np.testing.assert_allclose(by_codes, expected, atol=1e-5)
    np.testing.assert_allclose(by_encoder, cotangent - expected, atol=1e-5)


@pytest.mark.parametrize("estimator", [keras_vqvae.diveq, keras_vqvae.nsvq])
def test_noise_does_not_move_a_vector_that_equals_its_code(rng, estimator):
    z_e, cotangent = rng.normal(size=(2, 6, 4)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(estimator(z_e, z_e, seed=3)), z_e)
    by_encoder, by_codes = cotangent_gradients(lambda z, q: estimator(z, q, seed=3), z_e, z_e, cotangent)
    np.testing.assert_allclose(by_encoder, cotangent, rtol=1e-6)
    np.testing.assert_array_equal(by_codes, 0)


@pytest.mark.parametrize("name", ["straight_through", "rotation", "diveq", "nsvq"])
def test_float16_neither_overflows_nor_changes_the_dtype(name):
    z_e = np.full((3, 64), 100, "float16")
    z_q = np.full((3, 64), 90, "float16")
    moved = estimators.apply(estimators.get(name), z_e, z_q, seed=1, training=True)
    assert keras.backend.standardize_dtype(moved.dtype) == "float16"
    moved = ops.convert_to_numpy(ops.cast(moved, "float32"))
    distance = np.linalg.norm(moved - 100, axis=-1)
    np.testing.assert_allclose(distance, 80, rtol=2e-3)
    # In inference all estimators return the codes.
    kept = estimators.apply(estimators.get(name), z_e, z_q, seed=1, training=False)
    np.testing.assert_array_equal(ops.convert_to_numpy(kept), z_q)


@pytest.mark.parametrize("stddev", [-1, float("nan"), "0.1"])
def test_diveq_refuses_an_invalid_stddev(stddev):
    with pytest.raises(ValueError, match=f"`stddev` must be .* Received: stddev={stddev!r}"):
        keras_vqvae.diveq(np.zeros((1, 2)), np.ones((1, 2)), seed=0, stddev=stddev)


def test_estimators_are_given_by_name_or_as_functions():
    for name in ("straight_through", "rotation", "diveq", "nsvq"):
        assert estimators.get(name) is getattr(keras_vqvae, name)
        assert estimators.serialize(getattr(keras_vqvae, name)) == name
    assert estimators.get(np.add) is np.add
    with pytest.raises(ValueError, match="one of .'diveq'.*Received: estimator='nonsense'"):
        estimators.get("nonsense")
