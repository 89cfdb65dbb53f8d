"""Types of arguments and values. Tensors are `Any`: each backend has its own type, and Keras has no annotations."""

from collections.abc import Callable
from typing import Any, TypeAlias

import keras

Tensor: TypeAlias = Any
"""A tensor of the running backend, or any value that `keras.ops` converts to a tensor."""
Sizes: TypeAlias = tuple[Any, ...]
"""Sizes of axes, as `keras.ops.shape` returns them: integers, or tensors if a size is known only at run time."""
Data: TypeAlias = Any
"""Data for `fit` and `predict`: arrays, tensors, lists or dicts of these, data sets, generators."""
Seed: TypeAlias = int | keras.random.SeedGenerator | None
"""Source of random numbers; `None` is a random seed."""
FromKeras: TypeAlias = str | dict[str, Any] | Callable[..., Tensor] | None
"""An initializer, regularizer or constraint: its name, its saved configuration or the object itself."""
