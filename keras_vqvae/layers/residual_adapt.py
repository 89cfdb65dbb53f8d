"""Codebooks of a residual that are filled from data: k-means, stage by stage."""

from typing import Any

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers import wrappers
from keras_vqvae.ops import clustering
from keras_vqvae.types import Tensor

BEAM_WIDTH = 4
"""With a beam, a stage clusters what up to this many of a vector's best sums leave."""
MAX_ERROR = 2.0
"""Of them, only sums whose squared error is at most this many times that of the best one."""
ROUNDS = 5
"""How often the codes of every stage then move along the sums that the beam finds."""


def adapt(residual: Any, vectors: Tensor, **keywords: Any) -> None:
    """Fills the codebooks of a `ResidualQuantizer`, given vectors `[..., D]` and the arguments of `kmeans`."""
    vectors = ops.convert_to_numpy(vectors)
    # A copy, which may be changed.
    vectors = vectors.reshape(-1, vectors.shape[-1]).astype("float32")
    if not residual.built:
        residual.build(vectors.shape)
    rest = vectors
    for depth, quantizer in enumerate(residual.quantizers, start=1):
        if not wrappers.keeps_codes(residual, quantizer):
            quantizer.adapt(rest, **keywords)
        if depth < residual.num_quantizers:
            rest = _rests(residual, vectors, rest, depth)
    if residual.beam_width > 1:
        _refine(residual, vectors, {**keywords, "init": "codebook", "epochs": 1, "verbose": 0})


def _rests(residual: Any, vectors: np.ndarray, rest: np.ndarray, depth: int) -> np.ndarray:
    """What the first stages leave, given what those before the last of them left: `[N, D]` -> `[M, D]`."""
    if residual.beam_width > 1:
        return np.concatenate([_near_rests(residual, vectors[chunk], depth) for chunk in clustering.chunks(vectors)])
    # In place: large data is in memory twice, and no more. Without a beam `vectors` are not needed again.
    for chunk in clustering.chunks(rest):
        nearest = wrappers.nearest(residual.quantizers[depth - 1], backend.spread_rows(rest[chunk]))
        rest[chunk] -= ops.convert_to_numpy(nearest)
    return rest


def _near_rests(residual: Any, vectors: np.ndarray, depth: int) -> np.ndarray:
    """What the best sums of the first stages' codes leave, and those that are nearly as good: `[n, D]` -> `[m, D]`.

    The best sums alone show the next stage too little of what a beam will leave. All of a fixed number show it too
    much: of clusters, the second best sum is a code of another cluster, which no vector will use.
    """
    # `[n, S, depth]`
    indices = ops.stack(residual.search(backend.spread_rows(vectors), depth), axis=-1)[:, :BEAM_WIDTH]
    sums = ops.convert_to_numpy(residual.lookup(ops.reshape(indices, (-1, depth))))
    rests = vectors[:, None] - sums.reshape(len(vectors), -1, vectors.shape[-1])
    errors = np.einsum("nsd,nsd->ns", rests, rests)
    return rests[errors <= MAX_ERROR * errors[:, :1]]


def _refine(residual: Any, vectors: np.ndarray, keywords: dict[str, Any]) -> None:
    """Moves the codes of each stage in turn, with those of the others as they are."""
    parts = list(clustering.chunks(vectors))
    for _ in range(ROUNDS):
        best = [residual.search(backend.spread_rows(vectors[part]), residual.num_quantizers) for part in parts]
        # `[n, Q]` each
        indices = [np.stack([ops.convert_to_numpy(sums[:, 0]) for sums in found], axis=1) for found in best]
        for stage, quantizer in enumerate(residual.quantizers):
            if wrappers.keeps_codes(residual, quantizer):
                continue
            others = [np.where(np.arange(residual.num_quantizers) == stage, -1, each) for each in indices]
            sums = [ops.convert_to_numpy(residual.lookup(backend.spread_rows(each))) for each in others]
            quantizer.adapt(vectors - np.concatenate(sums), **keywords)
