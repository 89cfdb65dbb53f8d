"""Codes drawn from a softmax, with the gradient of its relaxation."""

import math
from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.codebook_quantizer import CodebookQuantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.ops import estimators, geometry
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class GumbelQuantizer(CodebookQuantizer):
    """Draws a code in training, near ones more often, and takes the nearest in inference: Gumbel-softmax.

    A code is drawn by `argmax(a + g)` with `a = -|z - e|^2` and Gumbel noise `g`; the gradient is that of
    `softmax((a + g) / temperature) E`. With `distance="direction"` the `z` and `e` in `a` are scaled to length 1. The
    layer adds `kl_weight` times the divergence of `softmax(a)` from uniform use. The weight `temperature` can be
    annealed by the callback `TemperatureScheduler`. In training, memory grows with `N x K`, and what is returned and
    counted as indices are the nearest codes.

    Args:
        num_embeddings: Number of codes, `K`. Defaults to `512`.
        embedding_dim: Size of a code, `D`. Defaults to `None`: the size of the input's last axis.
        temperature: Of the relaxation at the start, above 0. Defaults to `1.0`.
        kl_weight: Weight of the divergence from uniform use, at least 0. Defaults to `5e-4`.
        **kwargs: `embeddings_initializer`, `embeddings_regularizer`, `embeddings_constraint`, `distance` and `seed` of
            `VectorQuantizer`, and `name`, `dtype` and `trainable`.

    Inputs, outputs and errors are those of `VectorQuantizer`.

    Example:

    >>> layer = GumbelQuantizer(num_embeddings=16, temperature=0.5)
    >>> quantized = layer(keras.random.normal((2, 5, 8)), training=True)
    >>> float(layer.temperature)
    0.5

    References:

    - [Jang et al., 2017](https://arxiv.org/abs/1611.01144)
    - [Ramesh et al., 2021](https://arxiv.org/abs/2102.12092), the divergence
    """

    # It draws its code in training.
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

    def _scores(self, vectors: Tensor) -> Tensor:
        """`-|z - e|^2` but for `|z|^2`, which is the same for all codes: `[N, D]` -> `[N, K]`."""
        vectors, embeddings = geometry.distance_factors(*self.compared(geometry.zero_nonfinite(vectors), self.codebook))
        return 2 * backend.matmul(vectors, ops.transpose(embeddings))

    def estimate(self, vectors: Tensor, codes: Tensor, training: bool) -> Tensor:
        if not training:
            return estimators.straight_through(vectors, codes)
        scores = self._scores(vectors)
        uniform = keras.random.uniform(
            ops.shape(scores), minval=1e-7, maxval=1 - 1e-7, dtype="float32", seed=self.seed_generator
        )
        scores = scores - ops.log(-ops.log(uniform))
        p = ops.softmax(scores / ops.convert_to_tensor(self.temperature), axis=-1)
        drawn = self.lookup(ops.argmax(scores, axis=-1))
        return drawn + backend.matmul(p - ops.stop_gradient(p), self.codebook)

    def compute_losses(self, record: Record) -> list[Tensor]:
        if not self.kl_weight:
            return []
        log_p = ops.log_softmax(self._scores(record.vectors), axis=-1)
        divergence = math.log(self.num_embeddings) + ops.sum(ops.exp(log_p) * log_p, axis=-1)
        valid = ops.cast(record.valid, "float32")
        return [self.kl_weight * ops.sum(valid * divergence) / backend.at_least(ops.sum(valid), 1.0)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.initial_temperature, "kl_weight": self.kl_weight}
