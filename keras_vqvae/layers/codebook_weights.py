"""Codes that are weights of a layer."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.layers import input_checks, resized
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.ops import codebook, estimators
from keras_vqvae.types import FromKeras, Tensor


class CodebookWeights(Quantizer):
    """Base class of quantizers whose codes are weights `[K, D]`. It creates, constrains, assigns and resizes them.

    `CodebookQuantizer` describes the two weights of a codebook that the optimizer owns. A call of a layer can update
    non-trainable weights only, so it moves a dead code by its offset.

    Args:
        num_embeddings, embedding_dim, seed: See `CodebookQuantizer`.
        embeddings_initializer: Initializer of the codebook, which must not be `None`.
        embeddings_regularizer, embeddings_constraint: See `CodebookQuantizer`.
    """

    has_codebook = True
    codebook_trainable = True
    moves_codes = False
    """Whether a call of the layer may move codes."""
    offset: keras.Variable | None = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None,
        embeddings_initializer: FromKeras,
        embeddings_regularizer: FromKeras,
        embeddings_constraint: FromKeras,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.seed = validation.seed(seed)
        self.num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = None if embedding_dim is None else validation.positive_int("embedding_dim", embedding_dim)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = keras.constraints.get(embeddings_constraint)
        self._constraint = self.embeddings_constraint
        if embeddings_regularizer is not None and not validation.takes(self.embeddings_regularizer, 1):
            raise ValueError(
                "`embeddings_regularizer` must be a function of the codebook only. A function `(vectors, codebook, "
                "valid)`, such as `AssignmentEntropy`, is an `assignment_regularizer` of `VectorQuantizer`. "
                f"Received: embeddings_regularizer={validation.shown(embeddings_regularizer)}"
            )

    def build_codebook(self) -> None:
        """Creates the weights of the codebook, `[num_embeddings, embedding_dim]`."""
        shape = (self.num_embeddings, self.embedding_dim)
        self.embeddings = self.add_float32(
            "codebook",
            shape,
            self._initial_codebook,
            self.codebook_trainable,
            regularizer=self.embeddings_regularizer and self._regularize,
        )
        if self.codebook_trainable and (self.moves_codes or self._constraint):
            self.offset = self.add_float32("offset_codebook", shape)

    def _initial_codebook(self, shape: tuple[int, int], dtype: str) -> Tensor:
        return self.project(self.embeddings_initializer(shape, dtype=dtype))

    def _regularize(self, embeddings: Tensor) -> Tensor:
        return self.embeddings_regularizer(self._with_offset(embeddings))

    def _with_offset(self, embeddings: Tensor) -> Tensor:
        embeddings = ops.convert_to_tensor(embeddings)
        return embeddings if self.offset is None else embeddings + ops.convert_to_tensor(self.offset)

    @property
    def codebook(self) -> Tensor:
        """The codes, `[K, D]`."""
        input_checks.check_built(self, "codebook")
        codes = self._with_offset(self.embeddings)
        if self._constraint is None or not self.codebook_trainable:
            return codes
        # The constraint is applied here and not by the optimizer, which does not see the offset on JAX. Later `update`
        # changes the offset so that the sum meets the constraint.
        return estimators.straight_through(codes, self._constraint(codes))

    def set_codebook(self, values: Tensor) -> None:
        """Assigns `values` to the codebook. The layer's constraint is applied to the codes that change.

        Args:
            values: Codes `[K, D]`.

        Raises:
            ValueError: If the layer is not built, or `values` do not have the shape of the codebook.
        """
        values = self._checked_codes(values)
        self.embeddings.assign(self._constrained_where_moved(values, self.codebook))
        if self.offset is not None:
            self.offset.assign(ops.zeros_like(values))

    def _checked_codes(self, values: Tensor) -> Tensor:
        """Returns `values` as a float32 tensor, which must have the shape of the codebook."""
        input_checks.check_built(self, "set_codebook")
        values = ops.convert_to_tensor(values, dtype="float32")
        shape = (self.num_embeddings, self.embedding_dim)
        if tuple(values.shape) != shape:
            raise ValueError(
                f"`values` must have the shape of the codebook, {shape}. "
                f"Received: values of shape {tuple(values.shape)}"
            )
        return values

    def _constrained_where_moved(self, values: Tensor, before: Tensor) -> Tensor:
        """Applies the constraint to the codes that have changed. The others keep their exact values."""
        if self._constraint is None:
            return values
        moved = ops.any(values != before, axis=-1, keepdims=True)
        return ops.where(moved, self._constraint(values), values)

    def lookup(self, indices: Tensor) -> Tensor:
        return codebook.gather_codes(self.codebook, indices)

    def resize(self, num_embeddings: int, counts: Tensor | None = None) -> tuple["CodebookWeights", np.ndarray]:
        """Returns a new layer with another number of codes, and the new index of each old code.

        With fewer codes, those with the highest counts remain, in their order. With more codes, the old ones come first
        and keep their indices, and the initializer draws the others.

        Args:
            num_embeddings: Number of codes of the new layer.
            counts: How often each code was chosen, `[K]`, for example `layer.count_codes(indices)` of your data.
                Defaults to `None`: the layer's `code_counts`.

        Returns:
            `(layer, new_indices)`: the layer, built, and an int32 array `[K]` from old indices to new ones, with -1 for
            removed codes.
        """
        num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
        most_used = np.argsort(-resized.checked_counts(self, counts), kind="stable")
        return resized.with_codes(self, np.sort(most_used[:num_embeddings]), num_embeddings)

    def prune_unused(self, counts: Tensor | None = None) -> tuple["CodebookWeights", np.ndarray]:
        """Returns a new layer without the codes whose count is 0, and the new index of each old code.

        Args:
            counts: How often each code was chosen, `[K]`. Defaults to `None`: the layer's `code_counts`.

        Returns:
            `(layer, new_indices)`, as from `resize`.

        Raises:
            ValueError: If all counts are 0.
        """
        used = np.flatnonzero(resized.used_codes(self, counts))
        return resized.with_codes(self, used, len(used))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "embeddings_initializer": serialization.saved(self.embeddings_initializer),
            "embeddings_regularizer": serialization.saved(self.embeddings_regularizer),
            "embeddings_constraint": serialization.saved(self.embeddings_constraint),
            "seed": self.seed,
        }
