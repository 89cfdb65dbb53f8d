import keras
import numpy as np
import oracle
import pytest
from gradients import gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

import keras_vqvae
from keras_vqvae.ops import losses


@pytest.fixture
def batch(rng):
    """Returns encoder outputs, a codebook, a target, and a reconstruction that is linear in the codes."""
    return rng.normal(size=(6, 4)).astype("float32"), rng.normal(size=(5, 4)).astype("float32")


def test_values_are_means_over_all_elements(batch):
    z_e, codebook = batch
    z_q = codebook[oracle.nearest_code(z_e, codebook)]
    expected = oracle.mean_square(z_e - z_q)
    np.testing.assert_allclose(keras_vqvae.codebook_loss(z_e, z_q), expected, rtol=1e-6)
    np.testing.assert_allclose(keras_vqvae.commitment_loss(z_e, z_q), expected, rtol=1e-6)
    reconstruction, target = z_e[:, :2] * 2, z_q[:, :2]
    for weight in (0.0, 0.25, 3.0):
        np.testing.assert_allclose(
            keras_vqvae.loss(reconstruction, target, z_e, z_q, commitment_weight=weight),
            oracle.mean_square(reconstruction - target) + (1 + weight) * expected,
            rtol=1e-6,
        )


def test_gradients_of_the_functional_recipe_match_the_paper(batch):
    z_e, codebook = batch
    indices = oracle.nearest_code(z_e, codebook)
    codes = codebook[indices]
    target = np.zeros_like(z_e)

    def recipe(z_e, codebook):
        z_q, indices = keras_vqvae.quantize(z_e, codebook)
        return keras_vqvae.loss(z_q, target, z_e, keras_vqvae.lookup(codebook, indices))

    by_encoder, by_codebook = gradients(recipe, z_e, codebook)
    scale = 2 / z_e.size
    np.testing.assert_allclose(by_encoder, scale * (codes - target + 0.25 * (z_e - codes)), atol=1e-6)
    np.testing.assert_allclose(by_codebook, scale * oracle.one_hot(indices, 5).T @ (codes - z_e), atol=1e-6)


def test_trap_straight_through_codes_in_the_losses_reverse_the_encoders_gradient(batch):
    """As the docstring of `loss` warns, the codebook learns nothing and the encoder is pushed away."""
    z_e, codebook = batch
    codes = codebook[oracle.nearest_code(z_e, codebook)]

    def mistaken(z_e, codebook):
        z_q, _ = keras_vqvae.quantize(z_e, codebook)
        return keras_vqvae.codebook_loss(z_e, z_q) + 0.25 * keras_vqvae.commitment_loss(z_e, z_q)

    by_encoder, by_codebook = gradients(mistaken, z_e, codebook)
    np.testing.assert_array_equal(by_codebook, 0)
    np.testing.assert_allclose(by_encoder, -0.75 * (2 / z_e.size) * (z_e - codes), atol=1e-6)


@given(
    hnp.arrays("float32", (7, 3), elements=st.floats(-10, 10, width=32)),
    hnp.arrays("bool", 7),
    st.sampled_from([losses.codebook_loss, losses.commitment_loss]),
)
def test_masked_losses_equal_those_of_the_valid_positions(z_e, mask, loss):
    z_q = z_e[::-1] + 1
    np.testing.assert_allclose(loss(z_e, z_q, mask), oracle.mean_square(z_e - z_q, mask), rtol=1e-5, atol=1e-6)


def test_masked_nan_reaches_neither_value_nor_gradient():
    z_e = np.array([[1.0, 2.0], [np.nan, np.inf]], "float32")
    mask = np.array([True, False])
    z_q = np.zeros_like(z_e)
    assert np.isclose(losses.commitment_loss(z_e, z_q, mask), 2.5)
    (by_encoder,) = gradients(lambda z: losses.commitment_loss(z, z_q, ops.convert_to_tensor(mask)), z_e)
    np.testing.assert_allclose(by_encoder, [[1, 2], [0, 0]])


def test_half_precision_is_summed_in_float32():
    value = losses.commitment_loss(np.full((2, 64), 300, "float16"), np.zeros((2, 64), "float16"))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == 90_000


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "0.25", None, True])
def test_wrong_weights_are_named_in_errors(weight):
    with pytest.raises(ValueError, match="commitment_weight.*Received: commitment_weight="):
        keras_vqvae.loss(*np.zeros((4, 2, 2)), commitment_weight=weight)
