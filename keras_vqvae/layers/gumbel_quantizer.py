"""Gumbel-softmax quantization: codes drawn from a softmax, with the gradient of its relaxation."""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.codebook_quantizer import CodebookQuantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.ops import codebook, estimators
from keras_vqvae.types import Tensor


@dataclasses.dataclass
class _Draw(Record):
    """The record of a call in training, which draws codes. Output and loss share its scores.

    Attributes:
        codebook: `[K, D]`.
        scores: `-|z - e|^2` up to a constant for each vector, `[N, K]`.
    """

    codebook: Tensor = None
    scores: Tensor = None


@keras.saving.register_keras_serializable(package="keras_vqvae")
class GumbelQuantizer(CodebookQuantizer):
    """Draws codes at random in training, near codes more often, and takes the nearest in inference (Gumbel-softmax).

    For a vector `z`, a code `e` of the codebook `C` is drawn by `argmax(a + g)` with `a = -|z - e|^2` and Gumbel noise
    `g`. Its gradient is the gradient of `softmax((a + g) / temperature) C`. With `distance="direction"` the `z` and `e`
    in `a` are scaled to unit norm. The layer adds `kl_weight` times the KL divergence of `softmax(a)` from uniform
    usage. The callback `TemperatureScheduler` can anneal the weight `temperature`. In training, memory grows with
    `N x K`. The layer returns and counts the indices of the nearest codes, even if training draws other codes.

    Args:
        num_embeddings: Number of codes, `K`. Defaults to `512`.
        embedding_dim: Size of a code, `D`. Defaults to `None`: the size of the input's last axis.
        temperature: Initial temperature of the relaxation, above 0. Defaults to `1.0`.
        kl_weight: Weight of the KL divergence from uniform usage, at least 0. Defaults to `5e-4`.
        **kwargs: `embeddings_initializer`, `embeddings_regularizer`, `embeddings_constraint`, `distance`,
            `dead_code_threshold` and `seed` of `VectorQuantizer`, and `name`, `dtype` and `trainable`.

    Inputs, outputs and errors are the same as for `VectorQuantizer`.

    Example:

    >>> layer = GumbelQuantizer(num_embeddings=16, temperature=0.5)
    >>> quantized = layer(keras.random.normal((2, 5, 8)), training=True)
    >>> float(layer.temperature)
    0.5

    References:

    - [Jang et al., 2017](https://arxiv.org/abs/1611.01144)
    - [Ramesh et al., 2021](https://arxiv.org/abs/2102.12092), the divergence
    """

    # Codes are drawn at random in training, so a beam search cannot choose them.
    supports_beam_search = False

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int | None = None,
        temperature: float = 1.0,
        kl_weight: float = 5e-4,
        **kwargs: Any,
    ):
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        self._refuse_estimator()
        self.initial_temperature = validation.positive("temperature", temperature)
        self.kl_weight = validation.non_negative("kl_weight", kl_weight)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.temperature = self.add_float32("temperature", (), keras.initializers.Constant(self.initial_temperature))

    def copies_gradient(self, training: bool) -> bool:
        return False

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        if not (training and self.trainable):
            return super().quantize_vectors(vectors, valid, training, batch_size, indices)
        # The nearest code has the highest score, and the scores are needed anyway.
        vectors, codes = self.project(vectors), self.codebook
        scores = backend.scores(*self.compared(vectors, codes))
        if indices is None:
            indices = backend.argmax(ops.stop_gradient(scores))
        nearest = codebook.gather_codes(codes, indices)
        return _Draw(self, vectors, valid, indices, nearest, training, codebook=codes, scores=scores)

    def compute_output(self, record: Record) -> Tensor:
        if not isinstance(record, _Draw):
            return estimators.straight_through(record.vectors, record.codes)
        uniform = keras.random.uniform(
            ops.shape(record.scores), minval=1e-7, maxval=1 - 1e-7, dtype="float32", seed=self.seed_generator
        )
        scores = record.scores - ops.log(-ops.log(uniform))
        p = ops.softmax(scores / ops.convert_to_tensor(self.temperature), axis=-1)
        drawn = codebook.gather_codes(record.codebook, backend.argmax(ops.stop_gradient(scores)))
        return backend.relax(drawn, p, record.codebook)

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        if not self.kl_weight:
            return {}
        if isinstance(record, _Draw):
            scores = record.scores
        else:
            scores = backend.scores(*self.compared(record.vectors, self.codebook))
        log_p = ops.log_softmax(ops.stop_gradient(scores), axis=-1)
        p = ops.exp(log_p)
        negentropy = ops.sum(p * log_p, axis=-1, keepdims=True)
        weights = self.kl_weight * ops.cast(record.valid, "float32") / backend.at_least(record.count, 1.0)
        weights = ops.expand_dims(weights, -1)
        value = ops.sum(weights * (negentropy + math.log(self.num_embeddings)))
        return {"kl_loss": backend.with_gradients(value, [(scores, weights * p * (log_p - negentropy))])}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.initial_temperature, "kl_weight": self.kl_weight}
