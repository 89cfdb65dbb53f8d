"""Checks of arguments. Every message has the argument's name, the value received and the values that are allowed."""

import inspect
import itertools
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Sizes, Tensor

INT32_MAX = 2**31 - 1
"""The largest int32. Indices and seeds are int32."""
MAX_SIZES = 1024
"""Largest length of a sequence of sizes, such as the layers of a network or the axes of a vector."""


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shown(value: object) -> str:
    """Returns `repr(value)` for an error message, cut off after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def boolean(name: str, value: object) -> bool:
    """Returns `value` as a `bool`."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={shown(value)}")
    return bool(value)


def positive_int(name: str, value: object, largest: int = INT32_MAX) -> int:
    """Returns `value` as an `int` from 1 to `largest`."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={shown(value)}")
    if value > largest:
        raise ValueError(f"`{name}` must be at most {largest}. Received: {name}={shown(value)}")
    return int(value)


def non_negative_int(name: str, value: object, largest: int = INT32_MAX) -> int:
    """Returns `value` as an `int` from 0 to `largest`."""
    if not _is_integer(value) or not 0 <= value <= largest:
        raise ValueError(f"`{name}` must be an integer from 0 to {largest}. Received: {name}={shown(value)}")
    return int(value)


def seed(value: object) -> int | None:
    """Returns `value` as `None` or an `int` that every backend takes as a seed."""
    if value is None:
        return None
    if not _is_integer(value) or not 0 <= value <= INT32_MAX:
        raise ValueError(f"`seed` must be None or an integer from 0 to {INT32_MAX}. Received: seed={shown(value)}")
    return int(value)


def positive_ints(name: str, values: object) -> tuple[int, ...]:
    """Returns `values` as a tuple of positive integers, which may be empty."""
    # A NumPy array without axes has `__iter__`, and cannot be iterated over.
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise ValueError(f"`{name}` must be a sequence of positive integers. Received: {name}={shown(values)}")
    # A tuple, because Keras replaces lists in a layer's attributes by tracked lists.
    values = tuple(itertools.islice(values, MAX_SIZES + 1))
    if len(values) > MAX_SIZES:
        raise ValueError(f"`{name}` can have at most {MAX_SIZES} entries. Received: {name} with more entries")
    # Callers put a single integer into a sequence of one entry.
    names = [name] if len(values) == 1 else [f"{name}[{i}]" for i in range(len(values))]
    return tuple(map(positive_int, names, values))


def codebook_sizes(num_embeddings: object, num_codebooks: int) -> tuple[int, ...]:
    """Returns the number of codes of each codebook, given one integer for all or a sequence with one for each."""
    if not hasattr(num_embeddings, "__iter__"):
        return (positive_int("num_embeddings", num_embeddings),) * num_codebooks
    sizes = positive_ints("num_embeddings", num_embeddings)
    if len(sizes) != num_codebooks:
        raise ValueError(
            f"`num_embeddings` must be an integer, or a sequence of {num_codebooks} integers, one for each codebook. "
            f"Received: num_embeddings={shown(sizes)}, {len(sizes)} entries"
        )
    return sizes


def non_negative(name: str, value: object) -> float:
    """Returns `value` as a finite `float` of at least 0."""
    if not _is_real(value) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number of at least 0. Received: {name}={shown(value)}")
    return float(value)


def positive(name: str, value: object) -> float:
    """Returns `value` as a finite `float` above 0."""
    if not _is_real(value) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {name}={shown(value)}")
    return float(value)


def fraction(name: str, value: object) -> float:
    """Returns `value` as a `float` from 0 to 1."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1. Received: {name}={shown(value)}")
    return float(value)


def open_fraction(name: str, value: object) -> float:
    """Returns `value` as a `float` strictly between 0 and 1."""
    if not _is_real(value) or not 0 < value < 1:
        raise ValueError(f"`{name}` must be a number above 0 and below 1. Received: {name}={shown(value)}")
    return float(value)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function accepts `count` positional arguments. `True` if it has no signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions that are not written in Python have no signature.
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def shapes_fit(a: Sizes, b: Sizes) -> bool:
    """Whether two shapes are equal, where `None` matches any size."""
    return len(a) == len(b) and all(m == n or None in (m, n) for m, n in zip(a, b, strict=True))


def target_fits(target: Sizes, prediction: Sizes) -> bool:
    """Whether two shapes are equal, where `None` matches any size and either may have one more last axis, of size 1."""
    if len(target) == len(prediction) + 1 and target[-1] == 1:
        target = target[:-1]
    elif len(prediction) == len(target) + 1 and prediction[-1] == 1:
        prediction = prediction[:-1]
    return shapes_fit(target, prediction)


def code_indices(name: str, indices: Tensor, num_embeddings: int, min_index: int = 0) -> Tensor:
    """Returns `indices` as an int32 tensor. Raises an error if one is not from `min_index` to `num_embeddings - 1`.

    Compiled code cannot raise. There, indices are clipped to the valid range, because backends treat other indices
    differently: TensorFlow and PyTorch stop, and JAX returns NaN.
    """
    given = indices
    try:
        indices = ops.convert_to_tensor(indices)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of integers. Received: {name} of {type(given)}") from error
    dtype = keras.backend.standardize_dtype(indices.dtype)
    if "int" not in dtype:
        raise ValueError(f"`{name}` must be integers. Received: {name} of dtype {dtype}")
    if backend.is_traced(indices):
        # 8 or 16 bits may be too few for the largest index, and unsigned integers cannot be -1.
        indices = ops.cast(indices, "int32") if dtype.endswith(("8", "16")) else indices
        min_index = 0 if dtype.startswith("u") else min_index
        return ops.cast(ops.clip(indices, min_index, num_embeddings - 1), "int32")
    # Checks the values given, because JAX wraps integers that are too large for an int32.
    values = ops.convert_to_numpy(indices) if ops.is_tensor(given) else np.asarray(given)
    outside = np.unique(values[(values < min_index) | (values >= num_embeddings)])[:5].tolist()
    if outside:
        raise ValueError(f"`{name}` must be from {min_index} to {num_embeddings - 1}. Received: {name} with {outside}")
    return ops.cast(indices, "int32")


def within_codebooks(
    name: str, indices: Tensor, sizes: tuple[int, ...], codebooks: tuple[int, ...] | None, index_shape: tuple[int, ...]
) -> Tensor:
    """Returns `indices`. Raises an error if one is out of its codebook's range. Compiled code clips the index instead.

    Args:
        name: Name of the argument.
        indices: Int32 `[..., *index_shape]`, within the range of the largest codebook.
        sizes: Number of codes of each codebook.
        codebooks: For each index of a sample, which codebook it belongs to, from 0. `None` if each has its own.
        index_shape: Last axes of the indices.
    """
    if len(set(sizes)) == 1:
        return indices
    limits = np.array(sizes, "int32")
    limits = limits.reshape(index_shape) if codebooks is None else limits[list(codebooks)].reshape(-1, *index_shape)
    if backend.is_traced(indices):
        return ops.minimum(indices, limits - 1)
    values = ops.convert_to_numpy(indices)
    outside = np.unique(values[values >= limits])[:5].tolist()
    if outside:
        raise ValueError(
            f"`{name}` must be below the number of codes of their codebooks, {shown(sizes)}. "
            f"Received: {name} with {outside}"
        )
    return indices
