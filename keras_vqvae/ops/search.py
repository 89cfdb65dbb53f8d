"""The search for the nearest code: exact, in float32, and without storing `N x K` distances.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

import functools
import math
from collections.abc import Sequence

from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.ops import geometry
from keras_vqvae.types import Tensor


def nearest_code(vectors: Tensor, codebook: Tensor, distance: str = "euclidean") -> Tensor:
    """Finds each vector's nearest code.

    The search runs in blocks of vectors and codes, so its memory does not grow with `N x K`. If several codes are
    equally near, it returns the first. It has no gradient.

    Args:
        vectors: `[..., D]`, with any leading dimensions.
        codebook: `[K, D]`.
        distance: `"euclidean"`, or `"cosine"` or `"direction"`, which both compare by cosine similarity. Defaults to
            `"euclidean"`.

    Returns:
        Int32 indices `[...]` from 0 to `K - 1`.

    Raises:
        ValueError: If the last dimensions differ, or `distance` is unknown.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> keras.ops.convert_to_numpy(nearest_code(codebook[2:5], codebook)).tolist()
    [2, 3, 4]
    """
    vectors, codebook = ops.cast(vectors, "float32"), ops.cast(codebook, "float32")
    if len(codebook.shape) != 2 or len(vectors.shape) < 1 or vectors.shape[-1] != codebook.shape[-1]:
        raise ValueError(
            "`vectors` must have shape [..., D] and `codebook` [K, D]. "
            f"Received: vectors of shape {tuple(vectors.shape)}, codebook of shape {tuple(codebook.shape)}"
        )
    if check_distance(distance) != "euclidean":
        # Between vectors of unit norm, |z - e|^2 is 2 - 2 cos(z, e), so the nearest code has the highest cosine.
        vectors, codebook = geometry.unit(vectors), geometry.unit(codebook)
    leading = ops.shape(vectors)[:-1]
    # `[..., D]` -> `[N, D]` -> `[...]`
    indices = search(ops.reshape(vectors, (-1, vectors.shape[-1])), codebook)
    return ops.reshape(ops.cast(indices, "int32"), leading)


def search(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Finds nearest codes without checks: `[N, D]`, `[K, D]` -> `[N]`, in the backend's cheapest integer dtype."""
    vectors, codebook = ops.stop_gradient(vectors), ops.stop_gradient(codebook)
    return _search(vectors, codebook, backend.block_scores(vectors), backend.block_codes(codebook.shape[0]))


def search_groups(groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor]:
    """Finds nearest codes in several groups of dimensions: `[N, d]` each, `[K, d]` each -> `[N]` each."""
    found = backend.search_groups([ops.stop_gradient(x) for x in groups], [ops.stop_gradient(x) for x in codebooks])
    return [search(*pair) for pair in zip(groups, codebooks, strict=True)] if found is None else found


def check_distance(distance: str) -> str:
    """Returns `distance` if it is a known name."""
    if not isinstance(distance, str) or distance not in ("euclidean", "cosine", "direction"):
        raise ValueError(f"`distance` must be 'euclidean', 'cosine' or 'direction'. Received: distance={distance!r}")
    return distance


