"""k-means by the package's own search: a codebook to start from.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

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
    """Places codes by k-means.

    Without `batch_size` an epoch is a step of Lloyd's: every code moves to the mean of its vectors. With it a code
    moves after every batch, to the mean of all vectors that ever chose it, which is sooner done where there are many.
    A code that no vector chose moves to a vector drawn at random. It ends early when codes stand still. The vectors
    stay in the host's memory; the device holds a block of them at a time.

    Args:
        vectors: `[..., D]`, a NumPy array or a tensor. Vectors with a NaN or an infinity are left out.
        num_embeddings: Number of codes, `K`.
        init: Where the codes start: `"k-means++"`, on vectors drawn in proportion to their squared distance from those
            before, the best of a few draws (among 32 vectors for every code, if there are more), `"random"`, on
            any, or codes `[K, D]`. Defaults to `"k-means++"`.
        epochs: Most passes over the vectors. Defaults to `20`.
        batch_size: Vectors of a step. Defaults to `None`: all.
        distance: `"euclidean"`; `"cosine"`, which scales vectors and codes to length 1; or `"direction"`, by which a
            vector chooses the code of the most similar direction, and a code moves to the mean of its vectors as they
            are, where their squared error is least. Defaults to `"euclidean"`.
        seed: Integer, the seed of all draws. Defaults to `None`, a random one.
        verbose: 0 for silence, 1 for a progress bar, 2 for its last line. Defaults to `"auto"`, which is 1.

    Returns:
        `(codebook, counts)`: a float32 tensor `[K, D]`, and how many vectors chose each code, int64 `[K]`.

    Raises:
        ValueError: If an argument is out of its range, or there is no finite vector.

    Example:

    >>> vectors = keras.random.normal((100, 2), seed=0)
    >>> codes, counts = kmeans(vectors, num_embeddings=4, seed=0, verbose=0)
    >>> codes.shape == (4, 2), int(counts.sum())
    (True, 100)

    References:

    - [Arthur and Vassilvitskii, 2007](https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf), the start
    - [Sculley, 2010](https://dl.acm.org/doi/10.1145/1772690.1772862), batches
    """
    num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
    epochs = validation.positive_int("epochs", epochs)
    vectors = _finite(vectors, search.check_distance(distance))
    generator = np.random.default_rng(validation.seed(seed))
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
            # Lloyd's means are those of this step alone.
            counts = counts + chosen if batched else chosen
            # `((N - n) e + s) / N`, Lloyd's mean `s / n` to the last bit where `N` is `n`
            earlier, weights = (
                ops.convert_to_tensor(number[:, None].astype("float32"))
                for number in (counts - chosen, np.maximum(counts, 1))
            )
            strays = vectors[generator.integers(len(vectors), size=num_embeddings)]
            codes = ops.where(ops.convert_to_tensor(counts[:, None] > 0), (earlier * codes + sums) / weights, strays)
            codes = ops.normalize(codes, axis=-1) if distance == "cosine" else codes
            error += squares
        done = bool(ops.all(codes == before))
        # A mean over elements, as the error of a reconstruction is.
        progress.update(epochs if done else epoch + 1, [("error", error / vectors.size)], finalize=done or None)
        if done:
            break
    return codes, _assign(vectors, codes, distance)[0]


def chunks(vectors: np.ndarray) -> Iterator[slice]:
    """The parts of `[N, D]` that the device holds at a time."""
    rows = max(_CHUNK_ELEMENTS // vectors.shape[1], 1)
    for start in range(0, len(vectors), rows):
        yield slice(start, start + rows)


def _finite(vectors: Tensor, distance: str) -> np.ndarray:
    """The finite ones of `[..., D]` in float32, of length 1 for the cosine: `[N, D]`."""
    vectors = ops.convert_to_numpy(vectors)
    vectors = vectors.reshape(-1, vectors.shape[-1]).astype("float32", copy=False)
    # The sum of squares, which must not overflow, as in training.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
    finite = np.isfinite(squares)
    vectors = vectors if finite.all() else vectors[finite]
    if not len(vectors):
        raise ValueError(f"`vectors` must contain at least one finite vector. Received: shape {vectors.shape}")
    if distance == "cosine":
        vectors = vectors / np.sqrt(np.maximum(squares[finite], 1e-12))[:, None]
    return vectors


def _start(
    vectors: np.ndarray, num_embeddings: int, init: str | Tensor, distance: str, generator: np.random.Generator
) -> Tensor:
    """The codes to begin with, `[K, D]`, drawn on the host so that they are the same on every backend."""
    if not isinstance(init, str) and getattr(init, "shape", None) == (num_embeddings, vectors.shape[1]):
        codes = ops.convert_to_tensor(init, dtype="float32")
        return ops.normalize(codes, axis=-1) if distance == "cosine" else codes
    if init not in ("k-means++", "random"):
        raise ValueError(
            f"`init` must be 'k-means++', 'random' or codes of shape {(num_embeddings, vectors.shape[1])}. "
            f"Received: init={init!r}"
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
        # The first draw, and those where every vector has its code already, are uniform.
        total = np.cumsum(distances, dtype="float64") if chosen and distances.any() else np.arange(1.0, len(sample) + 1)
        drawn = np.searchsorted(total, generator.random(trials) * total[-1], side="right")
        drawn = np.minimum(drawn, len(sample) - 1)
        # `[n, D]`, `[trials, D]` -> `[n, trials]`: of several draws the one that leaves the least distance is taken.
        to_drawn = np.maximum(squares[:, None] - 2 * points @ points[drawn].T + squares[drawn], 0)
        left = np.minimum(distances[:, None], to_drawn)
        best = left.sum(axis=0).argmin()
        chosen.append(drawn[best])
        distances = left[:, best]
        distances[chosen[-1]] = 0
    return ops.convert_to_tensor(sample[chosen])


def _assign(vectors: np.ndarray, codes: Tensor, distance: str) -> tuple[np.ndarray, Tensor, float]:
    """Of each code, how many vectors chose it and their sum, `[K]` and `[K, D]`; the sum of squared distances."""
    num_embeddings, dim = codes.shape
    counts, sums, squares = np.zeros(num_embeddings, "int64"), ops.zeros((num_embeddings, dim), "float32"), 0.0
    for part in chunks(vectors):
        # `[n, D]`
        chunk = backend.spread_rows(vectors[part])
        # By cosine all have length 1 already.
        indices = search.nearest_code(chunk, codes, "euclidean" if distance == "cosine" else distance)
        valid = ops.ones_like(indices, dtype="bool")
        counts += ops.convert_to_numpy(codebook.count_codes(indices, valid, num_embeddings))
        sums = sums + backend.segment_sum(chunk, indices, num_embeddings)
        squares += float(ops.sum(ops.square(chunk - codebook.gather_codes(codes, indices))))
    return counts, sums, squares
