"""An entropy loss on the assignment of vectors to codes.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

import functools
from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.ops import geometry
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class AssignmentEntropy:
    """An entropy loss that makes the assignment of each vector certain, and the usage of all codes equal.

    The loss is `weight * (E[H(p)] - diversity_weight * H(E[p]))`. Here `p = softmax(-|z - e|^2 / temperature)` are the
    soft assignments of a vector to the codes, and `E` is the mean over vectors. Vectors and codes both get a gradient.
    The `N x K` assignments are never in memory as a whole: value and gradient are computed block by block.

    Args:
        weight: Weight of the loss, at least 0. Defaults to `0.1`.
        diversity_weight: Weight of `H(E[p])` relative to `E[H(p)]`, at least 0. Defaults to `1.0`.
        temperature: Temperature of the softmax, above 0, in units of a squared distance. Defaults to `0.1`.

    Call arguments:
        vectors: `[N, D]`.
        codebook: `[K, D]`.
        valid: Booleans `[N]`. Only vectors whose entry is true are used.

    Returns:
        A float32 scalar.

    Example:

    >>> layer = VectorQuantizer(num_embeddings=16, assignment_regularizer=AssignmentEntropy(weight=0.05))
    >>> quantized = layer(keras.random.normal((32, 4)), training=True)
    >>> len(layer.losses)
    3

    Reference:

    - [Yu et al., 2024](https://arxiv.org/abs/2310.05737), equation 6
    """

    def __init__(self, weight: float = 0.1, diversity_weight: float = 1.0, temperature: float = 0.1):
        self.weight = validation.non_negative("weight", weight)
        self.diversity_weight = validation.non_negative("diversity_weight", diversity_weight)
        self.temperature = validation.positive("temperature", temperature)

    def __call__(self, vectors: Tensor, codebook: Tensor, valid: Tensor) -> Tensor:
        vectors, codebook = geometry.distance_factors(vectors, ops.convert_to_tensor(codebook))
        return self.weight * entropy_loss(vectors, codebook, valid, self.diversity_weight, 2 / self.temperature)

    def get_config(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "diversity_weight": self.diversity_weight,
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AssignmentEntropy":
        return cls(**config)


def entropy_loss(
    vectors: Tensor, codebook: Tensor, valid: Tensor, diversity_weight: float, inverse_temperature: float
) -> Tensor:
    """Returns `E[H(p)] - diversity_weight H(E[p])` over valid vectors, where `p = softmax(inverse_temperature z e)`."""
    codebook = ops.convert_to_tensor(codebook)
    weights = ops.cast(valid, "float32")
    value, by_vectors, by_codebook = _entropies(
        # Vectors that are not valid may contain NaN.
        backend.masked(ops.stop_gradient(vectors), valid),
        ops.stop_gradient(codebook),
        weights / backend.at_least(ops.sum(weights), 1.0),
        inverse_temperature,
        diversity_weight,
        backend.block_scores(vectors),
    )
    # The gradients have been computed with the value, so the backward pass computes no block again.
    return backend.with_gradients(value, [(vectors, by_vectors), (codebook, by_codebook)])


@functools.partial(backend.jit, static_argnums=(5,))
def _entropies(
    vectors: Tensor, codebook: Tensor, weights: Tensor, sharpness: float, diversity: float, block_scores: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss and its gradients with respect to vectors and codebook.

    The weights of the vectors, `[N]`, sum to 1. `sharpness` is the inverse temperature.
    """
    rows, dim = ops.shape(vectors)
    num_embeddings = codebook.shape[0]
    # Vectors with their weights, `[N, D + 1]` -> `[n, blocks, D + 1]`, padded with vectors of weight 0
    weighted = ops.concatenate([vectors, ops.expand_dims(weights, -1)], axis=-1)
    parts = backend.split_rows(weighted, max(block_scores // num_embeddings, 1))
    blocks = ops.shape(parts)[1]
    factors = sharpness * ops.transpose(codebook)

    def assignments(z: Tensor) -> tuple[Tensor, Tensor]:
        # `[n, D]` -> `[n, K]` twice
        log_p = ops.log_softmax(backend.matmul(z, factors), axis=-1)
        # Clipped for two reasons. Processors take 3 times as long if the exponentials underflow. And for `D = 1`, XLA
        # fuses the product with the subtraction of the maximum, and gets infinity for vectors of 1e9.
        log_p = backend.clip(log_p, -60.0, 0.0)
        return ops.exp(log_p), log_p

    def first_pass(i: Tensor, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        part = parts[:, i]
        weight = part[:, dim:]
        p, log_p = assignments(part[:, :dim])
        negentropy = ops.sum(weight * ops.sum(p * log_p, axis=-1, keepdims=True))
        return sums[0] - negentropy, sums[1] + backend.matmul(ops.transpose(weight), p)[0]

    mean_entropy, mean = ops.fori_loop(
        0, blocks, first_pass, (ops.zeros((), "float32"), ops.zeros((num_embeddings,), "float32"))
    )
    mean = backend.mean_over_replicas(mean)
    # `0 log 0` must be 0, and the logarithm of 0 is not finite.
    log_mean = ops.log(backend.at_least(mean, 1e-30))
    value = mean_entropy + diversity * ops.sum(mean * log_mean)

    def by_logits(z: Tensor) -> Tensor:
        p, log_p = assignments(z)
        # The gradient with respect to the logits `a` is `dH(p) / da = -p (log p - E_p[log p])`. For the entropy of the
        # mean, `log E[p]` takes the place of `log p`.
        slope = diversity * log_mean - log_p
        return p * (slope - ops.sum(p * slope, axis=-1, keepdims=True))

    def second_pass(i: Tensor, slopes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        part, (by_vectors, by_codebook) = parts[:, i], slopes
        z, weight = part[:, :dim], part[:, dim:]
        slope = by_logits(z)
        by_part = weight * backend.matmul(slope, codebook)
        return (
            ops.slice_update(by_vectors, (i, 0, 0), ops.expand_dims(by_part, 0)),
            by_codebook + backend.matmul(ops.transpose(slope), weight * z),
        )

    start = ops.zeros((blocks, ops.shape(parts)[0], dim), "float32"), ops.zeros((num_embeddings, dim), "float32")
    by_vectors, by_codebook = ops.fori_loop(0, blocks, second_pass, start)
    by_vectors = backend.join_rows(by_vectors, rows)
    return value, sharpness * by_vectors, sharpness * by_codebook
