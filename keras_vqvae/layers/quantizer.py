"""The contract of every quantizer."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import index_shapes, input_checks
from keras_vqvae.layers.added_losses import AddedLosses
from keras_vqvae.layers.code_counts import CountedCodes
from keras_vqvae.layers.masks import valid_vectors
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.seeded_layer import SeededLayer
from keras_vqvae.ops import estimators
from keras_vqvae.types import Sizes, Tensor


class Quantizer(AddedLosses, CountedCodes, SeededLayer):
    """Base class of all quantizers: replaces each vector of the last axis by a code from a finite set.

    A subclass sets `num_embeddings`, the number of codes. It creates its weights in `build`, and calls
    `super().build(input_shape)` there. It implements these methods, which get float32 vectors `[N, D]` for any inputs:

    - `project(vectors)`: transforms vectors before quantization, for example to unit norm. Defaults to the identity.
    - `assign(vectors)`: returns the int32 indices of the codes, `[N]`. Alternatively `choose(vectors)`, which returns
      indices and codes.
    - `lookup(indices)`: returns the codes `[N, D]`, differentiable with respect to the codebook.
    - `estimate(vectors, codes, training)`: returns the output and defines the encoder's gradient. `training` is `False`
      in inference and for a frozen layer. Defaults to straight-through.
    - `compute_losses(record)`: returns float32 scalars by name, means over `record.valid`. Defaults to no losses.
    - `update(record, counts)`: updates the layer's own state in training. `counts` is how often each code was chosen,
      int32 `[K]`, or `None` if codes are not counted. Defaults to no update.

    A wrapper, a quantizer made of other quantizers, implements `quantize_vectors`, `lookup` and `index_shape`. It also
    implements `compute_output`, or gives its record the output. If it quantizes whole grids, it sets `quantizes_grids =
    True`, and also implements `index_axes` and `vector_axes`. Its `quantize_vectors` gets `[batch, *grid, D]`, and its
    `lookup` gets what `encode` returns.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask: Optional booleans `[batch, ...]` over the leading dimensions. Masked vectors are quantized like the
            others, but they are excluded from losses, statistics and codebook updates. A vector with a NaN or an
            infinity counts as masked.
        training: Whether to update statistics, and to add noise if the quantizer uses any. Losses are added either way.
        return_indices: Whether to return `(quantized, indices)`. Defaults to `False`.
        reverse: Whether `inputs` are indices to decode. `decode` sets it in functional models. Defaults to `False`.

    Output shape:
        `[..., D]`, in the compute dtype; the indices are int32 `[..., *index_shape]`.
    """

    min_index: int = 0
    """Smallest index that `decode` accepts: 0, or -1 if an index can mean "no code"."""
    has_fixed_codes: bool = False
    """Whether codes are fixed points within bounds. Each stage of a residual then gets finer codes."""
    supports_beam_search: bool = False
    """Whether a beam search may assign codes. The quantizer must take the code with the lowest squared error."""
    refines: bool = True
    """Whether codes can become as small as residuals, so that the quantizer can be a later stage of a residual."""
    quantizes_grids: bool = False
    """Whether the layer quantizes whole grids. Such a quantizer can only be the outermost wrapper."""
    stage: int | None = None
    """Number of residual stages before this quantizer. `None` outside of a residual."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self._dim = input_shape[-1]

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
        input_checks.last_axis(self, shape, dim=self._dim)
        axes = self.index_axes(shape[:-1])
        # `[..., D]` -> `[N, D]`, in float32: squares of float16 overflow from 256 on.
        vectors = ops.reshape(ops.cast(inputs, "float32"), (-1, shape[-1]))
        valid = valid_vectors(vectors, shape[:-1], mask)
        with backend.full_precision(vectors):
            # A quantizer of grids needs their shape.
            vectors = ops.reshape(vectors, shape) if self.quantizes_grids else vectors
            record = self.quantize_vectors(vectors, valid, bool(training), shape[0])
            # Output and losses are computed first: they may read the codebook, and the updates change it.
            quantized = ops.reshape(ops.cast(record.output, self.compute_dtype), shape)
            self.add_record(record)
            self.apply_updates(record)
        if not return_indices:
            return quantized
        return quantized, ops.reshape(ops.cast(record.indices, "int32"), (*axes, *self.index_shape))

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        # Not rematerialized. Under `keras.RematScope` a layer runs again for its gradient, which would update it twice.
        return layer_call

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes float32 vectors `[N, D]` from `batch_size` samples. `call` and wrappers use it.

        If `indices` `[N, *index_shape]` is given, these codes are used instead of searching. (The name is not
        `forward`, which `torch.nn.Module` reserves.)
        """
        vectors = self.project(vectors)
        indices, codes = self.choose(vectors) if indices is None else (indices, self.lookup(indices))
        return Record(self, vectors, valid, indices, codes, training)

    def compute_output(self, record: Record) -> Tensor:
        """Returns the output `[N, D]` of a record. It defines the encoder's gradient."""
        return self.estimate(record.vectors, record.codes, record.updates_state)

    def all_losses(self, record: Record) -> list[tuple[str, Tensor]]:
        """Returns the losses of a record and of its parts, with their names."""
        parts = [loss for part in record.parts for loss in part.quantizer.all_losses(part)]
        return [*parts, *self.compute_losses(record).items()]

    def copies_gradient(self, training: bool) -> bool:
        """Whether the output is straight-through: its value is the codes, and its gradient goes to the vectors only.

        `ResidualQuantizer` then copies the gradient once for all stages, instead of once per stage.
        """
        names = ("quantize_vectors", "compute_output", "project", "estimate")
        return all(getattr(type(self), name) is getattr(Quantizer, name) for name in names)

    def index_axes(self, axes: Sizes) -> Sizes:
        """Returns the axes of the indices before `index_shape`, given the axes of the inputs before the last one."""
        return axes

    def vector_axes(self, axes: Sizes) -> Sizes:
        """Returns the axes of the inputs before the last one, given the axes of the indices before `index_shape`."""
        return axes

    def bound(self, vectors: Tensor) -> Tensor:
        """Bounds vectors `[N, D]` to the range of the codes. A residual does this once, before its first stage."""
        return vectors

    def set_stage(self, stage: int) -> None:
        """Tells the quantizer that its inputs are the residuals of `stage` earlier stages."""
        self.stage = stage

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

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        return {}

    def update(self, record: Record, counts: Tensor | None) -> None:
        pass

    def adapt(self, vectors: Tensor, **keywords: Any) -> Tensor | None:
        raise ValueError(
            f"`{self.__class__.__name__}` has no codebook to adapt. Use it without `adapt`, or use a quantizer with a "
            f"codebook, such as `VectorQuantizer`. Received: self={self.name}"
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns the int32 indices `[..., *index_shape]` of inputs `[..., D]`."""
        return self(inputs, training=False, return_indices=True)[1]

    def decode(self, indices: Tensor) -> Tensor:
        """Returns the vectors `[..., D]` of indices `[..., *index_shape]`, in the compute dtype.

        Indices of only the first stages of a residual, or of only the first groups, are accepted, too. The missing
        indices are filled with -1, which means "no code".

        With a symbolic tensor, `decode` is a call of the layer. A model such as
        `keras.Model(codes, decoder(quantizer.decode(codes)))` then saves and exports the layer, and shares it with the
        encoder's model.

        Raises:
            ValueError: If the layer is not built, or an index is out of range. Compiled code cannot raise; there,
                indices are clipped to the valid range.
        """
        input_checks.check_built(self, "decode")
        return self(indices, reverse=True) if isinstance(indices, keras.KerasTensor) else self._decode(indices)

    def _decode(self, indices: Tensor) -> Tensor:
        indices = self.check_indices("indices", indices)
        axes = self.vector_axes(ops.shape(indices)[: len(indices.shape) - len(self.index_shape)])
        with backend.full_precision(indices):
            codes = self.lookup(indices if self.quantizes_grids else ops.reshape(indices, (-1, *self.index_shape)))
        return ops.reshape(ops.cast(codes, self.compute_dtype), (*axes, self._dim))

    def check_indices(self, name: str, indices: Tensor) -> Tensor:
        """Returns `indices` as an int32 tensor. Checks their range, and fills in -1 for missing stages or groups."""
        indices = validation.code_indices(name, indices, self.num_embeddings, self.min_index)
        index_shapes.leading_axes(name, indices.shape, self.index_shape)
        indices = index_shapes.completed(indices, self.index_shape)
        return validation.within_codebooks(name, indices, self.codebook_sizes, self.codebooks, self.index_shape)

    @property
    def output(self) -> Any:
        # Keras expects every call of a layer in a functional model to have as many outputs as `output`, which is the
        # output of the first call. If that call does not return indices, a later call could not. This returns the
        # output of the call with the most outputs.
        if not self._inbound_nodes:
            return super().output
        most = max(range(len(self._inbound_nodes)), key=lambda i: len(self._inbound_nodes[i].outputs))
        return self._get_node_attribute_at_index(most, "output_tensors", "output")

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
        # One mask for the quantized vectors and one for the indices. Without indices, Keras ignores the second mask.
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
        # By default Keras would give the indices the compute dtype, a float.
        if reverse:
            axes = self.vector_axes(index_shapes.leading_axes("indices", inputs.shape, self.index_shape))
            return keras.KerasTensor((*axes, self._dim), dtype=self.compute_dtype)
        input_checks.last_axis(self, inputs.shape, dim=self._dim)
        input_checks.check_channels_last(self, inputs)
        quantized = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        indices = keras.KerasTensor((*self.index_axes(inputs.shape[:-1]), *self.index_shape), dtype="int32")
        return (quantized, indices) if return_indices else quantized