@functools.partial(backend.jit, static_argnums=(2, 3))
def _search(vectors: Tensor, codebook: Tensor, block_scores: int, block_codes: int) -> Tensor:
    """`[N, D]`, `[K, D]` -> integers `[N]`."""
    if vectors.shape[0] == 0:
        return ops.zeros((0,), dtype="int32")
    # Vectors and codes are shifted so that the mean of the codes is 0. This changes no distance. It makes the products
    # below small: far from 0, their rounding errors would distort the distances.
    centre = ops.mean(codebook, axis=0)
    best = found = None
    for start in range(0, codebook.shape[0], block_codes):
        codes = codebook[start : start + block_codes] - centre
        # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the nearest code has the highest score z e - |e|^2 / 2.
        bias = backend.search_bias(codes)
        # Each block of vectors is shifted separately, so that it stays in the cache.
        best_code = functools.partial(_best_code, centre=centre, codes=codes, bias=bias)
        block_rows = max(block_scores // codes.shape[0], 1)
        scores, indices = backend.by_blocks(best_code, vectors, block_rows, (((), "float32"), ((), "int32")))
        if best is None:
            best, found = scores, indices
        else:
            # Strictly better, so that the first of equally near codes is kept.
            better = scores > best
            best, found = ops.where(better, scores, best), ops.where(better, indices + start, found)
    return found


def _best_code(vectors: Tensor, centre: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return backend.best_code(vectors - centre, codes, bias)


def beam_search(vectors: Tensor, codebooks: list[Tensor], beam_width: int) -> Sequence[Tensor]:
    """Finds, approximately, the sums of codes nearest to each vector. A sum has one code from each codebook.

    After each codebook, the search keeps the `beam_width` best partial sums, regardless of which earlier sums they
    extend. It runs in blocks of vectors, and has no gradient.

    Args:
        vectors: `[N, D]`.
        codebooks: Codebooks of the stages of a residual, `[K, D]` each.
        beam_width: Number of sums to keep, `B`.

    Returns:
        Int32 indices `[N, B]` for each stage, with the best sum first. There are fewer than `B` columns if there are
        fewer than `B` sums.

    Reference:

    - [Babenko and Lempitsky, 2014](https://doi.org/10.1109/CVPR.2014.124), section 3.2, where codes may be in any order
    """
    vectors, codebooks = ops.stop_gradient(vectors), [ops.stop_gradient(codes) for codes in codebooks]
    return _beam_search(vectors, codebooks, beam_width, backend.block_scores(vectors))


@functools.partial(backend.jit, static_argnums=(2, 3))
def _beam_search(vectors: Tensor, codebooks: list[Tensor], beam_width: int, block_scores: int) -> Sequence[Tensor]:
    """`[N, D]`, `[K, D]` each -> int32 `[N, B]` each."""
    sizes = [codes.shape[0] for codes in codebooks]
    width = min(beam_width, math.prod(sizes))
    if vectors.shape[0] == 0:
        return [ops.zeros((0, width), dtype="int32") for _ in codebooks]
    block_rows = max(block_scores // (width * max(sizes)), 1)
    best_sums = functools.partial(_best_sums, codebooks=codebooks, beam_width=beam_width)
    return backend.by_blocks(best_sums, vectors, block_rows, (((width,), "int32"),) * len(codebooks))


def _best_sums(vectors: Tensor, codebooks: list[Tensor], beam_width: int) -> list[Tensor]:
    """`[n, D]`, `[K, D]` each -> int32 `[n, B]` each."""
    # Residuals of the partial sums, `[n, B, D]`, and their indices, `[n, B]` for each stage.
    residuals = ops.expand_dims(vectors, 1)
    paths: list[Tensor] = []
    for codes in codebooks:
        size = codes.shape[0]
        centre = ops.mean(codes, axis=0)
        residuals, codes = residuals - centre, codes - centre
        # One product computes -|r - e|^2 / 2 = r e - |e|^2 / 2 - |r|^2 / 2, with a shift as in `_search`.
        squares = [-0.5 * ops.sum(ops.square(x), axis=-1, keepdims=True) for x in (residuals, codes)]
        factors = (
            ops.concatenate([residuals, squares[0], ops.ones_like(squares[0])], axis=-1),
            ops.concatenate([codes, ops.ones_like(squares[1]), squares[1]], axis=-1),
        )
        scores = backend.matmul(factors[0], ops.transpose(factors[1]))
        # `[n, B, K]` -> `[n, B K]` -> `[n, B]`
        scores = ops.reshape(scores, (-1, scores.shape[1] * size))
        best = backend.best_indices(scores, min(beam_width, scores.shape[1]))
        parents = best // size
        indices = best - parents * size
        residuals = ops.take_along_axis(residuals, ops.expand_dims(parents, -1), axis=1)
        residuals = residuals - backend.gather_rows(codes, indices)
        paths = [ops.take_along_axis(path, parents, axis=1) for path in paths] + [indices]
    return paths
