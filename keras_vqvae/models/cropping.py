"""Crops reconstructions to the size of the input, if a decoder outputs multiples of its stride."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.types import Sizes, Tensor

PROBES = (1009, 1013, 1019)
"""Sizes to try on each axis: primes, so they are multiples of no stride."""


class Cropping:
    """Crops the ends of a decoder's outputs, along the axes where strides have rounded the size of the input up.

    There are no masks to crop, because Keras's layers with strides drop them.

    Args:
        axes: The axes to crop for each output, as `padded_axes` returns them.
    """

    def __init__(self, axes: Sequence[tuple[int, ...]] = ()):
        self.axes = axes if any(axes) else ()

    def check(self, name: str, inputs: Any) -> None:
        """Raises a `ValueError` if inputs have size 0 along an axis that may be cropped."""
        shape = getattr(inputs, "shape", ())
        if any(size == 0 and any(axis in axes for axes in self.axes) for axis, size in enumerate(shape)):
            raise ValueError(f"`{name}` must not be empty along any axis. Received: {name} of shape {tuple(shape)}")

    def to_inputs(self, outputs: Any, inputs: Any) -> Any:
        """Crops outputs to the size of the inputs."""
        return self._crop(outputs, ops.shape(inputs)) if self.axes else outputs

    def to_size(self, outputs: Any, size: int | Sequence[int]) -> Any:
        """Crops outputs to `size`: an integer, or one integer for each axis that can be cropped."""
        axes = max(self.axes, key=len, default=())
        if not axes:
            raise ValueError(
                "`size` must be None for this model: its encoder and decoder have fixed sizes or no strides. "
                f"Received: size={size!r}"
            )
        sizes = validation.positive_ints("size", size if hasattr(size, "__iter__") else [size] * len(axes))
        if len(sizes) != len(axes):
            raise ValueError(f"`size` must be an integer or a sequence of length {len(axes)}. Received: size={size!r}")
        full = next(o.shape for o, own in zip(keras.tree.flatten(outputs), self.axes, strict=True) if own == axes)
        if any(each > full[axis] for axis, each in zip(axes, sizes, strict=True)):
            most = tuple(full[axis] for axis in axes)
            raise ValueError(f"`size` must be at most {most}, the size of the decoded codes. Received: size={size!r}")
        return self._crop(outputs, dict(zip(axes, sizes, strict=True)))

    def _crop(self, outputs: Any, sizes: Sizes | Mapping[int, int]) -> Any:
        def cropped(output: Tensor, axes: tuple[int, ...]) -> Tensor:
            slices = [slice(sizes[axis] if axis in axes else None) for axis in range(len(output.shape))]
            return output[tuple(slices)] if axes else output

        flat = zip(keras.tree.flatten(outputs), self.axes, strict=True)
        return keras.tree.pack_sequence_as(outputs, [cropped(*each) for each in flat])


def padded_axes(
    encoder: keras.Layer, decoder: keras.Layer, inputs: Any, output_shapes: Sequence[Sizes]
) -> list[tuple[int, ...]]:
    """Returns, for each output of the decoder, the axes whose size is the input's, rounded up to a stride's multiple.

    To find them, it tries a size that is a multiple of no stride, and then the size of that output, which must stay the
    same. The second trial fails for a decoder whose stride is larger than the encoder's.

    Args:
        encoder: A built encoder.
        decoder: A built decoder.
        inputs: Symbolic inputs of the encoder. Only axes of size `None` are tried, and only if there is one input.
        output_shapes: Shapes of the decoder's outputs.
    """
    none: list[tuple[int, ...]] = [()] * len(output_shapes)
    if not isinstance(inputs, keras.KerasTensor):
        return none
    unknown = [axis for axis, size in enumerate(inputs.shape) if axis and size is None][: len(PROBES)]
    outputs = [
        [axis for axis in unknown if len(shape) == len(inputs.shape) and shape[axis] is None] for shape in output_shapes
    ]
    if not any(outputs):
        return none

    def made(sizes: dict[int, int]) -> list[Sizes]:
        shape = [sizes.get(axis, size) for axis, size in enumerate(inputs.shape)]
        vectors = encoder.compute_output_spec(keras.KerasTensor(shape, inputs.dtype))
        return [tuple(output.shape) for output in keras.tree.flatten(decoder.compute_output_spec(vectors))]

    probe = dict(zip(unknown, PROBES, strict=False))
    # If a layer refuses these sizes, nothing is known about its stride, and nothing is cropped.
    with contextlib.suppress(Exception):
        found = []
        for axes, shape, number in zip(outputs, made(probe), range(len(outputs)), strict=True):
            larger = [axis for axis in axes if shape[axis] > probe[axis]]
            again = made({**probe, **{axis: shape[axis] for axis in larger}})[number] if larger else shape
            found.append(tuple(axis for axis in larger if again[axis] == shape[axis]))
        return found
    return none
