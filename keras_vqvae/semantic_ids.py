"""Semantic IDs: the codes of items, such as a residual quantizer's, made unique by a last digit.

Shapes in comments: `N` items, `Q` codes an item.
"""

import numpy as np
from keras import ops

from keras_vqvae.types import Tensor


def _sorted_codes(indices: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes `[N, Q]`, the order that sorts them, `[N]`, and where in that order a code is another one's, `[N]`."""
    codes = ops.convert_to_numpy(indices)
    if codes.ndim != 2 or not codes.shape[1] or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            "`indices` must be integers of shape [items, codes]. "
            f"Received: indices of shape {codes.shape} and dtype {codes.dtype}"
        )
    # Stable: items of equal codes stay in their order.
    order = np.lexsort(codes.T[::-1])
    sorted_codes = codes[order]
    differs = np.ones(len(codes), bool)
    differs[1:] = (sorted_codes[1:] != sorted_codes[:-1]).any(axis=1)
    return codes, order, differs


def append_collision_index(indices: Tensor) -> np.ndarray:
    """Appends the digit that tells items of equal codes apart: 0 for the first of them, 1 for the second, and so on.

    Args:
        indices: Integers `[N, Q]`, the codes of `N` items.

    Returns:
        An int32 array `[N, Q + 1]`, no two rows of which are the same.

    Raises:
        ValueError: If `indices` are no integers of rank 2.

    Example:

    >>> append_collision_index([[3, 1], [3, 2], [3, 1]]).tolist()
    [[3, 1, 0], [3, 2, 0], [3, 1, 1]]

    Reference:

    - [Rajput et al., 2023](https://arxiv.org/abs/2305.05065), section 3.1
    """
    codes, order, differs = _sorted_codes(indices)
    places = np.arange(len(codes))
    # The place in the order less that of the first item of the same codes
    digits = np.empty(len(codes), "int32")
    digits[order] = places - np.maximum.accumulate(np.where(differs, places, 0))
    return np.concatenate([codes.astype("int32"), digits[:, None]], axis=1)


def unique_fraction(indices: Tensor) -> float:
    """How many different codes there are for each item: 1 if no two items have the same, `1 / N` if all have.

    Args:
        indices: Integers `[N, Q]`, the codes of `N` items.

    Returns:
        A float above 0 and up to 1; 0 of no items.

    Raises:
        ValueError: If `indices` are no integers of rank 2.

    Example:

    >>> unique_fraction([[3, 1], [3, 2], [3, 1], [3, 1]])
    0.5
    """
    differs = _sorted_codes(indices)[2]
    return float(differs.sum() / max(len(differs), 1))
