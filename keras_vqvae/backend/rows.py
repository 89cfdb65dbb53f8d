"""Rows of arrays in blocks, and over devices."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from keras import ops

from keras_vqvae.backend.operations import Operations
from keras_vqvae.types import Tensor

Outputs: TypeAlias = Sequence[tuple[tuple[int, ...], str]]
"""Shape without the first axis, and dtype, of each output."""


class Rows(Operations):
    """Functions of rows, applied to one block after another."""

    def parts_of_rows(self, rows: int) -> int:
        """Number of devices over which `rows` rows are evenly sharded, or 1 if that is not possible."""
        return 1

    def spread_rows(self, x: Tensor) -> Tensor:
        """Shards the rows of `x` over the devices, if their number is divisible by the number of devices."""
        return ops.convert_to_tensor(x)

    def split_rows(self, x: Tensor, block_rows: int) -> Tensor:
        """Splits `x` into blocks of up to `block_rows` rows per device: `[N, ...]` -> `[n, blocks, ...]`.

        Neighboring rows go to different blocks, and the rows of each device are padded with zeros. Each block is then
        sharded over all devices, and no device needs rows of another device.
        """
        rows, *rest = ops.shape(x)
        parts = 1
        # `rows` is a tensor if a function is traced for any batch size.
        if known := isinstance(rows, int):
            parts = self.parts_of_rows(rows)
            block_rows = max(min(block_rows, rows // parts), 1)
        part_rows = rows // parts
        blocks = (part_rows + block_rows - 1) // block_rows
        if known:
            # One block of zeros if there are no rows.
            blocks = max(blocks, 1)
        if not known or part_rows != blocks * block_rows:
            x = ops.reshape(x, (parts, part_rows, *rest))
            x = ops.pad(x, [[0, 0], [0, blocks * block_rows - part_rows], *([0, 0] for _ in rest)])
        # `[parts, part_rows, ...]` -> `[parts block_rows, blocks, ...]`
        return ops.reshape(x, (parts * block_rows, blocks, *rest))

    def join_rows(self, x: Tensor, rows: int) -> Tensor:
        """Inverse of `split_rows` for blocks-first results; drops the padding: `[blocks, n, ...]` -> `[N, ...]`."""
        _, _, *rest = ops.shape(x)
        parts = self.parts_of_rows(rows) if isinstance(rows, int) else 1
        # `[n, blocks, ...]` -> `[parts, part_rows, ...]` -> `[N, ...]`
        x = ops.reshape(ops.swapaxes(x, 0, 1), (parts, -1, *rest))[:, : rows // parts]
        return ops.reshape(x, (-1, *rest))

    def map_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], blocks: Tensor, outputs: Outputs
    ) -> Sequence[Tensor]:
        """Applies a function to one block after another: `[n, blocks, D]` -> `[blocks, n, ...]` for each output."""
        return ops.map(lambda block: function(ops.take(blocks, block, axis=1)), ops.arange(ops.shape(blocks)[1]))

    def by_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], vectors: Tensor, block_rows: int, outputs: Outputs
    ) -> Sequence[Tensor]:
        """Applies a function to blocks of up to `block_rows` rows per device: `[N, D]` -> `[N, ...]` for each output.

        `outputs` has the shape without `N`, and the dtype, of each output.
        """
        rows = ops.shape(vectors)[0]
        if isinstance(rows, int) and rows // self.parts_of_rows(rows) <= block_rows:
            return function(vectors)
        found = self.map_blocks(function, self.split_rows(vectors, block_rows), outputs)
        return [self.join_rows(each, rows) for each in found]
