"""Binary spherical quantization: the signs of a vector of unit norm."""

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.binary_quantizer import BinaryQuantizer
from keras_vqvae.ops import geometry
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class BinarySphericalQuantizer(BinaryQuantizer):
    """Scales vectors to unit norm and keeps the sign of each axis (BSQ). The elements of codes are `+-1 / sqrt(D)`.

    An entropy loss keeps the bits in use: `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))`. Here `H(E[p])` is
    the sum of the entropies of the bits, an upper bound of the entropy over all codes. It takes `O(N D)` memory. The
    first axis is the most significant bit of the index.

    BSQ was designed for large codebooks. `VectorQuantizer` had a lower error with 1,024 and with 16,384 codes: see
    `docs/studies/quantizers.md` and `docs/studies/large-codebooks.md`.

    Args:
        num_bits: Number of bits, `D`, from 1 to 30. There are 2^D codes. The input's last axis has `D` elements.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.
        entropy_weight: Weight of the entropy loss, at least 0. Defaults to `0.1`.
        diversity_weight: Weight of `H(E[p])` relative to `E[H(p)]`, at least 0. Defaults to `1.0`.
        temperature: Temperature of the soft assignments `p`, above 0. Defaults to `0.01`.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Inputs, outputs and errors are the same as for `LookupFreeQuantizer`.

    Example:

    >>> layer = BinarySphericalQuantizer(num_bits=4)
    >>> quantized, indices = layer(np.array([[0.2, -3.0, 1.0, 2.0]], "float32"), return_indices=True)
    >>> keras.ops.convert_to_numpy(quantized).tolist(), int(indices[0])
    ([[0.5, -0.5, 0.5, 0.5]], 11)

    Reference:

    - [Zhao et al., 2024](https://arxiv.org/abs/2406.07548)
    """

    @property
    def code_size(self) -> float:
        return self.num_bits**-0.5

    def bound(self, vectors: Tensor) -> Tensor:
        return geometry.unit(vectors)

    def mean_entropy(self, log_p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        p = weights * ops.exp(log_p)
        mean = backend.mean_over_replicas(ops.sum(p, axis=0))
        log_mean = ops.log(backend.at_least(mean, 1e-30))
        return ops.sum(mean * log_mean), p * log_mean
