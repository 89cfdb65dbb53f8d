"""The grids of `MultiScaleQuantizer`: with given sizes, or with given strides for inputs of any size.

Shapes in comments: `s` are the sizes of a scale's grid, and a cell has `I` indices.
"""

import itertools
import math
from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.layers import wrappers
from keras_vqvae.ops import resizing
from keras_vqvae.types import Sizes, Tensor

Scales = tuple[tuple[int, ...], ...]


def _checked(name: str, values: object) -> tuple[Scales, Scales]:
    """Checks sizes or strides. Returns them as they are given, and with one number for each axis of every scale."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ValueError(
            f"`{name}` must be a sequence with one entry for each scale. Received: {name}={validation.shown(values)}"
        )
    given = tuple(
        validation.positive_ints(name, value) if hasattr(value, "__iter__") else (validation.positive_int(name, value),)
        for value in values
    )
    rank = max(map(len, given), default=0)
    full = _for_each_axis(given, rank)
    if not 1 <= rank <= 3 or any(len(each) != rank for each in full) or len(full) > wrappers.MAX_COPIES:
        raise ValueError(
            f"`{name}` must have 1 to {wrappers.MAX_COPIES} entries. Each must be an integer, or a tuple with one "
            f"integer for each of 1 to 3 axes. Received: {name}={given[:8]}, {len(given)} entries"
        )
    return given, full


def _for_each_axis(given: Scales, rank: int) -> Scales:
    return tuple(each * rank if len(each) == 1 else each for each in given)


class FixedGrids:
    """Grids of given sizes, coarse to fine, for inputs of one size. A sample's indices are ordered by scale."""

    cells: tuple[int, ...]
    """Number of cells of each scale."""

    def __init__(self, scales: object):
        self.given, full = _checked("scales", scales)
        if not all(a != b and all(map(int.__le__, a, b)) for a, b in itertools.pairwise(full)):
            raise ValueError(f"`scales` must increase from coarse to fine. Received: scales={validation.shown(scales)}")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self._grid: Any = tuple(input_shape[1:-1])
        rank = len(self._grid)
        fits = 1 <= rank <= 3 and all(len(scale) in (1, rank) for scale in self.given)
        self._sizes = _for_each_axis(self.given, rank)
        if not fits or None in self._grid or any(a > b for a, b in zip(self._sizes[-1], self._grid, strict=True)):
            raise ValueError(
                "With `scales`, inputs must be [batch, *grid, D] with a grid of 1 to 3 axes of known sizes. Each scale "
                "must be an integer or a tuple with one integer for each axis, and at most the size of the grid. Use "
                "`strides` if the sizes are not known. "
                f"Received: scales={self.given}, input_shape={tuple(input_shape)}"
            )
        self.cells = tuple(map(math.prod, self._sizes))

    @property
    def end_full(self) -> bool:
        """Whether the last scale is the full grid."""
        return self._sizes[-1] == self._grid

    def index_axes(self, axes: Sizes) -> Sizes:
        if tuple(axes[1:]) != self._grid:
            raise ValueError(
                f"`inputs` must have the grid that the layer was built for, {self._grid}. Use `strides` in place of "
                f"`scales` for grids of several sizes. Received: inputs of shape {(*axes, 'D')}"
            )
        return (axes[0], sum(self.cells))

    def vector_axes(self, axes: Sizes) -> Sizes:
        if len(axes) != 2 or axes[1] not in (None, sum(self.cells)):
            raise ValueError(
                f"`indices` must have the leading axes (batch, {sum(self.cells)}), as `encode` returns them. "
                f"Received: indices with the leading axes {tuple(axes)}"
            )
        return (axes[0], *self._grid)

    def filled(self, x: Tensor) -> Tensor:
        """Returns a grid `[n, *grid, D]` as it is. Only strided grids are padded."""
        return x

    def shrink(self, x: Tensor, scale: int) -> Tensor:
        """Means over the areas of a scale: `[n, *grid, D]` -> `[n, *s, D]`."""
        return resizing.resize(x, self._sizes[scale])

    def stretch(self, x: Tensor, scale: int, interpolation: str) -> Tensor:
        """Interpolates a scale: `[n, *s, D]` -> `[n, *grid, D]`."""
        return resizing.resize(x, self._grid, interpolation)

    def join(self, indices: list[Tensor]) -> Tensor:
        """Joins the indices of all scales: `[n, *s, I]` each -> `[n, L, I]`."""
        columns = zip(indices, self.cells, strict=True)
        return ops.concatenate([ops.reshape(x, (-1, cells, x.shape[-1])) for x, cells in columns], axis=1)

    def split(self, indices: Tensor) -> list[Tensor]:
        """Splits indices by scale: `[n, L, I]` -> `[n, *s, I]` each."""
        scales = zip(self._sizes, self.cells, itertools.accumulate(self.cells), strict=True)
        inner = indices.shape[-1]
        return [ops.reshape(indices[:, end - cells : end], (-1, *sizes, inner)) for sizes, cells, end in scales]


