"""Quantization of linear projections, usually to fewer dimensions."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import input_checks, wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.resized import ResizableWrapper
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class ProjectedQuantizer(ResizableWrapper):
    """Maps vectors linearly to `dim` dimensions, quantizes them there, and maps the codes back.

    Both maps are trained, with biases. They begin as an orthogonal projection onto `dim` random directions.

    Fewer dimensions bring more codes into use. A projection also fits quantizers with codes of a fixed size, such as
    `FiniteScalarQuantizer`, to any encoder.

    Args:
        quantizer: The inner quantizer, not built. The layer uses a copy of it.
        dim: Size of the inner quantizer's codes.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., D]`. The indices have the shape of the inner quantizer's indices.

    Raises:
        ValueError: If `quantizer` is not a quantizer, or is built already, or `dim` is not positive.

    Example:

    >>> layer = ProjectedQuantizer(FiniteScalarQuantizer(levels=(8, 5, 5, 5)), dim=4)
    >>> layer(keras.random.normal((2, 5, 64))).shape == (2, 5, 64)
    True

    Reference:

    - [Yu et al., 2021](https://arxiv.org/abs/2110.04627), section 3.2
    """

    def __init__(self, quantizer: Quantizer, dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        self.dim = validation.positive_int("dim", dim)
        (self.quantizer,) = wrappers.copies(self, 1)
        self.num_embeddings = self.quantizer.num_embeddings
        self.index_shape = self.quantizer.index_shape
        self.min_index = self.quantizer.min_index
        self.supports_beam_search = self.quantizer.supports_beam_search

    def inner_quantizers(self) -> Sequence[Quantizer]:
        return (self.quantizer,)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.quantizer.codebook_sizes

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = input_checks.last_axis(self, input_shape)
        # Weights rather than `Dense` layers, which `model.quantize("int8")` would convert.
        self.down_kernel = self.add_float32("down_kernel", (dim, self.dim), "orthogonal", trainable=True)
        self.down_bias = self.add_float32("down_bias", (self.dim,), trainable=True)
        self.up_kernel = self.add_float32("up_kernel", (self.dim, dim), self._initial_up_kernel, trainable=True)
        self.up_bias = self.add_float32("up_bias", (dim,), trainable=True)
        self.quantizer.build((None, self.dim))
        super().build(input_shape)

    def _initial_up_kernel(self, shape: tuple[int, int], dtype: str) -> Tensor:
        # The transpose makes the two maps an orthogonal projection. A residual then loses only its part in these
        # directions, and the next stage quantizes the other directions.
        # A copy, because a transposed tensor shares its memory on PyTorch.
        return ops.cast(ops.copy(ops.transpose(ops.convert_to_tensor(self.down_kernel))), dtype)

    def down(self, vectors: Tensor) -> Tensor:
        """Maps vectors to the inner quantizer's dimensions: `[N, D]` -> `[N, dim]`."""
        return backend.matmul(vectors, ops.convert_to_tensor(self.down_kernel)) + self.down_bias

    def up(self, codes: Tensor) -> Tensor:
        """Maps inner codes back: `[N, dim]` -> `[N, D]`."""
        return backend.matmul(codes, ops.convert_to_tensor(self.up_kernel)) + self.up_bias

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes the vectors in `dim` dimensions."""
        projected = self.down(backend.zero_nonfinite(vectors))
        inner = self.quantizer.quantize_vectors(projected, valid, training, batch_size, indices)
        return Record(self, vectors, valid, inner.indices, self.up(inner.codes), training, (inner,))

    def compute_output(self, record: Record) -> Tensor:
        return self.up(record.parts[0].output)

    def lookup(self, indices: Tensor) -> Tensor:
        return self.up(self.quantizer.lookup(indices))

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Initializes the inner codebook with k-means of the projected vectors.

        It takes outputs of the encoder `[..., D]`, and the other arguments of `CodebookQuantizer.adapt`.
        """
        vectors = input_checks.vectors_to_adapt(self, vectors)
        self.quantizer.adapt(self.down(ops.convert_to_tensor(vectors, dtype="float32")), **keywords)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "quantizer": serialization.saved(self.template.quantizer), "dim": self.dim}
