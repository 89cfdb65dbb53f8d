"""A constraint for discriminators."""

import keras
from keras import ops

from keras_vqvae.types import Tensor

SQUARINGS = 6
"""The largest singular value is found to within a factor of `n ** (1 / 256)` for `n` rows: 2.5% for 512."""
TINY = 1e-30
"""In place of the norm of zeros."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class SpectralNorm(keras.constraints.Constraint):
    """Scales a kernel so that its largest singular value is 1, which keeps a discriminator from growing steep.

    The kernel is taken as a matrix whose columns are the output channels. It is scaled after each update of the
    optimizer, as by every Keras constraint; with the initializer `"orthogonal"` it begins at norm 1.

    Unlike with `keras.layers.SpectralNormalization`, the kernel does not change within a call. So it is the same for
    all calls of a step, and the gradient is that of the kernel in use, on every backend. There is no state to save.

    The largest singular value is an upper bound by Gram iteration: the `2^k`-th root of the Frobenius norm of a product
    of the matrix with itself. The norm of the result is at most 1, and at least 0.97 for up to 1,024 channels.

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
        """`w` over its largest singular value. Zeros stay zeros."""
        w = ops.convert_to_tensor(w)
        return ops.cast(ops.cast(w, "float32") / spectral_norm(w), w.dtype)


def spectral_norm(kernel: Tensor) -> Tensor:
    """An upper bound of the largest singular value of a kernel `[..., outputs]`; above 0 for zeros, too."""
    matrix = ops.reshape(ops.cast(kernel, "float32"), (-1, kernel.shape[-1]))
    # Squares of large numbers overflow.
    largest = ops.maximum(ops.max(ops.abs(matrix)), TINY)
    matrix = matrix / largest
    rows, columns = matrix.shape
    gram = ops.matmul(matrix, ops.transpose(matrix)) if rows < columns else ops.matmul(ops.transpose(matrix), matrix)
    # `gram = exp(log_scale) * G^(2^i)` of the first one, `G`, which is scaled to norm 1 lest powers of it overflow.
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
