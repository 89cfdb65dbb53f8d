"""Regression tests for errors that `fuzz.py` found, with extreme inputs and arguments."""

import numpy as np
import pytest
from gradients import gradients, layer_gradients
from helpers import built, draw, numpy
from keras import ops
from quantizers import DIM, EVERY, SHAPE

import keras_vqvae
from keras_vqvae.ops import entropy, geometry


@pytest.mark.each_backend
@pytest.mark.parametrize("name", EVERY)
def test_nonfinite_vectors_get_an_index_within_the_codebook(name):
    layer = EVERY[name]()
    layer.build((None, *SHAPE))
    x = draw(4, *SHAPE)
    x[0, 0, 0], x[1], x[2, 1, 1], x[3] = np.nan, np.nan, np.inf, -3e38
    indices = numpy(layer.encode(x))
    assert ((indices >= 0) & (indices < layer.num_embeddings)).all()
    layer.decode(indices)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 3, DIM)])
def test_a_mask_of_another_shape_is_an_error(shape):
    layer = built(EVERY["ema"](), DIM)
    with pytest.raises(ValueError, match="mask.*Received: mask of shape"):
        layer(draw(2, 3, DIM), mask=ops.ones(shape, "bool"))


@pytest.mark.parametrize("wrong", [object(), None])
def test_indices_that_are_not_an_array_are_errors(wrong):
    with pytest.raises(ValueError, match="indices.*Received: indices"):
        built(EVERY["ema"](), DIM).decode(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda wrong: keras_vqvae.ResidualQuantizer(EVERY["ema"](), 2, shared_codebook=wrong),
        lambda wrong: keras_vqvae.FiniteScalarQuantizer((4, 4), symmetric=wrong),
    ],
    ids=["shared_codebook", "symmetric"],
)
def test_flags_other_than_true_and_false_are_refused(make):
    with pytest.raises(ValueError, match="must be True or False. Received: "):
        make(np.array([1, 2]))


@pytest.mark.parametrize("name", ["ibq", "gumbel", "projected"])
def test_an_overflowing_vector_spoils_neither_losses_nor_gradients(name):
    layer = built(EVERY[name](), DIM)
    x = draw(6, DIM)
    x[2] = 3e38
    layer(x, training=True)
    assert np.isfinite([numpy(loss) for loss in layer.losses]).all()
    _, by_weights = layer_gradients(layer, x, np.ones_like(x))
    for gradient in by_weights:
        assert np.isfinite(gradient).all()


def test_rotation_of_tiny_vectors_returns_their_codes():
    z, q = np.full((3, 4), 1e-37, "float32"), draw(3, 4)
    np.testing.assert_array_equal(numpy(keras_vqvae.rotation(z, 100 * q)), 100 * q)


@pytest.mark.each_backend
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18, 1e30])
def test_directions_and_their_gradients_are_right_at_any_scale(size):
    x = draw(5, 4)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    unit, norm = geometry.normalize_with_norm(ops.convert_to_tensor(x * np.float32(size)))
    np.testing.assert_allclose(numpy(unit), expected, rtol=1e-5)
    np.testing.assert_allclose(numpy(norm)[:, 0] / size, np.linalg.norm(x, axis=-1), rtol=1e-5)
    # The gradient is `(I - u u') / |x|`, times 1.
    (found,) = gradients(lambda x: ops.sum(geometry.normalize_with_norm(x)[0]), x * np.float32(size))
    gradient = (1 - expected * expected.sum(-1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(found * size, gradient, rtol=1e-3, atol=1e-5)


def test_entropies_of_large_one_dimensional_vectors_are_finite():
    x = ops.convert_to_tensor(1e18 * draw(9, 1), "float32")
    loss = entropy.entropy_loss(x, np.array([[0.3], [-0.7]], "float32"), ops.ones((9,), "bool"), 1.0, 100.0)
    assert np.isfinite(numpy(loss))
