"""Quantization in another number of dimensions, mostly fewer."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.quantizer_outputs import QuantizerOutputs, once
from keras_vqvae.ops import geometry
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class ProjectedQuantizer(Quantizer):
    """Maps vectors linearly to `dim` dimensions, quantizes them there, and maps the codes back.

    Both maps are trained, with biases. They begin as an orthogonal projection onto `dim` random directions.

    In few dimensions more codes are in use; and quantizers whose codes have a fixed size fit any encoder.

    Args:
        quantizer: The quantizer in between, not built: a copy of it is used.
        dim: Size of its codes.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., D]`; the indices are those of the inner quantizer.

    Raises:
        ValueError: If `quantizer` is not a quantizer or built already, or `dim` is not positive.

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
        self.lowest_index = self.quantizer.lowest_index
        self.listed = self.quantizer.listed

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = self._check_input_shape(input_shape)
        # Weights and no `Dense` layers, which `model.quantize("int8")` would take for its own. float32 under every
        # policy, as all that a quantizer computes.
        keywords = {"dtype": "float32", "autocast": False}
        self.down_kernel = self.add_weight(
            shape=(dim, self.dim), initializer="orthogonal", name="down_kernel", **keywords
        )
        self.down_bias = self.add_weight(shape=(self.dim,), initializer="zeros", name="down_bias", **keywords)
        self.up_kernel = self.add_weight(
            shape=(self.dim, dim), initializer=self._initial_up_kernel, name="up_kernel", **keywords
        )
        self.up_bias = self.add_weight(shape=(dim,), initializer="zeros", name="up_bias", **keywords)
        self.quantizer.build((None, self.dim))
        super().build(input_shape)

    def _initial_up_kernel(self, shape: tuple[int, int], dtype: str) -> Tensor:
        # A projection takes away what it sees and nothing else, so a later stage of a residual starts from the rest.
        # Copied, because a transposed tensor shares its memory on PyTorch.
        return ops.cast(ops.copy(ops.transpose(ops.convert_to_tensor(self.down_kernel))), dtype)

    def down(self, vectors: Tensor) -> Tensor:
        """`[N, D]` -> `[N, dim]`."""
        return backend.matmul(vectors, ops.convert_to_tensor(self.down_kernel)) + self.down_bias

    def up(self, codes: Tensor) -> Tensor:
        """`[N, dim]` -> `[N, D]`."""
        return backend.matmul(codes, ops.convert_to_tensor(self.up_kernel)) + self.up_bias

    def quantize_vectors(
        self, vectors: Tensor, kept: Tensor, training: bool, samples: Tensor, indices: Tensor | None = None
    ) -> QuantizerOutputs:
        """As for every `Quantizer`."""
        chosen = () if indices is None else (indices,)
        outputs = self.quantizer.quantize_vectors(self.down(geometry.finite(vectors)), kept, training, samples, *chosen)
        updates = [*outputs.updates, (self, vectors, outputs.indices, kept)]
        return QuantizerOutputs(
            once(lambda: self.up(outputs.quantized())), self.up(outputs.codes), outputs.indices, outputs.losses, updates
        )

    def lookup(self, indices: Tensor) -> Tensor:
        return self.up(self.quantizer.lookup(indices))

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Fills the inner codebook by k-means of the projected vectors; see `kmeans`."""
        if not self.built:
            self.build(tuple(vectors.shape))
        self.quantizer.adapt(self.down(ops.convert_to_tensor(vectors, dtype="float32")), **keywords)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "quantizer": serialization.saved(self.template.quantizer),
            "dim": self.dim,
        }
