"""A random sample of an encoder's outputs for data in any form, in bounded memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_vqvae import validation
from keras_vqvae.types import Data

PER_SAMPLE = 16
"""Largest average number of vectors per sample. Vectors of one sample are similar, so more samples are read."""


class Reservoir:
    """A uniform random sample of up to `size` rows, in their order, from rows that arrive in batches.

    Each row gets a random number, and the rows with the smallest numbers are kept. So the sample does not depend on how
    the rows are divided into batches.
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
        # Only when the rows have doubled, because it copies them.
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
    """Returns a random sample of the encoder's outputs: vectors `[N, D]`, or whole grids `[N, *grid, D]`.

    Args:
        encode: A function from inputs, `batch_size` and `verbose` to vectors `[n, ..., D]`, with NaN for vectors to
            ignore.
        x: Inputs: arrays, or a source of batches.
        max_vectors: Largest number of vectors.
        per_sample: Number of vectors of a sample, or 1 if it is not known.
        whole_samples: Whether to choose whole grids.
        batch_size: Samples per batch, if `x` is an array.
        steps: Number of batches to read, or `None` for all.
        seed: Integer for the random choices.
        verbose: As in `predict`.

    Raises:
        ValueError: If `x` is empty, or is infinite and `steps` is not given.
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
                    "`x` must give grids of one size to a quantizer of whole grids. Crop the samples to one size. "
                    f"Received: batches with grids of {shape[:-1]} and {vectors.shape[1:-1]} vectors"
                )
        else:
            vectors = vectors.reshape(-1, vectors.shape[-1])
            vectors = vectors[np.isfinite(vectors).all(-1)]
        reservoir.add(vectors)
        progress.update(number)
    if not reservoir.held:
        raise ValueError(
            "`x` must give at least one vector that is finite and not masked. Check that `x` is not empty, and that "
            f"the encoder's outputs are finite. Received: x of type {type(x).__name__} in {number} batches"
        )
    progress.update(number, finalize=True)
    return reservoir.rows()


def batches(x: Data, needed: int, batch_size: int, steps: int | None, seed: int) -> Iterator[Any]:
    """Yields inputs as NumPy arrays: all batches of a data set, or a random choice of `needed` samples of arrays."""
    leaves = keras.tree.flatten(x)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        for batch in first_batches(x, steps):
            yield keras.tree.map_structure(to_numpy, keras.utils.unpack_x_y_sample_weight(batch)[0])
        return
    # Tensors and tables become arrays, which can be indexed by arrays.
    x = keras.tree.map_structure(lambda leaf: leaf if isinstance(leaf, np.ndarray) else to_numpy(leaf), x)
    if len({len(leaf) for leaf in leaves}) > 1:
        raise ValueError(
            "`x` must have arrays with the same number of samples. "
            f"Received: arrays of {', '.join(str(len(leaf)) for leaf in leaves)} samples"
        )
    chosen = np.arange(len(leaves[0]) if steps is None else min(len(leaves[0]), steps * batch_size))
    if needed < len(chosen):
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, needed, replace=False))
    # 64 batches per call of `predict`, because the start of a call takes longer than most batches.
    for start in range(0, len(chosen), 64 * batch_size):
        rows = chosen[start : start + 64 * batch_size]
        yield keras.tree.map_structure(lambda leaf, rows=rows: leaf[rows], x)


def first_batches(x: Any, steps: int | None) -> Iterator[Any]:
    """Yields the first batches of a source, or all of them if `steps` is `None`."""
    if isinstance(x, keras.utils.PyDataset):
        endless, numbers = x.num_batches is None, range(x.num_batches or 0)
        found: Iterable[Any] = (x[number] for number in (itertools.count() if endless else numbers))
    else:
        # TensorFlow reports a cardinality of -1 for a data set that repeats for ever.
        endless, found = hasattr(x, "cardinality") and int(x.cardinality()) == -1, x
    if endless and steps is None:
        raise ValueError(
            "`steps` must be given if `x` is infinite: the number of batches to read. "
            f"Received: steps=None, x of type {type(x).__name__}"
        )
    return itertools.islice(found, steps)


def to_numpy(x: Any) -> np.ndarray:
    """Converts a tensor or a table to an array."""
    if hasattr(x, "detach"):
        # PyTorch tensors may have a gradient, be on another device, or be bfloat16, which NumPy lacks.
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() and x.element_size() < 4 else x
    return np.asarray(x)
