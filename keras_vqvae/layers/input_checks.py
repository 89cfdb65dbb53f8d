"""Checks of the inputs of a quantizer, and of calls before it is built."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_vqvae.types import Tensor

if TYPE_CHECKING:
    from keras_vqvae.layers.quantizer import Quantizer

KEEP_AXES = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
"""Layers whose outputs have the axes of their inputs, in the same order."""


def last_axis(
    layer: keras.Layer, input_shape: tuple[int | None, ...], argument: str | None = None, dim: int | None = None
) -> int:
    """Returns the size of the inputs' last axis. Raises an error if `dim` is given and differs from it.

    Args:
        layer: The layer that gets the inputs.
        input_shape: Shape of the inputs.
        argument: Name of the constructor argument that sets `dim`. `None` if the layer was built for `dim`.
        dim: Required size of the last axis, or `None` for any size.
    """
    if len(input_shape) < 2 or input_shape[-1] is None:
        raise ValueError(
            f"`{type(layer).__name__}` needs inputs of rank 2 or more whose last axis has a known size. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    if dim not in (None, input_shape[-1]):
        if argument is not None:
            raise ValueError(
                f"`{argument}` must be equal to the size of the inputs' last axis, {input_shape[-1]}. "
                f"Received: {argument}={dim}, input_shape={tuple(input_shape)}"
            )
        raise ValueError(
            f"`{layer.name}` was built for inputs whose last axis is {dim}. Received: input_shape={tuple(input_shape)}"
        )
    return input_shape[-1]


def check_built(layer: keras.Layer, name: str) -> None:
    """Raises an error if a layer is not built and so has no weights, which its attribute or method `name` needs."""
    if not layer.built:
        raise ValueError(
            f"`{type(layer).__name__}` must be built before `{name}`. Call it on data, or call `build`, first. "
            "Received: built=False"
        )


def vectors_to_adapt(quantizer: "Quantizer", vectors: Tensor) -> Tensor:
    """Returns the vectors that `adapt` gets, as an array. Builds the quantizer for them if it is not built."""
    vectors = vectors if hasattr(vectors, "shape") else np.asarray(vectors, "float32")
    shape = tuple(vectors.shape)
    if len(shape) < 2:
        raise ValueError(f"`vectors` must be floats [..., D] of rank 2 or more. Received: vectors of shape {shape}")
    if not quantizer.built:
        quantizer.build(shape)
    if shape[-1] != quantizer._dim:
        raise ValueError(
            f"`vectors` must have the last axis that `{quantizer.name}` was built for, {quantizer._dim}. "
            f"Received: vectors of shape {shape}"
        )
    return vectors


def check_channels_last(quantizer: "Quantizer", inputs: keras.KerasTensor) -> None:
    """Raises an error if symbolic inputs come from a layer whose channels are not the last axis.

    A quantizer would take the last axis, a width or a number of steps, for the channels.
    """
    source = _source(inputs)
    if len(inputs.shape) > 2 and getattr(source, "data_format", None) == "channels_first":
        order = (*range(2, len(inputs.shape)), 1)
        raise ValueError(
            f"`{quantizer.name}` quantizes vectors along the last axis, and the channels of `{source.name}` are the "
            f"axis after the batch. Put `keras.layers.Permute({order})` before the quantizer. "
            f"Received: data_format='channels_first', input_shape={tuple(inputs.shape)}"
        )


def _source(x: Any) -> Any:
    """Returns the layer that made the axes of a symbolic tensor, or `None` if it is not known."""
    history = getattr(x, "_keras_history", None)
    if history is None:
        return None
    layer = history.operation
    if isinstance(layer, keras.Model):
        outputs = getattr(layer, "outputs", None)
        return _source(outputs[history.tensor_index]) if outputs else None
    if isinstance(layer, KEEP_AXES):
        return _source(layer._inbound_nodes[history.node_index].input_tensors[0])
    return layer
