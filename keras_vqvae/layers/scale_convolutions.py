"""The convolutions that refine the scales of `MultiScaleQuantizer`. Several scales can share a convolution."""

from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


class ScaleConvolutions:
    """Convolutions `x + conv(x) + bias` with a kernel of 3 elements per axis. Kernels and biases start at 0.

    Args:
        convolution: `False` for none, `True` for one that all scales share, or the number of each scale's convolution.
        num_scales: Number of scales.
    """

    def __init__(self, convolution: object, num_scales: int):
        self.given: bool | tuple[int, ...]
        if hasattr(convolution, "__iter__") and not isinstance(convolution, str):
            self.given = self._numbers = tuple(validation.non_negative_int("convolution", each) for each in convolution)
            if len(self._numbers) != num_scales or set(self._numbers) != set(range(max(self._numbers) + 1)):
                raise ValueError(
                    f"`convolution` must be True, False, or a sequence with a convolution's number for each of the "
                    f"{num_scales} scales. Numbers start at 0 and have no gaps. "
                    f"Received: convolution={validation.shown(self.given)}"
                )
        else:
            self.given = validation.boolean("convolution", convolution)
            self._numbers = (0,) * num_scales if self.given else ()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def build(self, layer: Any, rank: int, dim: int) -> None:
        """Creates the weights of all convolutions, `kernel` and `bias`, in `layer`."""
        if self:
            number = max(self._numbers) + 1
            layer.kernel = layer.add_float32("kernel", (number, *(3,) * rank, dim, dim), trainable=True)
            layer.bias = layer.add_float32("bias", (number, dim), trainable=True)

    def refine(self, layer: Any, x: Tensor, scale: int) -> Tensor:
        """Applies a scale's convolution to `x` `[n, *grid, D]`, with the weights of `layer`."""
        if not self:
            return x
        kernel = ops.convert_to_tensor(layer.kernel)[self._numbers[scale]]
        bias = ops.convert_to_tensor(layer.bias)[self._numbers[scale]]
        with backend.full_precision(x):
            return x + ops.conv(x, kernel, padding="same", data_format="channels_last") + bias
