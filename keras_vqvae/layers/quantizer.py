"""The contract of every quantizer."""

import functools
import math
from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import index_shapes
from keras_vqvae.layers.lazy_losses import LazyLosses
from keras_vqvae.layers.masks import kept_vectors
from keras_vqvae.layers.own_weights import OwnWeights
from keras_vqvae.layers.quantizer_outputs import Lazy, QuantizerOutputs, once
from keras_vqvae.ops import codebook, estimators
from keras_vqvae.types import Sizes, Tensor

MOST_COUNTED = 1 << 24
"""A quantizer of more codes than this keeps no `code_counts`, unless its codes are weights."""


class Quantizer(LazyLosses, OwnWeights):
    """Base class of all quantizers: replaces each vector of the last axis by a code out of a finite set.

    A subclass sets `num_embeddings`, the number of codes, creates its weights in `build`, calls
    `super().build(input_shape)` there, and defines, on float32 vectors `[N, D]` whatever the input's rank and dtype:

    - `project(vectors)`: what is quantized in their place, such as vectors of length 1; by default the vectors;
    - `assign(vectors)`: the codes' int32 indices, `[N]`; or `choose(vectors)`, the codes `[N, D]` with them;
    - `lookup(indices)`: the codes, `[N, D]`, with the gradient of the codebook;
    - `estimate(vectors, codes, training)`: the output, with the gradient of the encoder; by default
      straight-through;
    - `compute_losses(vectors, codes, quantized, kept)`: float32 scalars over the kept; `quantized()` is the output;
    - `update(vectors, indices, kept, counts)`: updates the layer's own state; `counts` are those of all replicas.

    A wrapper of other quantizers defines `quantize_vectors`, `lookup` and `index_shape`; one `of_grids`, which takes
    inputs `[batch, *grid, D]` as a whole and no other leading dimensions, `index_axes` and `vector_axes`, too.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask: Optional booleans `[batch, ...]` over the leading dimensions. What is masked is quantized like the rest,
            and touches no loss, no statistics and no codebook. A vector with a NaN or an infinity counts as masked.
        training: Whether to update statistics and draw where the quantizer draws. Losses are added either way.
        return_indices: Whether to return `(quantized, indices)`. Defaults to `False`.
        reverse: Whether `inputs` are indices to decode: what `decode` is in functional models. Defaults to `False`.

    Output shape:
        `[..., D]`, in the compute dtype; the indices are int32 `[..., *index_shape]`.
    """

    num_embeddings: int
    index_shape: tuple[int, ...] = ()
    """The shape of one vector's indices: `()`, or an axis for each wrapper."""
    lowest_index: int = 0
    """-1 where an index may stand for no code."""
    bounded: bool = False
    """Whether codes lie at fixed places within bounds, and so must get finer from level to level of a residual."""
    listed: bool = False
    """Whether its codes stand in a list of which any may be taken for a vector, as a beam search does."""
    refines: bool = True
    """Whether its codes can have any length, so that it can quantize what other stages leave."""
    has_codebook: bool = False
    """Whether its codes are weights. They take more memory than `code_counts` do, so there are always some."""
    of_grids: bool = False
    """Whether it quantizes grids rather than vectors, and so never within another one."""
    codebooks: tuple[int, ...] | None = None
    """The codebook of each of a sample's indices, as its place in `codebook_shape`; `None` where each has its own."""
    depth: int | None = None
    """How many levels of a residual lie before this quantizer; `None` outside of a residual."""
    count_in_inference: bool = False
    """Whether `code_counts` count in inference, too; set for an evaluation, as `CodebookMonitor` does."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.code_counts: keras.Variable | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        shape = (*self.codebook_shape, self.num_embeddings)
        if self.has_codebook or math.prod(shape) <= MOST_COUNTED:
            self.code_counts = self.add_weight(shape, "zeros", backend.COUNTER, trainable=False, name="code_counts")
        self._dim = input_shape[-1]

    def _check_input_shape(
        self, input_shape: tuple[int | None, ...], argument: str | None = None, dim: int | None = None
    ) -> int:
        """Returns the size of the last axis, which must be `dim`, if given: an argument's, or that it was built for."""
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                f"`{self.__class__.__name__}` needs inputs of rank 2 or more with a known last axis. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        if dim not in (None, input_shape[-1]):
            if argument is not None:
                raise ValueError(
                    f"`{argument}` must be the size of the inputs' last axis. "
                    f"Received: {argument}={dim}, input_shape={tuple(input_shape)}"
                )
            raise ValueError(
                f"`{self.name}` was built for inputs whose last axis is {dim}. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        return input_shape[-1]

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        return_indices: bool = False,
        reverse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if reverse:
            return self._decode(inputs)
        shape = ops.shape(inputs)
        self._check_input_shape(shape, dim=self._dim)
        axes = self.index_axes(shape[:-1])
        # `[..., D]` -> `[N, D]`, in float32: squares of float16 overflow from 256 on.
        vectors = ops.reshape(ops.cast(inputs, "float32"), (-1, shape[-1]))
        kept = kept_vectors(vectors, shape[:-1], mask)
        with backend.full_precision(vectors):
            outputs = self.quantize_vectors(vectors, kept, bool(training), shape[0])
            self.add_losses(vectors, outputs.losses, bool(training))
            self.apply_updates(outputs.updates, bool(training))
            quantized = ops.reshape(ops.cast(outputs.quantized(), self.compute_dtype), shape)
        indices = ops.reshape(outputs.indices, (*axes, *self.index_shape))
        return (quantized, indices) if return_indices else quantized

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        # Under `keras.RematScope` a layer runs again for its gradient, and would be updated twice.
        return layer_call

    def quantize_vectors(
        self, vectors: Tensor, kept: Tensor, training: bool, samples: Tensor, indices: Tensor | None = None
    ) -> QuantizerOutputs:
        """Quantizes float32 vectors `[N, D]` of `samples` batch entries; `call` and wrappers use it.

        If `indices` is given, these codes are used instead of searching; only a `listed` quantizer accepts it. (The
        name is not `forward`, which `torch.nn.Module` reserves.)
        """
        vectors = self.project(vectors)
        indices, codes = self.choose(vectors) if indices is None else (indices, self.lookup(indices))
        quantized = once(lambda: self.estimate(vectors, codes, training and self.trainable))
        losses = functools.partial(self.compute_losses, vectors, codes, quantized, kept)
        return QuantizerOutputs(quantized, codes, indices, losses, [(self, ops.stop_gradient(vectors), indices, kept)])

    def copies_gradient(self, training: bool) -> bool:
        """Whether the output is the codes, with its gradient copied to the vectors and to nothing else.

        `ResidualQuantizer` then copies the gradient once for all stages, which costs least.
        """
        names = ("quantize_vectors", "project", "estimate")
        return all(getattr(type(self), name) is getattr(Quantizer, name) for name in names)

    def index_axes(self, axes: Sizes) -> Sizes:
        """The indices' axes before `index_shape`, given the inputs' before the last."""
        return axes

    def vector_axes(self, axes: Sizes) -> Sizes:
        """The inverse."""
        return axes

    def bound(self, vectors: Tensor) -> Tensor:
        """What vectors become, once, before the first level of a residual."""
        return vectors

    @property
    def codebook_shape(self) -> tuple[int, ...]:
        """The shape of the codebooks that `code_counts` tells apart: `()`, or an axis for each wrapper."""
        return self.index_shape

    def count_codes(self, indices: Tensor, kept: Tensor | None = None) -> Tensor:
        """Returns how often each code of each codebook was chosen, int32 `[*codebook_shape, num_embeddings]`.

        Args:
            indices: Integers `[..., *index_shape]`. Negative ones do not count.
            kept: Booleans `[N]`, which vectors count. Defaults to `None`: all of them.
        """
        shape = (*self.codebook_shape, self.num_embeddings)
        if kept is not None and not self.index_shape:
            # No index is negative.
            if self.codebooks is not None:
                # Each codebook in a range of its own.
                starts = tuple(self.num_embeddings * number for number in self.codebooks)
                indices = ops.reshape(indices, (-1, len(starts))) + backend.constants(starts, indices)
                indices = ops.reshape(indices, (-1,))
            return ops.reshape(codebook.count_codes(indices, kept, math.prod(shape)), shape)
        # `[..., *index_shape]` -> `[N, Q]`
        indices = ops.reshape(indices, (-1, math.prod(self.index_shape)))
        counted = indices >= 0 if kept is None else ops.logical_and(ops.expand_dims(kept, -1), indices >= 0)
        if self.codebooks is not None:
            indices, counted = (ops.reshape(x, (-1, len(self.codebooks))) for x in (indices, counted))
        return ops.reshape(codebook.count_columns(indices, counted, self.num_embeddings, self.codebooks), shape)

    def set_depth(self, depth: int) -> None:
        """Makes this quantizer one of what so many levels of a residual left."""
        self.depth = depth

    def project(self, vectors: Tensor) -> Tensor:
        return vectors

    def assign(self, vectors: Tensor) -> Tensor:
        raise NotImplementedError

    def choose(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return (indices := self.assign(vectors)), self.lookup(indices)

    def lookup(self, indices: Tensor) -> Tensor:
        raise NotImplementedError

    def estimate(self, vectors: Tensor, codes: Tensor, training: bool) -> Tensor:
        return estimators.straight_through(vectors, codes)

    def compute_losses(self, vectors: Tensor, codes: Tensor, quantized: Lazy, kept: Tensor) -> list[Tensor]:
        return []

    def update(self, vectors: Tensor, indices: Tensor, kept: Tensor, counts: Tensor) -> None:
        pass

    def adapt(self, vectors: Tensor, **keywords: Any) -> Tensor | None:
        raise ValueError(f"`{self.__class__.__name__}` has no codebook to adapt. Received: self={self.name}")

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns the int32 indices `[..., *index_shape]` of inputs `[..., D]`."""
        return self(inputs, training=False, return_indices=True)[1]

    def decode(self, indices: Tensor) -> Tensor:
        """Returns the vectors `[..., D]` of indices `[..., *index_shape]`, in the compute dtype.

        The indices of the first stages of a residual, or of the first groups, decode as if those that are missing were
        -1, which is no code.

        On a symbolic tensor it is a call of this layer, so that `keras.Model(codes, decoder(quantizer.decode(codes)))`
        shares the layer with the model that made the codes, saves it and exports it.

        Raises:
            ValueError: If an index lies outside the codebook, or the layer has never seen an input. In a compiled
                function, where it cannot be known, the index is moved to the nearest one inside.
        """
        if not self.built:
            raise ValueError(f"`{self.__class__.__name__}` must be built before it decodes. Received: built=False")
        return self(indices, reverse=True) if isinstance(indices, keras.KerasTensor) else self._decode(indices)

    def _decode(self, indices: Tensor) -> Tensor:
        indices = self.check_indices("indices", indices)
        axes = self.vector_axes(ops.shape(indices)[: len(indices.shape) - len(self.index_shape)])
        with backend.full_precision(indices):
            codes = self.lookup(ops.reshape(indices, (-1, *self.index_shape)))
        return ops.reshape(ops.cast(codes, self.compute_dtype), (*axes, self._dim))

    def check_indices(self, name: str, indices: Tensor) -> Tensor:
        """Returns `indices` as an int32 tensor inside the codebook, with -1 for stages or groups that are left out."""
        indices = validation.code_indices(name, indices, self.num_embeddings, self.lowest_index)
        index_shapes.leading_axes(name, indices.shape, self.index_shape)
        return index_shapes.completed(indices, self.index_shape)

    def reset_code_counts(self) -> None:
        """Sets `code_counts` to zero.

        There are none before the layer is built, nor of more than 2^24 codes that are not weights.
        """
        if self.code_counts is not None:
            self.code_counts.assign(ops.zeros(self.code_counts.shape, self.code_counts.dtype))

    @property
    def output(self) -> Any:
        # Keras gives every call of a layer in a functional model as many outputs as `output` has, and that is the first
        # call's. Called without indices and then with them, the second call would lack one.
        if not self._inbound_nodes:
            return super().output
        most = max(range(len(self._inbound_nodes)), key=lambda i: len(self._inbound_nodes[i].outputs))
        return self._get_node_attribute_at_index(most, "output_tensors", "output")

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
        # One for the quantized vectors, one for the indices: Keras pairs them with as many outputs as there are.
        return None if previous_mask is None else (previous_mask, previous_mask)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def compute_output_spec(
        self,
        inputs: keras.KerasTensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        return_indices: bool = False,
        reverse: bool = False,
    ) -> keras.KerasTensor | tuple[keras.KerasTensor, keras.KerasTensor]:
        # Inferred from `compute_output_shape`, the indices would be floats.
        if reverse:
            axes = self.vector_axes(index_shapes.leading_axes("indices", inputs.shape, self.index_shape))
            return keras.KerasTensor((*axes, self._dim), dtype=self.compute_dtype)
        self._check_input_shape(inputs.shape, dim=self._dim)
        quantized = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        indices = keras.KerasTensor((*self.index_axes(inputs.shape[:-1]), *self.index_shape), dtype="int32")
        return (quantized, indices) if return_indices else quantized
