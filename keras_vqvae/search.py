"""The search for the nearest code: exact, in float32, and without the `N x K` distances.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

import functools

from keras import ops

from keras_vqvae import backend
from keras_vqvae.arguments import Tensor


def nearest_code(vectors: Tensor, codebook: Tensor, distance: str = "euclidean") -> Tensor:
    """Finds each vector's nearest code.

    The search goes by blocks of vectors and codes, so its memory does not grow with `N x K`. Of codes equally near, the
    first is taken. It has no gradient.

    Args:
        vectors: `[..., D]`, with any leading dimensions.
        codebook: `[K, D]`.
        distance: `"euclidean"`, or `"cosine"`, which compares directions. Defaults to `"euclidean"`.

    Returns:
        Int32 indices `[...]` from 0 to `K - 1`.

    Raises:
        ValueError: If the last dimensions differ, or `distance` is unknown.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> keras.ops.convert_to_numpy(nearest_code(codebook[2:5], codebook)).tolist()
    [2, 3, 4]
    """
    vectors = ops.stop_gradient(ops.cast(vectors, "float32"))
    codebook = ops.stop_gradient(ops.cast(codebook, "float32"))
    if len(codebook.shape) != 2 or len(vectors.shape) < 1 or vectors.shape[-1] != codebook.shape[-1]:
        raise ValueError(
            "`vectors` must have shape [..., D] and `codebook` [K, D]. "
            f"Received: vectors of shape {tuple(vectors.shape)}, codebook of shape {tuple(codebook.shape)}"
        )
    if check_distance(distance) == "cosine":
        # |z - e|^2 is 2 - 2 cos(z, e) between unit vectors: the nearest code is the same.
        vectors, codebook = ops.normalize(vectors, axis=-1), ops.normalize(codebook, axis=-1)
    leading = ops.shape(vectors)[:-1]
    # `[..., D]` -> `[N, D]` -> `[...]`
    vectors = ops.reshape(vectors, (-1, vectors.shape[-1]))
    return ops.reshape(_search(vectors, codebook, backend.BLOCK_SCORES, backend.BLOCK_CODES), leading)


def check_distance(distance: str) -> str:
    """Returns `distance`, one of the two."""
    if not isinstance(distance, str) or distance not in ("euclidean", "cosine"):
        raise ValueError(f"`distance` must be 'euclidean' or 'cosine'. Received: distance={distance!r}")
    return distance


@functools.partial(backend.jit, static_argnums=(2, 3))
def _search(vectors: Tensor, codebook: Tensor, block_scores: int, block_codes: int) -> Tensor:
    """`[N, D]`, `[K, D]` -> int32 `[N]`."""
    # Distances do not change when everything moves. Around the codes' mean the products below are small, and their
    # rounding does not hide the distances of vectors far from the origin.
    centre = ops.mean(codebook, axis=0)
    vectors = vectors - centre
    best = found = None
    for start in range(0, codebook.shape[0], block_codes):
        scores, indices = _search_codes(vectors, codebook[start : start + block_codes] - centre, block_scores)
        if best is None:
            best, found = scores, indices
        else:
            # A later code must be better: of equals the first stays.
            better = scores > best
            best, found = ops.where(better, scores, best), ops.where(better, indices + start, found)
    return found


def _search_codes(vectors: Tensor, codes: Tensor, block_scores: int) -> tuple[Tensor, Tensor]:
    """`[N, D]`, `[k, D]` -> the best score and its int32 index, `[N]` each, by blocks of vectors."""
    # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the nearest code has the highest score z e - |e|^2 / 2.
    bias = -0.5 * ops.sum(ops.square(codes), axis=-1)
    rows, dim = ops.shape(vectors)
    if isinstance(rows, int) and rows == 0:
        return ops.zeros((0,), dtype="float32"), ops.zeros((0,), dtype="int32")
    block_rows = max(block_scores // codes.shape[0], 1)
    # When traced for any batch size, `rows` is no number yet, and there is no telling.
    if isinstance(rows, int) and rows <= block_rows:
        return backend.best_code(vectors, codes, bias)
    blocks = (rows + block_rows - 1) // block_rows
    # `[N, D]` -> `[blocks, block_rows, D]`, the last block filled up with zeros
    if not (isinstance(rows, int) and rows % block_rows == 0):
        vectors = ops.pad(vectors, [[0, blocks * block_rows - rows], [0, 0]])
    vectors = ops.reshape(vectors, (blocks, block_rows, dim))
    scores, indices = ops.map(lambda block: backend.best_code(block, codes, bias), vectors)
    return ops.reshape(scores, (-1,))[:rows], ops.reshape(indices, (-1,))[:rows]
