"""Checks of arguments, one message for all: the argument's name and the value received."""

import inspect
import itertools
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

INT32_MAX = 2**31 - 1
"""The largest int32. Indices and seeds are int32."""
MAX_SIZES = 1024
"""The largest number of layers of a network, or axes of a vector."""


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def boolean(name: str, value: object) -> bool:
    """Returns `value` as a `bool`."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def positive_int(name: str, value: object, largest: int = INT32_MAX) -> int:
    """Returns `value` as an `int` from 1 to `largest`."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if value > largest:
        raise ValueError(f"`{name}` must be at most {largest}. Received: {name}={value!r}")
    return int(value)


def non_negative_int(name: str, value: object, largest: int = INT32_MAX) -> int:
    """Returns `value` as an `int` from 0 to `largest`."""
    if not _is_integer(value) or not 0 <= value <= largest:
        raise ValueError(f"`{name}` must be an integer from 0 to {largest}. Received: {name}={value!r}")
    return int(value)


def seed(value: object) -> int | None:
    """Returns `value`, `None` or an integer that every backend takes."""
    if value is None:
        return None
    if not _is_integer(value) or not 0 <= value <= INT32_MAX:
        raise ValueError(f"`seed` must be None or an integer from 0 to {INT32_MAX}. Received: seed={value!r}")
    return int(value)


def positive_ints(name: str, values: object) -> tuple[int, ...]:
    """Returns `values` as a tuple, which may be empty, of positive integers."""
    # An array without axes says of itself that it is iterable.
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise ValueError(f"`{name}` must be a sequence of positive integers. Received: {name}={values!r}")
    # A tuple, because Keras turns the lists among a layer's attributes into tracked ones.
    values = tuple(itertools.islice(values, MAX_SIZES + 1))
    if len(values) > MAX_SIZES:
        raise ValueError(f"`{name}` can have at most {MAX_SIZES} entries. Received: {name} with more")
    return tuple(positive_int(name, value) for value in values)


def codebook_sizes(num_embeddings: object, num_codebooks: int) -> tuple[int, ...]:
    """Returns the number of codes of each codebook, given that of all of them or a sequence with one for each."""
    if not hasattr(num_embeddings, "__iter__"):
        return (positive_int("num_embeddings", num_embeddings),) * num_codebooks
    sizes = positive_ints("num_embeddings", num_embeddings)
    if len(sizes) != num_codebooks:
        raise ValueError(
            f"`num_embeddings` must be an integer, or one for each of {num_codebooks} codebooks. "
            f"Received: num_embeddings={num_embeddings!r}"
        )
    return sizes


def non_negative(name: str, value: object) -> float:
    """Returns `value` as a finite `float` of at least 0."""
    if not _is_real(value) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number of at least 0. Received: {name}={value!r}")
    return float(value)


def positive(name: str, value: object) -> float:
    """Returns `value` as a finite `float` above 0."""
    if not _is_real(value) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {name}={value!r}")
    return float(value)


def fraction(name: str, value: object) -> float:
    """Returns `value` as a `float` from 0 to 1."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1. Received: {name}={value!r}")
    return float(value)


def open_fraction(name: str, value: object) -> float:
    """Returns `value` as a `float` strictly between 0 and 1."""
    if not _is_real(value) or not 0 < value < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1. Received: {name}={value!r}")
    return float(value)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with `count` arguments, as far as its signature says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions that are not Python's have none.
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def code_indices(name: str, indices: Tensor, num_embeddings: int, lowest: int = 0) -> Tensor:
    """Returns `indices` as an int32 tensor, each inside a codebook of `num_embeddings` codes.

    A compiled function has no values to look at: there an index outside is moved to the nearest one inside,
    because the backends disagree on it (TensorFlow and PyTorch stop, JAX answers NaN).
    """
    given = indices
    try:
        indices = ops.convert_to_tensor(indices)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be integers. Received: {name}={indices!r}") from error
    dtype = keras.backend.standardize_dtype(indices.dtype)
    if "int" not in dtype:
        raise ValueError(f"`{name}` must be integers. Received: {name} of dtype {dtype}")
    if backend.is_traced(indices):
        # Small integers may not hold the largest index, and unsigned ones no -1.
        indices = ops.cast(indices, "int32") if dtype.endswith(("8", "16")) else indices
        lowest = 0 if dtype.startswith("u") else lowest
        return ops.cast(ops.clip(indices, lowest, num_embeddings - 1), "int32")
    # JAX has wrapped the integers that are too large for an int32.
    values = ops.convert_to_numpy(indices) if ops.is_tensor(given) else np.asarray(given)
    outside = np.unique(values[(values < lowest) | (values >= num_embeddings)])[:5].tolist()
    if outside:
        raise ValueError(
            f"`{name}` must lie between {lowest} and {num_embeddings - 1}. Received: {name} with {outside}"
        )
    return ops.cast(indices, "int32")


def within_codebooks(
    name: str,
    indices: Tensor,
    sizes: tuple[int, ...],
    codebooks: tuple[int, ...] | None,
    index_shape: tuple[int, ...],
) -> Tensor:
    """Returns int32 `indices` `[..., *index_shape]`, each inside its own codebook; as `code_indices`.

    Args:
        name: That of the argument.
        indices: Integers that lie inside the largest codebook.
        sizes: Number of codes of each codebook.
        codebooks: The codebook of each index of a sample, or `None`, if each has its own.
        index_shape: The last axes of the indices.
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
            f"`{name}` must lie inside their codebooks, of {list(sizes)} codes. Received: {name} with {outside}"
        )
    return indices
