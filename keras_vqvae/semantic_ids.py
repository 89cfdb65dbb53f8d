"""Semantic IDs: the indices of items, for example from a residual quantizer, made unique by a collision index.

Shapes in comments: `N` items with `Q` indices each.
"""

import numpy as np
from keras import ops

from keras_vqvae.types import Tensor


def _sorted_rows(indices: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts items by their indices.

    Returns:
        `(rows, order, differs)`: the indices as an array `[N, Q]`, the order that sorts its rows, `[N]`, and booleans
        `[N]`, true if a row in this order differs from the row before it.
    """
    rows = ops.convert_to_numpy(indices)
    if rows.ndim != 2 or not rows.shape[1] or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            "`indices` must be integers of shape [items, indices per item]. "
            f"Received: indices of shape {rows.shape} and dtype {rows.dtype}"
        )
    # The sort is stable, so items with equal indices keep their order.
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    differs = np.ones(len(rows), bool)
    differs[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return rows, order, differs


def append_collision_index(indices: Tensor) -> np.ndarray:
    """Appends a collision index, which makes items with equal indices unique: 0 for the first, 1 for the second, etc.

    Args:
        indices: Integers `[N, Q]`, the indices of `N` items.

    Returns:
        An int32 array `[N, Q + 1]` with unique rows.

    Raises:
        ValueError: If `indices` are not integers of rank 2.

    Example:

    >>> append_collision_index([[3, 1], [3, 2], [3, 1]]).tolist()
    [[3, 1, 0], [3, 2, 0], [3, 1, 1]]

    Reference:

    - [Rajput et al., 2023](https://arxiv.org/abs/2305.05065), section 3.1
    """
    rows, order, differs = _sorted_rows(indices)
    positions = np.arange(len(rows))
    # An item's position in the order, minus the position of the first item with the same indices.
    collisions = np.empty(len(rows), "int32")
    collisions[order] = positions - np.maximum.accumulate(np.where(differs, positions, 0))
    return np.concatenate([rows.astype("int32"), collisions[:, None]], axis=1)


def unique_fraction(indices: Tensor) -> float:
    """Returns the number of different rows of indices divided by the number of items.

    It is 1 if the indices of all items differ, and `1 / N` if all are equal.

    Args:
        indices: Integers `[N, Q]`, the indices of `N` items.

    Returns:
        A float from `1 / N` to 1, or 0 if there are no items.

    Raises:
        ValueError: If `indices` are not integers of rank 2.

    Example:

    >>> unique_fraction([[3, 1], [3, 2], [3, 1], [3, 1]])
    0.5
    """
    differs = _sorted_rows(indices)[2]
    return float(differs.sum() / max(len(differs), 1))
