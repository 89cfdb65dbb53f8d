"""The contract of every quantizer."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import arguments, backend, codebook
from keras_vqvae.arguments import Tensor

_SCORING = contextvars.ContextVar("scoring", default=False)
_COUNTING = contextvars.ContextVar("counting", default=False)
_SEEN: contextvars.ContextVar[list | None] = contextvars.ContextVar("seen", default=None)


@contextlib.contextmanager
def _inside(variable: contextvars.ContextVar, value: Any) -> Iterator[Any]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def scoring() -> contextlib.AbstractContextManager:
    """Inside, quantizers add their losses in inference too, as `VQVAE.evaluate` needs; they learn nothing from it."""
    return _inside(_SCORING, True)


def counting() -> contextlib.AbstractContextManager:
    """Inside, quantizers count their codes in inference too, as `CodebookMonitor` needs of an evaluation."""
    return _inside(_COUNTING, True)


def watching() -> contextlib.AbstractContextManager[list[tuple["Quantizer", Tensor, Tensor]]]:
    """Inside, each call of a quantizer in eager code leaves itself, its vectors `[N, D]` and which of them are kept."""
    return _inside(_SEEN, [])


class Quantizer(keras.layers.Layer):
    """Base class of all quantizers: replaces each vector of the last axis by a code out of a finite set.

    A subclass creates its weights in `build`, calls `super().build(input_shape)` there, and says, on float32 vectors
    `[N, D]` whatever the input's rank and dtype:

    - `project(vectors)`: what is quantized in their place, such as vectors of length 1; by default the vectors;
    - `assign(vectors)`: the codes' int32 indices, `[N]`;
    - `lookup(indices)`: the codes, `[N, D]`, with the gradient that they learn by;
    - `estimate(vectors, codes, learning)`: the output, with the gradient that the encoder learns by;
    - `compute_losses(vectors, codes, kept)`: a list of float32 scalars, means over the kept vectors;
    - `update(vectors, indices, kept, counts)`: how the layer's own state learns from a batch, if it does; `counts` are
      those of all replicas.

    It sets `num_embeddings`, the number of codes.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask: Optional booleans `[batch, ...]` over the leading dimensions. What is masked is quantized like the rest,
            and touches no loss, no statistics and no codebook. A vector with a NaN or an infinity counts as masked.
        training: Whether to add losses and update statistics.
        return_indices: Whether to return `(quantized, indices)`. Defaults to `False`.

    Output shape:
        `[..., D]`, in the compute dtype; the indices are int32 `[...]`.
    """

    num_embeddings: int

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.code_counts = self.add_weight(
            shape=(self.num_embeddings,), initializer="zeros", dtype="int32", trainable=False, name="code_counts"
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def _check_input_shape(self, input_shape: tuple[int | None, ...]) -> int:
        """Returns the size of the last axis."""
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                f"`{self.__class__.__name__}` needs inputs of rank 2 or more with a known last axis. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        return input_shape[-1]

    def call(
        self, inputs: Tensor, mask: Tensor | None = None, training: bool | None = None, return_indices: bool = False
    ) -> Any:
        shape = ops.shape(inputs)
        # `[..., D]` -> `[N, D]`, in float32: squares of float16 overflow from 256 on.
        vectors = ops.reshape(ops.cast(inputs, "float32"), (-1, shape[-1]))
        kept = self._kept(vectors, shape[:-1], mask)
        if (seen := _SEEN.get()) is not None:
            seen.append((self, vectors, kept))
        vectors = self.project(vectors)
        indices = self.assign(vectors)
        codes = self.lookup(indices)
        learning = training and self.trainable
        if training or _SCORING.get():
            for loss in self.compute_losses(vectors, codes, kept):
                self.add_loss(loss)
        if learning or _COUNTING.get():
            counts = backend.sum_over_replicas(codebook.count_codes(indices, kept, self.num_embeddings))
            self.code_counts.assign_add(counts)
        if learning:
            self.update(ops.stop_gradient(vectors), indices, kept, counts)
        quantized = self.estimate(vectors, codes, bool(learning))
        quantized = ops.reshape(ops.cast(quantized, self.compute_dtype), shape)
        return (quantized, ops.reshape(indices, shape[:-1])) if return_indices else quantized

    def _kept(self, vectors: Tensor, leading: tuple, mask: Tensor | None) -> Tensor:
        """Which of the `[N, D]` vectors count: booleans `[N]`."""
        # The sum is finite where every element is, short of overflow, which must not reach the codebook either.
        kept = ops.isfinite(ops.sum(ops.square(ops.stop_gradient(vectors)), axis=-1))
        if mask is None:
            return kept
        mask = ops.cast(mask, "bool")
        mask = ops.reshape(mask, ops.shape(mask) + (1,) * (len(leading) - len(mask.shape)))
        return ops.logical_and(kept, ops.reshape(ops.broadcast_to(mask, leading), (-1,)))

    def project(self, vectors: Tensor) -> Tensor:
        return vectors

    def assign(self, vectors: Tensor) -> Tensor:
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        raise NotImplementedError

    def estimate(self, vectors: Tensor, codes: Tensor, learning: bool) -> Tensor:
        raise NotImplementedError

    def compute_losses(self, vectors: Tensor, codes: Tensor, kept: Tensor) -> list[Tensor]:
        return []

    def update(self, vectors: Tensor, indices: Tensor, kept: Tensor, counts: Tensor) -> None:
        pass

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns the int32 indices `[...]` of inputs `[..., D]`."""
        return self(inputs, training=False, return_indices=True)[1]

    def decode(self, indices: Tensor) -> Tensor:
        """Returns the vectors `[..., D]` of indices `[...]`, in the compute dtype.

        Raises:
            ValueError: If an index lies outside the codebook, or the layer has never seen an input.
        """
        if not self.built:
            raise ValueError(f"`{self.__class__.__name__}` must be built before it decodes. Received: built=False")
        indices = arguments.code_indices("indices", indices, self.num_embeddings)
        codes = self.lookup(ops.reshape(indices, (-1,)))
        return ops.reshape(ops.cast(codes, self.compute_dtype), (*ops.shape(indices), codes.shape[-1]))

    def reset_code_counts(self) -> None:
        """Sets `code_counts` to zero."""
        self.code_counts.assign(ops.zeros((self.num_embeddings,), dtype="int32"))

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Keras leaves it out, and training resumed from a checkpoint would draw other numbers.
        if hasattr(self, "seed_generator"):
            store["seed"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        # Asked for its keys, because a store of Keras's has no other way to tell them.
        names = set(store.keys())
        super().load_own_variables({name: store[name] for name in names - {"seed"}})
        if "seed" in names:
            self.seed_generator.state.assign(np.asarray(store["seed"]))

    @property
    def output(self) -> Any:
        # Keras gives every call of a layer in a functional model as many outputs as `output` has, and that is the first
        # call's. Called without indices and then with them, the second call would lack one.
        if not self._inbound_nodes:
            return super().output
        most = max(range(len(self._inbound_nodes)), key=lambda i: len(self._inbound_nodes[i].outputs))
        return self._get_node_attribute_at_index(most, "output_tensors", "output")

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> Any:
        # One for the quantized vectors, one for the indices: Keras pairs them with as many outputs as there are.
        return None if previous_mask is None else (previous_mask, previous_mask)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)

    def compute_output_spec(self, inputs: Tensor, mask=None, training=None, return_indices: bool = False) -> Any:
        # Inferred from `compute_output_shape`, the indices would be floats.
        quantized = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        indices = keras.KerasTensor(inputs.shape[:-1], dtype="int32")
        return (quantized, indices) if return_indices else quantized
