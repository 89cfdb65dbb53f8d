"""A regularizer of how vectors are spread over the codes.

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
    """Makes each vector sure of its code, and all codes equally used: an entropy loss on soft assignments.

    `weight * (E[H(p)] - diversity_weight * H(E[p]))`, where `p = softmax(-|z - e|^2 / temperature)` are a vector's
    soft assignments to the codes, and the means go over the vectors. Both vectors and codes get its gradient. The
    `N x K` assignments are not held: forward and backward hold a block of them at a time.

    Args:
        weight: Weight of the loss, at least 0. Defaults to `0.1`.
        diversity_weight: Weight of the second entropy beside the first, at least 0. Defaults to `1.0`.
        temperature: Of the assignments, in units of a squared distance, above 0. Defaults to `0.1`.

    Call arguments:
        vectors: `[N, D]`.
        codebook: `[K, D]`.
        valid: Booleans `[N]`, the vectors that count.

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
    """`E[H(p)] - diversity_weight H(E[p])` over the valid vectors, for `p = softmax(inverse_temperature z e)`."""
    codebook = ops.convert_to_tensor(codebook)
    shares = ops.cast(valid, "float32")
    value, by_vectors, by_codebook = _entropies(
        # A vector that does not count may be no number at all.
        backend.masked(ops.stop_gradient(vectors), valid),
        ops.stop_gradient(codebook),
        shares / backend.at_least(ops.sum(shares), 1.0),
        inverse_temperature,
        diversity_weight,
        backend.block_scores(vectors),
    )
    # The backward pass needs nothing of the blocks.
    return backend.with_gradients(value, [(vectors, by_vectors), (codebook, by_codebook)])


@functools.partial(backend.jit, static_argnums=(5,))
def _entropies(
    vectors: Tensor, codebook: Tensor, shares: Tensor, sharpness: float, diversity: float, block_scores: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients by vectors and codebook; `shares` `[N]`, which sum to 1, are the vectors' weights."""
    rows, dim = ops.shape(vectors)
    num_embeddings = codebook.shape[0]
    # Vectors with their shares, `[N, D + 1]` -> `[n, blocks, D + 1]`, filled up with vectors of no weight
    rows_and_shares = ops.concatenate([vectors, ops.expand_dims(shares, -1)], axis=-1)
    parts = backend.split_rows(rows_and_shares, max(block_scores // num_embeddings, 1))
    blocks = ops.shape(parts)[1]
    factors = sharpness * ops.transpose(codebook)

    def assignments(z: Tensor) -> tuple[Tensor, Tensor]:
        # `[n, D]` -> `[n, K]` twice
        log_p = ops.log_softmax(backend.matmul(z, factors), axis=-1)
        # Processors are slow where numbers underflow, here three times as slow. And XLA, which makes one operation of a
        # product of one axis and the difference to its maximum, finds infinity for vectors of 1e9.
        log_p = backend.clip(log_p, -60.0, 0.0)
        return ops.exp(log_p), log_p

    def first_pass(i: Tensor, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        part = parts[:, i]
        share = part[:, dim:]
        p, log_p = assignments(part[:, :dim])
        sure = ops.sum(share * ops.sum(p * log_p, axis=-1, keepdims=True))
        return sums[0] - sure, sums[1] + backend.matmul(ops.transpose(share), p)[0]

    sure, mean = ops.fori_loop(
        0, blocks, first_pass, (ops.zeros((), "float32"), ops.zeros((num_embeddings,), "float32"))
    )
    mean = backend.mean_over_replicas(mean)
    # 0 log 0 is 0.
    log_mean = ops.log(backend.at_least(mean, 1e-30))
    value = sure + diversity * ops.sum(mean * log_mean)

    def by_logits(z: Tensor) -> Tensor:
        p, log_p = assignments(z)
        # By the logits `a`: `dH(p)/da = -p (log p - E_p[log p])`, and of the mean's entropy the same with `log E[p]`.
        slope = diversity * log_mean - log_p
        return p * (slope - ops.sum(p * slope, axis=-1, keepdims=True))

    def second_pass(i: Tensor, by_codebook: Tensor) -> Tensor:
        part = parts[:, i]
        z = part[:, :dim]
        return by_codebook + backend.matmul(ops.transpose(by_logits(z)), part[:, dim:] * z)

    by_codebook = ops.fori_loop(0, blocks, second_pass, ops.zeros((num_embeddings, dim), "float32"))

    def by_part(part: Tensor) -> tuple[Tensor]:
        return (part[:, dim:] * backend.matmul(by_logits(part[:, :dim]), codebook),)

    (by_vectors,) = backend.map_blocks(by_part, parts, (((dim,), "float32"),))
    by_vectors = backend.join_rows(by_vectors, rows)
    return value, sharpness * by_vectors, sharpness * by_codebook
