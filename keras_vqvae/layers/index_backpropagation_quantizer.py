"""Index backpropagation quantization: every vector gives every code a gradient."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.codebook_quantizer import CodebookQuantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.ops import entropy, estimators, search
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class IndexBackpropagationQuantizer(CodebookQuantizer):
    """Replaces each vector by the code of highest inner product, with a gradient for all codes (IBQ).

    For a vector `z` and the codebook `C`, `p = softmax(z C^T)` and `h = onehot(argmax p) + p - stop_gradient(p)`. The
    output is `h C`. Its value is the code `q`, and its gradient reaches the vector and all codes. The layer adds the
    losses `mean((h C - z)^2)`, `mean((stop_gradient(q) - z)^2)` and `0.25 mean((q - stop_gradient(z))^2)`. It also adds
    the entropy loss `entropy_weight * (E[H(p')] - diversity_weight * H(E[p']))`, with the mean `E` over vectors and
    `p' = softmax(z C^T / temperature)`. Without it, few codes take all vectors. In training, memory grows with `N x K`.

    IBQ was designed for large codebooks. With 1,024 codes, `VectorQuantizer` has a lower error: see
    `docs/studies/quantizers.md`.

    Args:
        num_embeddings: Number of codes, `K`. Defaults to `512`.
        embedding_dim: Size of a code, `D`. Defaults to `None`: the size of the input's last axis.
        entropy_weight: Weight of the entropy loss, at least 0. Defaults to `0.05`.
        diversity_weight: Weight of `H(E[p'])` relative to `E[H(p')]`, at least 0. Defaults to `1.0`.
        temperature: Temperature of the soft assignments `p'`, above 0. Defaults to `0.01`.
        **kwargs: `embeddings_initializer`, `embeddings_regularizer`, `embeddings_constraint` and `seed` of
            `VectorQuantizer`, and `name`, `dtype` and `trainable`. `distance="cosine"` scales vectors and codes to unit
            norm.

    Inputs, outputs and errors are the same as for `VectorQuantizer`.

    Example:

    >>> layer = IndexBackpropagationQuantizer(num_embeddings=16)
    >>> quantized = layer(keras.random.normal((2, 5, 8)), training=True)
    >>> len(layer.losses)
    4

    Reference:

    - [Shi et al., 2024](https://arxiv.org/abs/2412.02692)
    """

    # A beam search ranks sums of codes by their squared error, and this layer chooses codes by inner products.
    supports_beam_search = False
    # A code that moved onto a vector of large norm would have the largest inner product with most vectors.
    revivable = False

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int | None = None,
        entropy_weight: float = 0.05,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        **kwargs: Any,
    ):
        kwargs.setdefault("dead_code_threshold", 0.0)
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        self._refuse_estimator()
        if self.distance == "direction":
            raise ValueError(
                "`distance` must be 'euclidean' or 'cosine', because codes are chosen by inner products. "
                "Received: distance='direction'"
            )
        self.entropy_weight = validation.non_negative("entropy_weight", entropy_weight)
        self.diversity_weight = validation.non_negative("diversity_weight", diversity_weight)
        self.temperature = validation.positive("temperature", temperature)

    def search(self, vectors: Tensor, codes: Tensor) -> Tensor:
        # A search for the nearest code finds the largest inner product: with the largest `|e|^2` as `M`, the distance
        # `|z' - e'|^2` of `z' = (z, 0)` and `e' = (e, sqrt(M - |e|^2))` is `|z|^2 + M - 2 z e`.
        codes = ops.stop_gradient(codes)
        squares = ops.sum(ops.square(codes), axis=-1, keepdims=True)
        codes = ops.concatenate([codes, ops.sqrt(ops.amax(squares) - squares)], axis=-1)
        return search.search(ops.concatenate([vectors, ops.zeros_like(vectors[:, :1])], axis=-1), codes)

    def estimate(self, vectors: Tensor, codes: Tensor, training: bool) -> Tensor:
        if not training:
            return estimators.straight_through(vectors, codes)
        embeddings = self.codebook
        scores = backend.matmul(backend.zero_nonfinite(vectors), ops.transpose(embeddings))
        return backend.relax(codes, ops.softmax(scores, axis=-1), embeddings)

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        added = record.squared_errors(1.0, 0.25)
        # `mean((h C - z)^2)` has the value of the commitment loss, because the value of `h C` is the code.
        slope = record.differences * (2 / record.vectors.shape[-1]) / backend.at_least(record.count, 1.0)
        pairs = [(record.vectors, slope), (record.output, -slope)]
        added = {"output_loss": backend.with_gradients(ops.stop_gradient(added["commitment_loss"]), pairs), **added}
        if self.entropy_weight:
            entropies = entropy.entropy_loss(
                record.vectors, self.codebook, record.valid, self.diversity_weight, 1 / self.temperature
            )
            added["entropy_loss"] = self.entropy_weight * entropies
        return added

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "entropy_weight": self.entropy_weight,
            "diversity_weight": self.diversity_weight,
            "temperature": self.temperature,
        }
