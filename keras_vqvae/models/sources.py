"""A random sample of the encoder's outputs, of data in any form, in bounded memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_vqvae import validation
from keras_vqvae.types import Data

PER_SAMPLE = 16
"""Vectors of a sample that are counted on, where there are more: those of one sample are alike."""


class Reservoir:
    """A uniform random sample of up to `size` rows, in their order, of rows that come batch by batch.

    Every row draws a number, and those of the smallest numbers stay. So the sample does not depend on how the rows are
    divided into batches.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self._generator = np.random.default_rng(seed)
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.held = 0
        self._largest = np.inf

    def add(self, rows: np.ndarray) -> None:
        numbers = self._generator.random(len(rows))
        chosen = numbers <= self._largest
        self._parts.append((numbers[chosen], rows[chosen]))
        self.held += int(chosen.sum())
        # Seldom, because it copies all rows.
        if self.held > 2 * self.size:
            self._shrink()

    def rows(self) -> np.ndarray:
        self._shrink()
        return self._parts[0][1]

    def _shrink(self) -> None:
        numbers, rows = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if len(numbers) > self.size:
            self._largest = np.partition(numbers, self.size - 1)[self.size - 1]
            numbers, rows = numbers[numbers <= self._largest], rows[numbers <= self._largest]
        self._parts, self.held = [(numbers, rows)], len(rows)


def sampled_vectors(
    encode: Callable[..., np.ndarray],
    x: Data,
    max_vectors: int,
    per_sample: int,
    whole_samples: bool,
    batch_size: int,
    steps: int | None,
    seed: int,
    verbose: str | int,
) -> np.ndarray:
    """Returns random vectors of the encoder's outputs, `[N, D]`, those of whole grids `[N, *grid, D]`.

    Args:
        encode: From inputs, `batch_size` and `verbose` to vectors `[n, ..., D]`, NaN where they do not count.
        x: Inputs: arrays, or a source of batches.
        max_vectors: Number of vectors.
        per_sample: How many vectors a sample has, or 1 if that is not known.
        whole_samples: Whether whole grids are chosen.
        batch_size: Samples of a batch, for arrays.
        steps: How many batches are read, or `None` for all.
        seed: Integer, of the draws.
        verbose: As in `predict`.

    Raises:
        ValueError: If `x` is empty, or has no end and `steps` is not given.
    """
    max_vectors = validation.positive_int("max_vectors", max_vectors)
    batch_size = validation.positive_int("batch_size", batch_size)
    steps = None if steps is None else validation.positive_int("steps", steps)
    size = -(-max_vectors // per_sample) if whole_samples else max_vectors
    needed = size if whole_samples else -(-size // min(per_sample, PER_SAMPLE))
    reservoir = Reservoir(size, seed)
    progress = keras.utils.Progbar(None, verbose=1 if verbose == "auto" else int(verbose), unit_name="batch")
    number, shape = 0, None
    for number, batch in enumerate(batches(x, needed, batch_size, steps, seed), start=1):
        if not len(keras.tree.flatten(batch)[0]):
            continue
        vectors = encode(batch, batch_size=batch_size, verbose=0)
        if whole_samples:
            shape = shape or vectors.shape[1:]
            if vectors.shape[1:] != shape:
                raise ValueError(
                    "`x` must have grids of one size for a quantizer of whole grids, such as crops. "
                    f"Received: batches with grids of {shape[:-1]} and {vectors.shape[1:-1]} vectors"
                )
        else:
            vectors = vectors.reshape(-1, vectors.shape[-1])
            vectors = vectors[np.isfinite(vectors).all(-1)]
        reservoir.add(vectors)
        progress.update(number)
    if not reservoir.held:
        raise ValueError(f"`x` must contain at least one vector that is not masked, and finite. Received: x={x!r}")
    progress.update(number, finalize=True)
    return reservoir.rows()


def batches(x: Data, needed: int, batch_size: int, steps: int | None, seed: int) -> Iterator[Any]:
    """Yields inputs, as NumPy arrays: the batches of a data set, or of arrays a random choice of `needed` samples."""
    leaves = keras.tree.flatten(x)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        for batch in first_batches(x, steps):
            yield keras.tree.map_structure(to_numpy, keras.utils.unpack_x_y_sample_weight(batch)[0])
        return
    # Tensors and tables cannot be indexed by arrays.
    x = keras.tree.map_structure(lambda leaf: leaf if isinstance(leaf, np.ndarray) else to_numpy(leaf), x)
    if len({len(leaf) for leaf in leaves}) > 1:
        raise ValueError(f"`x` must have arrays of one length. Received: lengths {[len(leaf) for leaf in leaves]}")
    chosen = np.arange(len(leaves[0]) if steps is None else min(len(leaves[0]), steps * batch_size))
    if needed < len(chosen):
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, needed, replace=False))
    # Several batches in one call of `predict`, which takes longer to begin than most batches take.
    for start in range(0, len(chosen), 64 * batch_size):
        rows = chosen[start : start + 64 * batch_size]
        yield keras.tree.map_structure(lambda leaf, rows=rows: leaf[rows], x)


def first_batches(x: Any, steps: int | None) -> Iterator[Any]:
    """Yields the first batches of a source, or all of them if `steps` is `None`."""
    if isinstance(x, keras.utils.PyDataset):
        endless, numbers = x.num_batches is None, range(x.num_batches or 0)
        found: Iterable[Any] = (x[number] for number in (itertools.count() if endless else numbers))
    else:
        # This is TensorFlow's number for a data set that repeats.
        endless, found = hasattr(x, "cardinality") and int(x.cardinality()) == -1, x
    if endless and steps is None:
        raise ValueError(f"`steps` must be given for a source without an end. Received: steps=None, x={x!r}")
    return itertools.islice(found, steps)


def to_numpy(x: Any) -> np.ndarray:
    """An array of a tensor or a table."""
    if hasattr(x, "detach"):
        # Tensors of PyTorch may have a gradient, lie on another device, or be bfloat16, which NumPy does not have.
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() and x.element_size() < 4 else x
    return np.asarray(x)
