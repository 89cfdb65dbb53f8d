"""A weight constraint for discriminators."""

import keras
from keras import ops

from keras_vqvae.types import Tensor

SQUARINGS = 6
"""The bound is at most `n ** (1 / 256)` times the largest singular value, for the smaller side `n`: 1.025 for 512."""
TINY = 1e-30
"""Lower bound of norms, so that a kernel of zeros is not divided by 0."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class SpectralNorm(keras.constraints.Constraint):
    """Scales a kernel so that its largest singular value is 1, which limits the slope of a discriminator.

    The kernel is treated as a matrix whose columns are the output channels. Like every Keras constraint, it is applied
    after each update of the optimizer. With the initializer `"orthogonal"`, the kernel has norm 1 from the start.

    Unlike with `keras.layers.SpectralNormalization`, the kernel does not change within a call. So all calls of a
    training step use the same kernel, and there is no state to save.

    The singular value is replaced by an upper bound, from Gram iteration: a root of the Frobenius norm of a power of
    the Gram matrix. The norm of the result is at most 1, and at least 0.97 for up to 1,024 channels.

    Example:

    >>> layer = keras.layers.Dense(8, kernel_initializer="orthogonal", kernel_constraint=SpectralNorm())
    >>> kernel = SpectralNorm()(10 * np.eye(4, dtype="float32"))
    >>> bool(0.97 < kernel[0, 0] <= 1)
    True

    References:

    - [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), spectral normalization
    - [Gouk et al., 2018](https://arxiv.org/abs/1804.04368), the norm as a constraint
    - [Delattre et al., 2023](https://arxiv.org/abs/2305.16173), Gram iteration
    """

    def __call__(self, w: Tensor) -> Tensor:
        """Returns `w` divided by an upper bound of its largest singular value. Zeros remain zeros."""
        w = ops.convert_to_tensor(w)
        return ops.cast(ops.cast(w, "float32") / spectral_norm(w), w.dtype)


def spectral_norm(kernel: Tensor) -> Tensor:
    """Returns an upper bound, above 0, of the largest singular value of a kernel `[..., outputs]`."""
    matrix = ops.reshape(ops.cast(kernel, "float32"), (-1, kernel.shape[-1]))
    # Divided by the largest element, so that squares do not overflow.
    largest = ops.maximum(ops.max(ops.abs(matrix)), TINY)
    matrix = matrix / largest
    rows, columns = matrix.shape
    gram = ops.matmul(matrix, ops.transpose(matrix)) if rows < columns else ops.matmul(ops.transpose(matrix), matrix)
    # After step i, `exp(log_scale) * gram` is the first Gram matrix to the power of `2^i`. Without the normalization to
    # norm 1, it would overflow.
    log_scale = ops.zeros((), "float32")
    for _ in range(SQUARINGS):
        norm = _norm(gram)
        gram = gram / norm
        gram = ops.matmul(gram, gram)
        log_scale = 2 * (log_scale + ops.log(norm))
    root = ops.exp((log_scale + ops.log(_norm(gram))) / 2 ** (SQUARINGS + 1))
    return ops.maximum(largest * root, TINY)


def _norm(matrix: Tensor) -> Tensor:
    return ops.maximum(ops.sqrt(ops.sum(ops.square(matrix))), TINY)
