"""k-means with the package's own search, for the initialization of codebooks.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

import warnings
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.ops import codebook, search
from keras_vqvae.types import Tensor

_CHUNK_ELEMENTS = 1 << 22
_STARTING_VECTORS = 32


def kmeans(
    vectors: Tensor,
    num_embeddings: int,
    init: str | Tensor = "k-means++",
    epochs: int = 20,
    batch_size: int | None = None,
    distance: str = "euclidean",
    seed: int | None = None,
    verbose: str | int = "auto",
) -> tuple[Tensor, np.ndarray]:
    """Computes a codebook with k-means.

    Without `batch_size` an epoch is one step of Lloyd's algorithm: every code moves to the mean of its vectors. With
    `batch_size` (mini-batch k-means) codes move after every batch, to the mean of all vectors that have chosen them so
    far, which needs fewer epochs on large data. A code that no vector chose moves to a random vector. k-means ends
    early when no code moves. The vectors stay in host memory, and the device holds one block of them at a time.

    Args:
        vectors: `[..., D]`, a NumPy array or a tensor. Vectors with a NaN or an infinity are left out.
        num_embeddings: Number of codes, `K`. There should be at least as many vectors.
        init: Initial codes. `"k-means++"` draws one vector after the other, with a probability in proportion to the
            squared distance from the nearest code so far. For each code it makes a few draws and keeps the best. It
            draws from a sample of at most `32 K` vectors. `"random"` draws vectors uniformly. Codes `[K, D]` are used
            as given. Defaults to `"k-means++"`.
        epochs: Maximum number of passes over the vectors. Defaults to `20`.
        batch_size: Number of vectors per step. Defaults to `None`, all vectors.
        distance: `"euclidean"`; `"cosine"`, which scales vectors and codes to unit norm; or `"direction"`, which
            compares by cosine similarity, but moves each code to the mean of its unscaled vectors. Defaults to
            `"euclidean"`.
        seed: Integer seed of all draws. Defaults to `None`, a random seed.
        verbose: 0 for silence, 1 for a progress bar, 2 for its last line. Defaults to `"auto"`, which is 1.

    Returns:
        `(codebook, counts)`: a float32 tensor `[K, D]`, and the number of vectors of each code, int64 `[K]`.

    Raises:
        ValueError: If an argument is out of its range, or there is no finite vector.

    Example:

    >>> vectors = keras.random.normal((100, 2), seed=0)
    >>> codes, counts = kmeans(vectors, num_embeddings=4, seed=0, verbose=0)
    >>> codes.shape == (4, 2), int(counts.sum())
    (True, 100)

    References:

    - [Arthur and Vassilvitskii, 2007](https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf), k-means++
    - [Sculley, 2010](https://dl.acm.org/doi/10.1145/1772690.1772862), mini-batches
    """
    num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
    epochs = validation.positive_int("epochs", epochs)
    vectors = _finite(vectors, search.check_distance(distance))
    if len(vectors) < num_embeddings:
        warnings.warn(
            "`vectors` has fewer finite vectors than there are codes, so some codes are equal. Give more vectors (256 "
            "per code are enough) or a smaller `num_embeddings`. "
            f"Received: {len(vectors)} vectors, num_embeddings={num_embeddings}",
            stacklevel=2,
        )
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(f"`verbose` must be 'auto', 0, 1 or 2. Received: verbose={verbose!r}")
    # Without a seed, NumPy's global state decides, which `keras.utils.set_random_seed` sets.
    seed = np.random.randint(validation.INT32_MAX) if seed is None else validation.seed(seed)
    generator = np.random.default_rng(seed)
    codes = _start(vectors, num_embeddings, init, distance, generator)
    step = len(vectors) if batch_size is None else validation.positive_int("batch_size", batch_size)
    batched = step < len(vectors)
    counts = np.zeros(num_embeddings, "int64")
    progress = keras.utils.Progbar(epochs, verbose=1 if verbose == "auto" else int(verbose), unit_name="epoch")
    for epoch in range(epochs):
        before, error = codes, 0.0
        order = generator.permutation(len(vectors)) if batched else None
        for start in range(0, len(vectors), step):
            batch = vectors if order is None else vectors[order[start : start + step]]
            chosen, sums, squares = _assign(batch, codes, distance)
            # Lloyd's algorithm counts the vectors of this step only.
            counts = counts + chosen if batched else chosen
            # `((c - n) e + s) / c`, where `c` are the counts so far, `n` and `s` the counts and sums of this step, and
            # `e` the codes. If `c` is `n`, this is exactly Lloyd's mean, `s / n`.
            earlier, weights = (
                ops.convert_to_tensor(number[:, None].astype("float32"))
                for number in (counts - chosen, np.maximum(counts, 1))
            )
            strays = vectors[generator.integers(len(vectors), size=num_embeddings)]
            codes = ops.where(ops.convert_to_tensor(counts[:, None] > 0), (earlier * codes + sums) / weights, strays)
            codes = ops.normalize(codes, axis=-1) if distance == "cosine" else codes
            error += squares
        done = bool(ops.all(codes == before))
        # The mean squared error over elements, as for a reconstruction.
        progress.update(epochs if done else epoch + 1, [("error", error / vectors.size)], finalize=done or None)
        if done:
            break
    return codes, _assign(vectors, codes, distance)[0]


def chunks(vectors: np.ndarray) -> Iterator[slice]:
    """Yields slices of `[N, D]`, one for each block of rows that the device holds at a time."""
    rows = max(_CHUNK_ELEMENTS // vectors.shape[1], 1)
    for start in range(0, len(vectors), rows):
        yield slice(start, start + rows)


def _finite(vectors: Tensor, distance: str) -> np.ndarray:
    """Returns the finite vectors of `[..., D]` in float32, scaled to unit norm for `"cosine"`: `[N, D]`."""
    vectors = ops.convert_to_numpy(vectors)
    if not vectors.ndim:
        raise ValueError(f"`vectors` must be an array [..., D]. Received: vectors of shape {vectors.shape}")
    given = vectors.shape
    vectors = vectors.reshape(-1, vectors.shape[-1]).astype("float32", copy=False)
    # A vector is finite if its sum of squares is, as in training.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
    finite = np.isfinite(squares)
    vectors = vectors if finite.all() else vectors[finite]
    if not len(vectors):
        raise ValueError(
            "`vectors` must contain at least one vector without NaN or infinity. "
            f"Received: vectors of shape {given}, none of them finite"
        )
    if distance == "cosine":
        vectors = vectors / np.sqrt(np.maximum(squares[finite], 1e-12))[:, None]
    return vectors


def _start(
    vectors: np.ndarray, num_embeddings: int, init: str | Tensor, distance: str, generator: np.random.Generator
) -> Tensor:
    """Returns the initial codes `[K, D]`. They are drawn on the host, and so are the same on every backend."""
    if not isinstance(init, str) and getattr(init, "shape", None) == (num_embeddings, vectors.shape[1]):
        codes = ops.convert_to_tensor(init, dtype="float32")
        return ops.normalize(codes, axis=-1) if distance == "cosine" else codes
    if not isinstance(init, str) or init not in ("k-means++", "random"):
        shape = getattr(init, "shape", None)
        given = f"={init!r}" if isinstance(init, str) else f" of type {type(init).__name__} and shape {shape}"
        raise ValueError(
            f"`init` must be 'k-means++', 'random' or an array of codes of shape {(num_embeddings, vectors.shape[1])}. "
            f"Received: init{given}"
        )
    if init == "random":
        distinct = num_embeddings <= len(vectors)
        return ops.convert_to_tensor(vectors[generator.choice(len(vectors), num_embeddings, replace=not distinct)])
    sample = vectors
    if len(vectors) > _STARTING_VECTORS * num_embeddings:
        sample = vectors[generator.choice(len(vectors), _STARTING_VECTORS * num_embeddings, replace=False)]
    points = sample
    if distance == "direction":
        points = sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)
    squares = np.einsum("nd,nd->n", points, points)
    distances = np.full(len(sample), np.inf, "float32")
    chosen: list[int] = []
    trials = 2 + int(np.log(num_embeddings))
    for _ in range(num_embeddings):
        # Draws are uniform for the first code, and if every vector is a code already.
        total = np.cumsum(distances, dtype="float64") if chosen and distances.any() else np.arange(1.0, len(sample) + 1)
        drawn = np.searchsorted(total, generator.random(trials) * total[-1], side="right")
        drawn = np.minimum(drawn, len(sample) - 1)
        # `[n, D]`, `[trials, D]` -> `[n, trials]`. The best draw leaves the smallest sum of distances.
        to_drawn = np.maximum(squares[:, None] - 2 * points @ points[drawn].T + squares[drawn], 0)
        left = np.minimum(distances[:, None], to_drawn)
        best = left.sum(axis=0).argmin()
        chosen.append(drawn[best])
        distances = left[:, best]
        distances[chosen[-1]] = 0
    return ops.convert_to_tensor(sample[chosen])


def _assign(vectors: np.ndarray, codes: Tensor, distance: str) -> tuple[np.ndarray, Tensor, float]:
    """Returns each code's number of vectors `[K]` and their sum `[K, D]`, and the sum of all squared distances."""
    num_embeddings, dim = codes.shape
    counts, sums, squares = np.zeros(num_embeddings, "int64"), ops.zeros((num_embeddings, dim), "float32"), 0.0
    for part in chunks(vectors):
        # `[n, D]`
        chunk = backend.spread_rows(vectors[part])
        # For `"cosine"`, vectors and codes have unit norm already.
        indices = search.nearest_code(chunk, codes, "euclidean" if distance == "cosine" else distance)
        valid = ops.ones_like(indices, dtype="bool")
        counts += ops.convert_to_numpy(codebook.count_codes(indices, valid, num_embeddings))
        sums = sums + backend.segment_sum(chunk, indices, num_embeddings)
        squares += float(ops.sum(ops.square(chunk - codebook.gather_codes(codes, indices))))
    return counts, sums, squares
