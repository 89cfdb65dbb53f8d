"""Binary spherical quantization: the signs of a vector of length 1."""

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.binary_quantizer import BinaryQuantizer
from keras_vqvae.ops import geometry
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class BinarySphericalQuantizer(BinaryQuantizer):
    """Scales vectors to length 1 and keeps the sign of each axis: BSQ, codes of `+-1 / sqrt(D)`.

    An entropy loss, `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))`, keeps the bits in use. The entropy
    of the mean is taken bit by bit, an upper bound of that over all codes, so memory is `O(N D)`. The first axis is
    the most significant bit of the index.

    It is made for vast codebooks, of 2^14 codes and more: at 2^10, after 2,400 steps on Fashion-MNIST, its error was
    1.7 times that of `VectorQuantizer`.

    Arguments, inputs, outputs and errors are those of `LookupFreeQuantizer`.

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

    def mean_entropy(self, log_p: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        p = shares * ops.exp(log_p)
        mean = backend.mean_over_replicas(ops.sum(p, axis=0))
        log_mean = ops.log(backend.at_least(mean, 1e-30))
        return ops.sum(mean * log_mean), p * log_mean
