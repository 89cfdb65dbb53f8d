"""Lookup-free quantization: the code is the signs of the vector."""

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.binary_quantizer import BinaryQuantizer
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class LookupFreeQuantizer(BinaryQuantizer):
    """Keeps the sign of each axis (LFQ). The elements of codes are -1 and 1.

    An entropy loss keeps the codes in use: `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))`. Here `p` are soft
    assignments to all `2^D` codes. Both entropies are exact, and take memory for `N 2^(D / 2) + 2^D` numbers. The first
    axis is the most significant bit of the index.

    LFQ was designed for large codebooks. `VectorQuantizer` had a lower error with 1,024 and with 16,384 codes: see
    `docs/studies/quantizers.md` and `docs/studies/large-codebooks.md`.

    Args:
        num_bits: Number of bits, `D`, from 1 to 30. There are 2^D codes. The input's last axis has `D` elements.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.
        entropy_weight: Weight of the entropy loss, at least 0. Defaults to `0.1`.
        diversity_weight: Weight of `H(E[p])` relative to `E[H(p)]`, at least 0. Defaults to `1.0`.
        temperature: Temperature of the soft assignments `p`, above 0. Defaults to `0.01`.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., num_bits]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., num_bits]`; the indices are int32 `[...]`.

    Raises:
        ValueError: If an argument is out of its range, or the input's last axis is not `num_bits`.

    Example:

    >>> layer = LookupFreeQuantizer(num_bits=3)
    >>> quantized, indices = layer(np.array([[0.2, -3.0, 1.0]], "float32"), return_indices=True)
    >>> keras.ops.convert_to_numpy(quantized).tolist(), int(indices[0])
    ([[1.0, -1.0, 1.0]], 5)

    Reference:

    - [Yu et al., 2024](https://arxiv.org/abs/2310.05737), section 3.1
    """

    def mean_entropy(self, log_p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        # The bits of a vector are independent. Its assignments are therefore the outer product of two vectors of
        # assignments, for the first and the second half of the bits, and their mean is a product of two matrices.
        strings = backend.array(_strings, (self.num_bits,), log_p)
        p = ops.exp(backend.matmul(log_p, strings))
        half = 2 ** (self.num_bits // 2)
        first, last = p[:, :half], weights * p[:, half:]
        mean = backend.mean_over_replicas(backend.matmul(ops.transpose(first), last))
        log_mean = ops.log(backend.at_least(mean, 1e-30))
        by_first = backend.matmul(last, ops.transpose(log_mean))
        by_last = weights * backend.matmul(first, log_mean)
        by_p = ops.concatenate([by_first, by_last], axis=-1)
        return ops.sum(mean * log_mean), backend.matmul(p * by_p, ops.transpose(strings))


def _strings(num_bits: int) -> np.ndarray:
    """Returns all strings of the first half of the bits, then all strings of the second half, as columns `[2 D, n]`.

    A column has a 1 in row `i` if bit `i` of the string is 1, and a 1 in row `D + i` if it is 0. Other entries are 0.
    """
    half = num_bits // 2
    strings = np.zeros((2, num_bits, 2**half + 2 ** (num_bits - half)), "float32")
    for own in (strings[:, :half, : 2**half], strings[:, half:, 2**half :]):
        ones = np.arange(own.shape[2]) // 2 ** np.arange(own.shape[1])[:, None] % 2
        own[:] = ones, 1 - ones
    return strings.reshape(2 * num_bits, -1)
