"""One step of a causal model: its layers applied to a part of a sequence, with states for the earlier parts."""

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NoReturn

import keras
from keras import layers, ops

from keras_vqvae.types import Tensor

POINTWISE = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout, layers.Identity),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
    *(layers.Dense, layers.Rescaling, layers.Concatenate, layers.LayerNormalization, layers.BatchNormalization),
)
"""Layers whose output at a step depends only on their inputs at that step, if they act along the channel axis."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A tensor within the step model, and where it lies in the tensor of the whole sequence.

    Args:
        tensor: The tensor, `[batch, steps, channels]`.
        lead: Number of its steps that belong to the part before.
        tail: Number of its steps that belong to the part after, and are still incomplete.
        rate: Number of its steps per step of the input.
        first: A function from the index of one of its steps to the index of the first input step that it depends on.
    """

    tensor: Tensor
    lead: int = 0
    tail: int = 0
    rate: Fraction = Fraction(1)
    first: Callable[[int], int] = int


class CausalStep:
    """Applies a causal model to a part of a sequence.

    The layers of a causal model pad at the start only. In a later part, the last steps of the part before take the
    place of the zeros, and nothing else has to be remembered. So the step is the model in which a state of `n` steps
    replaces each `ZeroPadding1D((n, 0))`. The state is an input of the step, and the new state is an output. All
    weights are shared.

    Args:
        name: `"encoder"` or `"decoder"`: the argument of `VQVAE` that `model` is.
        model: A built functional model, `Sequential` model or layer.
        inputs: Symbolic `[batch, steps, channels]`.

    Raises:
        ValueError: If a layer is not known to be causal. The message names it.
    """

    def __init__(self, name: str, model: keras.Layer, inputs: Tensor):
        self._name = name
        self._inputs = inputs
        self._units = [1]
        self.states: dict[str, Tensor] = {}
        """Symbolic inputs for the states, by name. At the start of a sequence, states are zeros."""
        self.new_states: dict[str, Tensor] = {}
        """Symbolic outputs: the states after this part, by the same names."""
        self.end_padding = 0
        """Number of zeros that the model appends to the sequence."""
        span = self._apply(model, Span(inputs))
        self.outputs: Tensor = span.tensor
        self.unit = math.lcm(*self._units)
        """The number of steps of a part must be a multiple of this."""
        self.made = int(span.rate * self.unit)
        """Number of output steps per `unit` of input steps."""
        self.receptive_field = self.unit - span.first(0)
        """Number of input steps that an output step depends on."""
        if span.lead or span.tail:
            self._refuse(model, "its output has extra steps, which `Cropping1D` must remove")

    def _apply(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if type(layer) is keras.Sequential:
            (span,) = args
            for each in layer.layers:
                span = self._apply(each, span)
            return span
        if isinstance(layer, keras.Model) and type(layer).__name__ == "Functional":
            # Keras has no public way to run a model's graph with functions in place of its layers.
            return layer._run_through_graph(args, lambda part: functools.partial(self._apply, part))
        spans = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Span)]
        if len({(span.lead, span.tail, span.rate) for span in spans}) != 1:
            self._refuse(layer, "its inputs differ in their number of steps")
        span = spans[0]
        if type(layer) is layers.ZeroPadding1D:
            result = self._padded(layer, span)
        elif type(layer) is layers.Cropping1D:
            result = self._cropped(layer, span)
        elif type(layer) is layers.Conv1D and layer.data_format == "channels_last":
            result = self._convolved(layer, span)
        elif type(layer) is layers.Conv1DTranspose and layer.data_format == "channels_last":
            result = self._upsampled(layer, span)
        elif type(layer) in POINTWISE and set(_axes(layer)) <= {-1, 2}:
            args, kwargs = keras.tree.map_structure(
                lambda leaf: leaf.tensor if isinstance(leaf, Span) else leaf, (args, kwargs)
            )
            first = functools.cache(lambda step: min(each.first(step) for each in spans))
            result = dataclasses.replace(span, tensor=layer(*args, **kwargs), first=first)
        else:
            self._refuse(layer, "it is not one of the layers that are known to be causal")
        self._units.append(result.rate.denominator)
        return result

    def _refuse(self, layer: Any, reason: str) -> NoReturn:
        raise ValueError(
            f"`{self._name}` must be causal for a stream, like those that `build_conv_{self._name}(..., causal=True)` "
            f"builds. The layer `{layer.name}` is not allowed: {reason}. "
            f"Received: {self._name} with a layer {type(layer).__name__}"
        )

    def _remember(self, span: Span, steps: int) -> Span:
        """Prepends the last `steps` steps of the part before, which become a state."""
        if not steps:
            return span
        # At least float32, because some backends cannot make NumPy arrays of smaller dtypes.
        dtype = keras.backend.result_type(span.tensor.dtype, "float32")
        name = f"state_{len(self.states)}"
        state = keras.Input((steps, span.tensor.shape[-1]), dtype=dtype, name=name)
        tensor = ops.concatenate([_cast(state, span.tensor.dtype), span.tensor], axis=1)
        self.states[name] = state
        self.new_states[name] = _cast(tensor[:, -steps:], dtype)
        return dataclasses.replace(span, tensor=tensor, lead=steps)

    def _padded(self, layer: layers.ZeroPadding1D, span: Span) -> Span:
        start, end = layer.padding
        if span.lead or span.tail:
            self._refuse(layer, "it pads a sequence that is already padded")
        if end and span.tensor is not self._inputs:
            self._refuse(layer, "only the input can be padded at its end")
        self.end_padding = max(self.end_padding, end)
        return self._remember(span, start)

    def _cropped(self, layer: layers.Cropping1D, span: Span) -> Span:
        if tuple(layer.cropping) != (span.lead, span.tail):
            self._refuse(layer, f"it must be Cropping1D({(span.lead, span.tail)})")
        tensor = layer(span.tensor) if any(layer.cropping) else span.tensor
        return dataclasses.replace(span, tensor=tensor, lead=0, tail=0)

    def _convolved(self, layer: layers.Conv1D, span: Span) -> Span:
        (stride,) = layer.strides
        width = (layer.kernel_size[0] - 1) * layer.dilation_rate[0] + 1
        own = layer.padding == "causal" and not span.lead
        if own:
            span = self._remember(span, width - 1)
        pads_nothing = own or layer.padding == "valid" or width == stride == 1
        if not pads_nothing or (span.lead, span.tail) != (width - stride, 0):
            self._refuse(
                layer,
                f"with strides of {stride} it needs ZeroPadding1D(({width - stride}, 0)) in front of it, and "
                'padding="valid"',
            )
        tensor = layer(span.tensor)
        return Span(
            # A layer with `padding="causal"` pads again.
            tensor[:, width - 1 :] if own and width > 1 else tensor,
            rate=span.rate / stride,
            first=functools.cache(lambda step: span.first((step + 1) * stride - width)),
        )

    def _upsampled(self, layer: layers.Conv1DTranspose, span: Span) -> Span:
        (stride,), (width,) = layer.strides, layer.kernel_size
        before, tail = (width - 1) // stride, max(width - stride, 0)
        plain = layer.dilation_rate == (1,) and layer.output_padding is None
        if not plain or not (layer.padding == "valid" or width == stride) or span.tail or span.lead < before:
            self._refuse(
                layer,
                f'it needs padding="valid", ZeroPadding1D(({before}, 0)) in front of it and '
                f"Cropping1D(({before * stride}, {tail})) after it",
            )
        return Span(
            layer(span.tensor),
            lead=span.lead * stride,
            tail=tail,
            rate=span.rate * stride,
            first=functools.cache(lambda step: span.first(-((width - 1 - step) // stride))),
        )


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    # Skipped if it would do nothing, because every operation costs time in every step.
    return tensor if tensor.dtype == dtype else ops.cast(tensor, dtype)


def _axes(layer: keras.Layer) -> list[int]:
    """The `axis` of a layer, such as a normalization, as a list."""
    axis = getattr(layer, "axis", -1)
    return list(axis) if isinstance(axis, list | tuple) else [axis]
