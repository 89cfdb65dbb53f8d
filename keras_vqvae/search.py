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
    if vectors.shape[0] == 0:
        return ops.zeros((0,), dtype="int32")
    # Distances do not change when everything moves. Around the codes' mean the products below are small, and their
    # rounding does not hide the distances of vectors far from the origin.
    centre = ops.mean(codebook, axis=0)
    vectors = vectors - centre
    best = found = None
    for start in range(0, codebook.shape[0], block_codes):
        codes = codebook[start : start + block_codes] - centre
        # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the nearest code has the highest score z e - |e|^2 / 2.
        bias = -0.5 * ops.sum(ops.square(codes), axis=-1)
        scores, indices = backend.best_codes(vectors, codes, bias, max(block_scores // codes.shape[0], 1))
        if best is None:
            best, found = scores, indices
        else:
            # A later code must be better: of equals the first stays.
            better = scores > best
            best, found = ops.where(better, scores, best), ops.where(better, indices + start, found)
    return found
