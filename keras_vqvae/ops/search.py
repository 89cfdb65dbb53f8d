"""The search for the nearest code: exact, in float32, and without the `N x K` distances.

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

    The search goes by blocks of vectors and codes, so its memory does not grow with `N x K`. Of codes equally near, the
    first is taken. It has no gradient.

    Args:
        vectors: `[..., D]`, with any leading dimensions.
        codebook: `[K, D]`.
        distance: `"euclidean"`, or `"cosine"` or `"direction"`, which both compare directions. Defaults to
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
        # |z - e|^2 is 2 - 2 cos(z, e) between unit vectors: the nearest code is the same.
        vectors, codebook = geometry.unit(vectors), geometry.unit(codebook)
    leading = ops.shape(vectors)[:-1]
    # `[..., D]` -> `[N, D]` -> `[...]`
    indices = search(ops.reshape(vectors, (-1, vectors.shape[-1])), codebook)
    return ops.reshape(ops.cast(indices, "int32"), leading)


def search(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`nearest_code` without checks, in the integer dtype that costs least: `[N, D]`, `[K, D]` -> `[N]`."""
    vectors, codebook = ops.stop_gradient(vectors), ops.stop_gradient(codebook)
    return _search(vectors, codebook, backend.block_scores(vectors), backend.block_codes(codebook.shape[0]))


def search_groups(groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor]:
    """`search` for several groups of dimensions at once: `[N, d]` each, `[K, d]` each -> `[N]` each."""
    found = backend.search_groups([ops.stop_gradient(x) for x in groups], [ops.stop_gradient(x) for x in codebooks])
    return [search(*pair) for pair in zip(groups, codebooks, strict=True)] if found is None else found


def check_distance(distance: str) -> str:
    """Returns `distance`, which must be the name of one."""
    if not isinstance(distance, str) or distance not in ("euclidean", "cosine", "direction"):
        raise ValueError(f"`distance` must be 'euclidean', 'cosine' or 'direction'. Received: distance={distance!r}")
    return distance


@functools.partial(backend.jit, static_argnums=(2, 3))
def _search(vectors: Tensor, codebook: Tensor, block_scores: int, block_codes: int) -> Tensor:
    """`[N, D]`, `[K, D]` -> int32 `[N]`."""
    if vectors.shape[0] == 0:
        return ops.zeros((0,), dtype="int32")
    # Distances do not change when everything moves. Around the codes' mean the products below are small, and their
    # rounding does not hide the distances of vectors far from the origin.
    centre = ops.mean(codebook, axis=0)
    best = found = None
    for start in range(0, codebook.shape[0], block_codes):
        codes = codebook[start : start + block_codes] - centre
        # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the nearest code has the highest score z e - |e|^2 / 2.
        bias = backend.search_bias(codes)
        # The difference by blocks, which stay in the cache.
        best_code = functools.partial(_best_code, centre=centre, codes=codes, bias=bias)
        block_rows = max(block_scores // codes.shape[0], 1)
        scores, indices = backend.by_blocks(best_code, vectors, block_rows, (((), "float32"), ((), "int32")))
        if best is None:
            best, found = scores, indices
        else:
            # A later code must be better: of equals the first stays.
            better = scores > best
            best, found = ops.where(better, scores, best), ops.where(better, indices + start, found)
    return found


def _best_code(vectors: Tensor, centre: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return backend.best_code(vectors - centre, codes, bias)


def beam_search(vectors: Tensor, codebooks: list[Tensor], beam_width: int) -> Sequence[Tensor]:
    """Finds sums of a code of each codebook that are near the vector.

    Of the sums with each further codebook the `beam_width` nearest go on, whichever they continue. It goes by blocks of
    vectors, and has no gradient.

    Args:
        vectors: `[N, D]`.
        codebooks: Those of the stages of a residual, `[K, D]` each.
        beam_width: How many sums go on, `B`.

    Returns:
        Int32 indices `[N, B]` of each stage, those of the nearest sum first; fewer than `B` where there are no more.

    Reference:

    - [Babenko and Lempitsky, 2014](https://doi.org/10.1109/CVPR.2014.124), section 3.2, there for codes in any order
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
    # What the sums leave, `[n, B, D]`, and their indices, `[n, B]` a stage
    rest = ops.expand_dims(vectors, 1)
    paths: list[Tensor] = []
    for codes in codebooks:
        size = codes.shape[0]
        centre = ops.mean(codes, axis=0)
        rest, codes = rest - centre, codes - centre
        # -|r - e|^2 / 2 = r e - |e|^2 / 2 - |r|^2 / 2 in one product, around the codes' mean as in `_search`
        of_rest, of_codes = (-0.5 * ops.sum(ops.square(x), axis=-1, keepdims=True) for x in (rest, codes))
        factors = (
            ops.concatenate([rest, of_rest, ops.ones_like(of_rest)], axis=-1),
            ops.concatenate([codes, ops.ones_like(of_codes), of_codes], axis=-1),
        )
        scores = backend.matmul(factors[0], ops.transpose(factors[1]))
        # `[n, B, K]` -> `[n, B K]` -> `[n, B]`
        scores = ops.reshape(scores, (-1, scores.shape[1] * size))
        places = backend.best_places(scores, min(beam_width, scores.shape[1]))
        parents = places // size
        indices = places - parents * size
        rest = ops.take_along_axis(rest, ops.expand_dims(parents, -1), axis=1) - backend.gather_rows(codes, indices)
        paths = [ops.take_along_axis(path, parents, axis=1) for path in paths] + [indices]
    return paths
