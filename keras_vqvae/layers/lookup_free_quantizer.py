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

    def mean_entropy(self, log_odds: Tensor, shares: Tensor) -> Tensor:
        # Given a vector its bits are independent: the assignments are an outer product of those of the first bits and
        # of the others, and their mean is a product of matrices.
        half = self.num_bits // 2
        first, last = _assignments(log_odds[:, :half]), _assignments(log_odds[:, half:])
        mean = backend.mean_over_replicas(backend.matmul(ops.transpose(first), shares * last))
        return -ops.sum(mean * ops.log(ops.maximum(mean, 1e-30)))


def _assignments(log_odds: Tensor) -> Tensor:
    """The probability of each string of bits: `[N, b]` -> `[N, 2^b]`."""
    bits = log_odds.shape[-1]
    ones = (np.arange(2**bits) // 2 ** np.arange(bits)[:, None] % 2).astype("float32")
    log_ones, log_zeros = ops.log_sigmoid(log_odds), ops.log_sigmoid(-log_odds)
    return ops.exp(backend.matmul(log_ones, ones) + backend.matmul(log_zeros, 1 - ones))
