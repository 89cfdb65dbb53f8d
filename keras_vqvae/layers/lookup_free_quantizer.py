"""Lookup-free quantization: the code is the signs of the vector."""

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.binary_quantizer import BinaryQuantizer
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class LookupFreeQuantizer(BinaryQuantizer):
    """Keeps the sign of each axis: LFQ, codes of -1 and 1.

    An entropy loss, `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))` of soft assignments `p` to all `2^D`
    codes, keeps the codes in use. Both entropies are exact, in memory of `N 2^(D / 2) + 2^D` numbers. The first axis
    is the most significant bit of the index.

    It is made for vast codebooks, of 2^14 codes and more: at 2^10, after 2,400 steps on Fashion-MNIST, its error was
    twice that of `VectorQuantizer`.

    Args:
        num_bits: Number of bits, `D`, from 1 to 30: 2^D codes. The input's last axis has as many elements.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.
        entropy_weight: Weight of the entropy loss, at least 0. Defaults to `0.1`.
        diversity_weight: Weight of the entropy of the mean beside the mean entropy, at least 0. Defaults to `1.0`.
        temperature: Temperature of the soft assignments, above 0. Defaults to `0.01`.
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

    def mean_entropy(self, log_p: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        # Given a vector its bits are independent: the assignments are an outer product of those of the first bits and
        # of the others, and their mean is a product of matrices.
        strings = backend.array(_strings, (self.num_bits,), log_p)
        p = ops.exp(backend.matmul(log_p, strings))
        half = 2 ** (self.num_bits // 2)
        first, last = p[:, :half], shares * p[:, half:]
        mean = backend.mean_over_replicas(backend.matmul(ops.transpose(first), last))
        log_mean = ops.log(backend.at_least(mean, 1e-30))
        by_first = backend.matmul(last, ops.transpose(log_mean))
        by_last = shares * backend.matmul(first, log_mean)
        by_p = ops.concatenate([by_first, by_last], axis=-1)
        return ops.sum(mean * log_mean), backend.matmul(p * by_p, ops.transpose(strings))


def _strings(num_bits: int) -> np.ndarray:
    """Which ones and which zeros each string of the first bits has, and then each of the others: `[2 D, strings]`."""
    half = num_bits // 2
    strings = np.zeros((2, num_bits, 2**half + 2 ** (num_bits - half)), "float32")
    for own in (strings[:, :half, : 2**half], strings[:, half:, 2**half :]):
        ones = np.arange(own.shape[2]) // 2 ** np.arange(own.shape[1])[:, None] % 2
        own[:] = ones, 1 - ones
    return strings.reshape(2 * num_bits, -1)
