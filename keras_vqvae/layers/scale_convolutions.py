"""The convolutions that refine the scales of `MultiScaleQuantizer`, some of them shared by several scales."""

from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


class ScaleConvolutions:
    """`x + conv(x) + bias` with a convolution over 3 elements an axis, 0 at the start, for each scale.

    Args:
        convolution: `False` for none, `True` for one that all scales share, or the number of each scale's convolution.
        num_scales: How many scales there are.
    """

    def __init__(self, convolution: object, num_scales: int):
        self.given: bool | tuple[int, ...]
        if hasattr(convolution, "__iter__") and not isinstance(convolution, str):
            self.given = self._numbers = tuple(validation.non_negative_int("convolution", each) for each in convolution)
            if len(self._numbers) != num_scales or set(self._numbers) != set(range(max(self._numbers) + 1)):
                raise ValueError(
                    f"`convolution` must be True, False, or the number of the convolution of each of {num_scales} "
                    f"scales, from 0 on and without gaps. Received: convolution={convolution!r}"
                )
        else:
            self.given = validation.boolean("convolution", convolution)
            self._numbers = (0,) * num_scales if self.given else ()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def build(self, layer: Any, rank: int, dim: int) -> None:
        """Gives `layer` the weights of all of them, `kernel` and `bias`."""
        if self:
            number = max(self._numbers) + 1
            layer.kernel = layer.add_float32("kernel", (number, *(3,) * rank, dim, dim), trainable=True)
            layer.bias = layer.add_float32("bias", (number, dim), trainable=True)

    def refine(self, layer: Any, x: Tensor, scale: int) -> Tensor:
        """`[n, *grid, D]` of a scale -> the same, refined by the weights of `layer`."""
        if not self:
            return x
        kernel = ops.convert_to_tensor(layer.kernel)[self._numbers[scale]]
        bias = ops.convert_to_tensor(layer.bias)[self._numbers[scale]]
        with backend.full_precision(x):
            return x + ops.conv(x, kernel, padding="same", data_format="channels_last") + bias
