"""The vector quantizer of VQ-VAE. The optimizer or a moving average trains its codebook."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.codebook_quantizer import CodebookQuantizer, default_initializer
from keras_vqvae.layers.record import Record
from keras_vqvae.ops import estimators, moving_average
from keras_vqvae.types import FromKeras, Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class VectorQuantizer(CodebookQuantizer):
    """Replaces each vector of the last axis by the nearest code of a learned codebook.

    By default the optimizer trains the codebook, through a codebook loss. With `ema_decay` the layer trains it: each
    code follows the moving average of the vectors that chose it. In both cases, a commitment loss keeps the encoder
    near its codes, and in training dead codes move onto vectors of the batch.

    A codebook that the optimizer trains is the sum of two weights, the trainable `codebook` and, if dead codes move or
    there is a constraint, the non-trainable `offset_codebook`. The layer moves dead codes by the offset, because a call
    can update non-trainable weights only. A regularizer or constraint sees the sum; an optimizer's weight decay shrinks
    the trainable part only.

    Args:
        num_embeddings: Number of codes, `K`. Defaults to `512`.
        embedding_dim: Size of a code, `D`. Defaults to `None`: the size of the input's last axis.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.
        codebook_weight: Weight of the codebook loss, at least 0. Must be left at its default with `ema_decay`, which
            needs no codebook loss. Defaults to `1.0`.
        ema_decay: Decay of the moving average, between 0 and 1 (`0.99` is usual), or `None` to leave the codebook to
            the optimizer. Defaults to `None`.
        distance: How vectors and codes are compared. `"euclidean"`: by Euclidean distance. `"direction"`: by cosine
            similarity; losses and output use the unscaled vectors and codes. `"cosine"`: by cosine similarity; losses
            and output use vectors and codes scaled to unit norm. Defaults to `"euclidean"`.
        estimator: Gradient estimator: `"straight_through"`, `"rotation"`, `"diveq"`, `"nsvq"`, or a function of vectors
            and codes, which may also take a `seed`. Defaults to `"straight_through"`.
        dead_code_threshold: A code is dead if a moving average of how often it is chosen is below this fraction of the
            mean over all codes. In training, dead codes move onto vectors of the batch. 0 turns this off. Defaults
            to `0.1`.
        embeddings_initializer: Initializer of the codebook, `[K, D]`. Defaults to `None`: normal with a standard
            deviation of `1 / sqrt(D)`, or `1 / (4 sqrt(D))` with `ema_decay`. For `"rotation"`: uniform between
            `-sqrt(3 / (16 K))` and `sqrt(3 / (16 K))`.
        embeddings_regularizer: Regularizer of the codebook. Must be `None` with `ema_decay`. Defaults to `None`.
        embeddings_constraint: Constraint of the codebook. Defaults to `None`.
        assignment_regularizer: A function `(vectors, codebook, valid)` that returns a loss, such as
            `AssignmentEntropy`. It gets `[N, D]`, `[K, D]` and booleans `[N]`, `False` for masked vectors. With
            `distance="direction"`, vectors and codes are scaled to unit norm. Defaults to `None`.
        seed: Integer seed of the default initializer, `adapt`, the moves of dead codes and estimators that add noise.
            Defaults to `None`, a random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer. `trainable=False` freezes the codebook and all
            statistics.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask: Optional booleans over the leading dimensions. Masked vectors are excluded from losses, statistics and
            codebook updates.
        training: Whether to update statistics and, with `ema_decay`, the codebook, to move dead codes, and to add the
            noise of estimators that use any. Losses are added either way.
        return_indices: Whether to return `(quantized, indices)`. Defaults to `False`.

    Output shape:
        `[..., D]`, in the compute dtype; the indices are int32 `[...]`.

    Raises:
        ValueError: If an argument is out of its range, or an input's last axis is not `embedding_dim`.

    Example:

    >>> layer = VectorQuantizer(num_embeddings=16)
    >>> quantized, indices = layer(keras.random.normal((2, 5, 8)), return_indices=True)
    >>> quantized.shape == (2, 5, 8), indices.shape == (2, 5)
    (True, True)
    >>> bool(keras.ops.all(layer.decode(indices) == quantized))
    True

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937)
    - [Dead codes: Zeghidour et al., 2021, section III.C](https://arxiv.org/abs/2107.03312)
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        ema_decay: float | None = None,
        distance: str = "euclidean",
        estimator: str | estimators.Estimator = "straight_through",
        dead_code_threshold: float = 0.1,
        embeddings_initializer: FromKeras = None,
        embeddings_regularizer: FromKeras = None,
        embeddings_constraint: FromKeras = None,
        assignment_regularizer: Callable[[Tensor, Tensor, Tensor], Tensor] | dict[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        if embeddings_initializer is None and ema_decay is not None:
            # The average moves no code that no vector chooses. Short codes lie near the vectors of an untrained
            # encoder, so that 2 to 3 times as many codes come into use.
            embeddings_initializer = default_initializer(estimators.get(estimator), validation.seed(seed), norm=1 / 4)
        super().__init__(
            num_embeddings,
            embedding_dim,
            distance=distance,
            estimator=estimator,
            dead_code_threshold=dead_code_threshold,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            embeddings_constraint=embeddings_constraint,
            seed=seed,
            **kwargs,
        )
        self.commitment_weight = validation.non_negative("commitment_weight", commitment_weight)
        self.codebook_weight = validation.non_negative("codebook_weight", codebook_weight)
        self.ema_decay = None if ema_decay is None else validation.open_fraction("ema_decay", ema_decay)
        if isinstance(assignment_regularizer, dict):
            assignment_regularizer = keras.saving.deserialize_keras_object(assignment_regularizer)
        if assignment_regularizer is not None and not (
            callable(assignment_regularizer) and validation.takes(assignment_regularizer, 3)
        ):
            raise ValueError(
                "`assignment_regularizer` must be None or a function `(vectors, codebook, valid)`. "
                "A function of the codebook only is an `embeddings_regularizer`. "
                f"Received: assignment_regularizer={validation.shown(assignment_regularizer)}"
            )
        self.assignment_regularizer = assignment_regularizer
        self.codebook_trainable = ema_decay is None
        if self.codebook_weight != 1.0 and not self.codebook_trainable:
            raise ValueError(
                "`codebook_weight` must be left at 1.0 with `ema_decay`, which needs no codebook loss. "
                f"Received: codebook_weight={codebook_weight!r}"
            )
        if embeddings_regularizer is not None and not self.codebook_trainable:
            raise ValueError(
                "`embeddings_regularizer` must be None with `ema_decay`: the codebook has no gradient. "
                f"Received: embeddings_regularizer={validation.shown(embeddings_regularizer)}"
            )

    def build_codebook(self) -> None:
        super().build_codebook()
        if self.ema_decay is not None:
            self.ema_span = self.add_float32("ema_span", (), "ones")

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        added = record.squared_errors(self.commitment_weight, self.codebook_weight if self.ema_decay is None else 0.0)
        if self.assignment_regularizer is not None:
            vectors, codes = self.compared(record.vectors, self.codebook)
            if self.ema_decay is not None:
                # A copy, because PyTorch needs these values for the gradient, and `update` overwrites the codebook.
                codes = ops.copy(codes)
            added["assignment_loss"] = self.assignment_regularizer(vectors, codes, record.valid)
        return added

    def update(self, record: Record, counts: Tensor) -> None:
        if self.ema_decay is None:
            return super().update(record, counts)
        total = backend.sum_over_replicas(record.count)
        span = ops.convert_to_tensor(self.ema_span)
        rate = moving_average.rate_of_step(self.ema_decay, span, total, self.num_embeddings)
        differences = backend.segment_sum(record.differences, record.indices, self.num_embeddings)
        moving_average.update(
            self.embeddings, self.ema_counts, ops.cast(counts, "float32"), backend.sum_over_replicas(differences), rate
        )
        if self._constraint is not None:
            # Codes that have not moved keep their exact values.
            moved = ops.expand_dims(counts > 0, -1)
            backend.replace_where(self.embeddings, moved, self._constraint(self.codebook))
        # A batch without a valid vector does not count as a step.
        backend.add_to(self.ema_span, backend.at_most(total, moving_average.SPAN_GROWTH))
        if self.dead_code_threshold:
            self.move_dead_codes(record)

    def adapt(self, vectors: Tensor, seed: int | None = None, **keywords: Any) -> np.ndarray:
        counts = super().adapt(vectors, seed, **keywords)
        if self.ema_decay is not None:
            # The warm-up of the decay is skipped, because it would soon overwrite these codes.
            self.ema_span.assign(1 / (1 - self.ema_decay))
        return counts

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "commitment_weight": self.commitment_weight,
            "codebook_weight": self.codebook_weight,
            "ema_decay": self.ema_decay,
            "assignment_regularizer": serialization.saved(self.assignment_regularizer),
        }
