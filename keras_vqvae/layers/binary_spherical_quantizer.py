"""Binary spherical quantization: the signs of a vector of length 1."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import backend, geometry
from keras_vqvae.arguments import Tensor
from keras_vqvae.layers.binary_quantizer import BinaryQuantizer


@keras.saving.register_keras_serializable(package="keras_vqvae")
class BinarySphericalQuantizer(BinaryQuantizer):
    """Scales vectors to length 1 and keeps the sign of each axis: BSQ, codes of `+-1 / sqrt(D)`.

    An entropy loss, `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))`, keeps the bits in use. The entropy
    of the mean is taken bit by bit, an upper bound of that over all codes, so memory is `O(N D)`. The first axis is
    the most significant bit of the index.

    Args:
        num_bits: Number of bits, `D`, from 1 to 30: 2^D codes. The input's last axis has as many elements.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.
        entropy_weight: Weight of the entropy loss, at least 0. Defaults to `0.1`.
        diversity_weight: Weight of the entropy of the mean beside the mean entropy, at least 0. Defaults to `1.0`.
        inverse_temperature: Of the assignments, above 0. Defaults to `100.0`.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., num_bits]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., num_bits]`; the indices are int32 `[...]`.

    Raises:
        ValueError: If an argument is out of its range, or the input's last axis is not `num_bits`.

    Example:

    >>> layer = BinarySphericalQuantizer(num_bits=4)
    >>> quantized, indices = layer(np.array([[0.2, -3.0, 1.0, 2.0]], "float32"), return_indices=True)
    >>> keras.ops.convert_to_numpy(quantized).tolist(), int(indices[0])
    ([[0.5, -0.5, 0.5, 0.5]], 11)

    Reference:

    - [Zhao et al., 2024](https://arxiv.org/abs/2406.07548)
    """

    def __init__(
        self,
        num_bits: int,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        inverse_temperature: float = 100.0,
        **kwargs: Any,
    ):
        super().__init__(num_bits, commitment_weight, entropy_weight, diversity_weight, inverse_temperature, **kwargs)
        self._size = self.num_bits**-0.5

    def bound(self, vectors: Tensor) -> Tensor:
        return geometry.unit(vectors)[0]

    def mean_entropy(self, log_odds: Tensor, shares: Tensor) -> Tensor:
        ones, zeros = (ops.sum(shares * ops.sigmoid(sign * log_odds), axis=0) for sign in (1.0, -1.0))
        return -sum(ops.sum(p * ops.log(ops.maximum(p, 1e-30))) for p in map(backend.mean_over_replicas, (ones, zeros)))
