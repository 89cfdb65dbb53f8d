"""Operations on tensors that backends do differently, in the general form that `keras.ops` allows."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

from keras import ops
from keras.src.backend import get_keras_mask

from keras_vqvae.types import Tensor


class Operations:
    """Elementwise operations, products, gathers and sums."""

    def is_traced(self, x: Tensor) -> bool:
        """Whether `x` has no value yet because a function is being traced."""
        return False

    def is_tracing(self) -> bool:
        """Whether a function is being traced, in which tensors have no values yet."""
        return self.is_traced(ops.zeros(()))

    def mask_of(self, x: Tensor) -> Tensor | None:
        """The mask that Keras stores for an output of a layer."""
        return get_keras_mask(x)

    def constants(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        """Converts `values` to a tensor with the dtype of `like`."""
        return ops.convert_to_tensor(values, like.dtype)

    def array(self, make: Callable[..., Any], arguments: tuple[int, ...], like: Tensor) -> Tensor:
        """Converts the array `make(*arguments)` to a tensor with the dtype of `like`. `make` must be pure."""
        return ops.convert_to_tensor(make(*arguments), like.dtype)

    def full_precision(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        """Context in which float32 products on the device of `like` are computed in float32."""
        return contextlib.nullcontext()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiplies matrices in float32, forward and backward. If `a` or `b` has more than two axes, only `b` may need
        a gradient."""
        return ops.matmul(a, b)

    def on_accelerator(self, x: Tensor) -> bool:
        """Whether `x` is on an accelerator, that is not on the processor."""
        return False

    def gather_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Rows of `x` at nonnegative `indices`, with a dense gradient: `[K, D]`, `[...]` -> `[..., D]`."""
        return ops.take(x, indices, axis=0)

    def take(self, x: Tensor, indices: Tensor) -> Tensor:
        """Elements of `x` at nonnegative int32 `indices`, without a gradient: `[N]`, `[n]` -> `[n]`."""
        return ops.take(x, indices, axis=0)

    def segment_sum(self, data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
        """Sums of the rows of `data` with the same index: `[N, ...]`, `[N]` -> `[num_segments, ...]`."""
        return ops.segment_sum(data, indices, num_segments=num_segments)

    def finite_rows(self, x: Tensor) -> Tensor:
        """Which rows have a finite sum of squares: `[N, D]` -> booleans `[N]`."""
        return ops.sum(ops.square(x), axis=-1) < math.inf

    def count_true(self, x: Tensor) -> Tensor:
        """Number of true elements, a float32 scalar."""
        return ops.sum(ops.cast(x, "float32"))

    def at_least(self, x: Tensor, minimum: float) -> Tensor:
        """The larger of `x` and a number, elementwise."""
        return ops.maximum(x, minimum)

    def at_most(self, x: Tensor, maximum: float) -> Tensor:
        """The smaller of `x` and a number, elementwise."""
        return ops.minimum(x, maximum)

    def clip(self, x: Tensor, minimum: float, maximum: float) -> Tensor:
        """`x` limited to a range, elementwise."""
        return ops.clip(x, minimum, maximum)

    def masked(self, x: Tensor, valid: Tensor) -> Tensor:
        """`x` with 0 in rows that are not valid, even if they contain NaN: `[..., D]`, booleans `[...]`."""
        return ops.where(ops.expand_dims(valid, -1), x, 0.0)

    def zero_nonfinite(self, x: Tensor) -> Tensor:
        """Replaces elements of `x` without a finite square by 0.

        Vectors with such an element are masked anyway. But a NaN gradient would reach every weight through a product.
        """
        return ops.where(ops.abs(x) < 1e19, x, 0.0)
