import keras
import numpy as np
import pytest
from helpers import compiled, draw, numpy
from keras import layers

import keras_vqvae

SHAPES = [(3, 5), (5, 3), (4, 4, 6, 16), (3, 1), (1, 3), (2, 2, 2, 3, 4)]


def norm(kernel):
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]).astype("float64"), compute_uv=False)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_largest_singular_value_becomes_1(shape, scale):
    kernel = scale * draw(*shape)
    found = numpy(keras_vqvae.SpectralNorm()(kernel))
    # In the worst case all singular values are equal, and the estimated norm is too large by this factor.
    n = min(np.prod(shape[:-1]), shape[-1])
    assert n ** (-1 / 256) - 1e-4 < norm(found) < 1 + 1e-4
    np.testing.assert_allclose(found / norm(found), kernel / norm(kernel), rtol=1e-4, atol=1e-7)


def test_equal_singular_values_are_the_worst_case_and_zeros_stay():
    found = keras_vqvae.SpectralNorm()(np.eye(64, dtype="float32"))
    np.testing.assert_allclose(norm(numpy(found)), 64 ** (-1 / 256), rtol=1e-4)
    np.testing.assert_array_equal(numpy(keras_vqvae.SpectralNorm()(np.zeros((3, 4), "float32"))), 0)
    half = keras_vqvae.SpectralNorm()(draw(3, 4, dtype="float16"))
    assert keras.backend.standardize_dtype(half.dtype) == "float16"


@pytest.mark.each_backend
def test_fit_keeps_kernels_at_norm_1_and_equal_in_all_calls(tmp_path):
    """On JAX, `keras.layers.SpectralNormalization` fails to do so, because its change of the kernel is lost."""
    inputs = keras.Input((6,))
    constraint = keras_vqvae.SpectralNorm()
    x = layers.Dense(4, use_bias=False, kernel_initializer="orthogonal", kernel_constraint=constraint)
    model = compiled(keras.Model(inputs, x(inputs)), keras.optimizers.SGD(0.5), "mse")
    data, y, kernel = draw(8, 6), draw(8, 4, seed=1), numpy(x.kernel)
    np.testing.assert_allclose(norm(kernel), 1, rtol=1e-4)
    for _ in range(2):
        model.train_on_batch(data, y)
        # A step of gradient descent, then the normalization.
        kernel = kernel - 0.5 * data.T @ (data @ kernel - y) * 2 / y.size
        kernel = kernel / norm(kernel)
        np.testing.assert_allclose(numpy(x.kernel), kernel, atol=0.005)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[-1].kernel_constraint, keras_vqvae.SpectralNorm)