class StridedGrids:
    """Grids of given strides, coarse to fine, for inputs of any size. Indices are grouped by coarsest cell.

    An axis that is not divisible by the first stride is padded with positions that are not valid.
    """

    cells: tuple[int, ...]
    """Number of cells of each scale in a coarsest cell."""

    def __init__(self, strides: object):
        self.given, full = _checked("strides", strides)
        if not all(a != b and all(x % y == 0 for x, y in zip(a, b, strict=True)) for a, b in itertools.pairwise(full)):
            raise ValueError(
                "`strides` must decrease, and each must be a multiple of the next one. "
                f"Received: strides={validation.shown(strides)}"
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        rank = len(input_shape) - 2
        if not 1 <= rank <= 3 or any(len(stride) not in (1, rank) for stride in self.given):
            raise ValueError(
                "With `strides`, inputs must be [batch, *grid, D] with a grid of 1 to 3 axes. A stride must be an "
                "integer or a tuple with one integer for each axis of the grid. "
                f"Received: strides={self.given}, input_shape={tuple(input_shape)}"
            )
        self._strides = _for_each_axis(self.given, rank)
        self._parts = tuple(
            tuple(a // b for a, b in zip(self._strides[0], strides, strict=True)) for strides in self._strides
        )
        self.cells = tuple(map(math.prod, self._parts))

    @property
    def end_full(self) -> bool:
        """Whether the last scale is the full grid."""
        return max(self._strides[-1]) == 1

    def index_axes(self, axes: Sizes) -> Sizes:
        if len(axes) != len(self._strides[0]) + 1:
            raise ValueError(
                f"`inputs` must be [batch, *grid, D] with a grid of {len(self._strides[0])} axes, as the layer was "
                f"built for. Received: inputs of shape {(*axes, 'D')}"
            )
        coarsest = zip(axes[1:], self._strides[0], strict=True)
        return (axes[0], *(None if size is None else -(-size // stride) for size, stride in coarsest), sum(self.cells))

    def vector_axes(self, axes: Sizes) -> Sizes:
        rank = len(self._strides[0])
        if len(axes) != rank + 2 or axes[-1] not in (None, sum(self.cells)):
            raise ValueError(
                f"`indices` must have the leading axes (batch, *coarsest, {sum(self.cells)}), with a coarsest grid of "
                f"{rank} axes, as `encode` returns them. Received: indices with the leading axes {tuple(axes)}"
            )
        coarsest = zip(axes[1:-1], self._strides[0], strict=True)
        return (axes[0], *(None if size is None else size * stride for size, stride in coarsest))

    def filled(self, x: Tensor) -> Tensor:
        """Pads a grid with zeros to a size that the first stride divides: `[n, *grid, D]`."""
        missing = [-size % stride for size, stride in zip(ops.shape(x)[1:-1], self._strides[0], strict=True)]
        if all(isinstance(size, int) and not size for size in missing):
            return x
        return ops.pad(x, [(0, 0), *((0, size) for size in missing), (0, 0)])

    def shrink(self, x: Tensor, scale: int) -> Tensor:
        """Means over the areas of a scale: `[n, *grid, D]` -> `[n, *s, D]`."""
        return resizing.shrink(x, self._strides[scale])

    def stretch(self, x: Tensor, scale: int, interpolation: str) -> Tensor:
        """Interpolates a scale: `[n, *s, D]` -> `[n, *grid, D]`."""
        return resizing.stretch(x, self._strides[scale], interpolation)

    def join(self, indices: list[Tensor]) -> Tensor:
        """Joins the indices of all scales: `[n, *s, I]` each -> `[n, *coarsest, C, I]`, where `C = sum(cells)`."""
        coarsest = ops.shape(indices[0])
        rank, columns = len(coarsest) - 2, []
        # `[n, h a, w b, I]` -> `[n, h, a, w, b, I]` -> `[n, h, w, a, b, I]` -> `[n, h, w, a b, I]`
        order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
        for x, parts, cells in zip(indices, self._parts, self.cells, strict=True):
            pairs = zip(coarsest[1:-1], parts, strict=True)
            x = ops.reshape(x, (coarsest[0], *itertools.chain(*pairs), coarsest[-1]))
            columns.append(ops.reshape(ops.transpose(x, order), (*coarsest[:-1], cells, coarsest[-1])))
        return ops.concatenate(columns, axis=-2)

    def split(self, indices: Tensor) -> list[Tensor]:
        """Splits indices by scale: `[n, *coarsest, C, I]` -> `[n, *s, I]` each."""
        *coarsest, _, inner = ops.shape(indices)
        rank, found = len(coarsest) - 1, []
        # `[n, h, w, a b, I]` -> `[n, h, w, a, b, I]` -> `[n, h, a, w, b, I]` -> `[n, h a, w b, I]`
        order = (0, *(axis for pair in enumerate(range(rank + 1, 2 * rank + 1), 1) for axis in pair), 2 * rank + 1)
        for parts, cells, end in zip(self._parts, self.cells, itertools.accumulate(self.cells), strict=True):
            x = ops.reshape(indices[..., end - cells : end, :], (*coarsest, *parts, inner))
            sizes = [size * part for size, part in zip(coarsest[1:], parts, strict=True)]
            found.append(ops.reshape(ops.transpose(x, order), (coarsest[0], *sizes, inner)))
        return found
