"""Initialization of a residual's codebooks with k-means, stage by stage."""

from typing import Any

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers import input_checks, wrappers
from keras_vqvae.ops import clustering
from keras_vqvae.types import Tensor

BEAM_WIDTH = 4
"""Maximum number of sums per vector whose residuals a stage clusters, if `beam_width > 1`."""
MAX_ERROR = 2.0
"""Largest squared error of such a sum, relative to the error of the vector's best sum."""
ROUNDS = 5
"""Number of rounds of refinement with a beam, after all stages are initialized. Each round updates the codes of every
stage once."""


def adapt(residual: Any, vectors: Tensor, **keywords: Any) -> None:
    """Initializes the codebooks of a `ResidualQuantizer`.

    Args:
        residual: The `ResidualQuantizer`.
        vectors: Outputs of the encoder, `[..., D]`.
        **keywords: Arguments of `CodebookQuantizer.adapt`.
    """
    vectors = ops.convert_to_numpy(input_checks.vectors_to_adapt(residual, vectors))
    # A copy, because `_residuals` changes it in place.
    vectors = vectors.reshape(-1, vectors.shape[-1]).astype("float32")
    residuals = vectors
    for num_stages, quantizer in enumerate(residual.quantizers, start=1):
        if not wrappers.keeps_codes(residual, quantizer):
            quantizer.adapt(residuals, **keywords)
        if num_stages < residual.num_quantizers:
            residuals = _residuals(residual, vectors, residuals, num_stages)
    if residual.beam_width > 1:
        _refine(residual, vectors, {**keywords, "init": "codebook", "epochs": 1, "verbose": 0})


def _residuals(residual: Any, vectors: np.ndarray, previous: np.ndarray, num_stages: int) -> np.ndarray:
    """Returns the residuals `[M, D]` of the first stages.

    Args:
        residual: The `ResidualQuantizer`.
        vectors: The vectors `[N, D]`.
        previous: Residuals of the first `num_stages - 1` stages. Without a beam they are changed in place.
        num_stages: Number of first stages.
    """
    if residual.beam_width > 1:
        chunks = clustering.chunks(vectors)
        return np.concatenate([_near_residuals(residual, vectors[chunk], num_stages) for chunk in chunks])
    # In place, so that large data is in memory only twice. Without a beam, `vectors` are not needed again.
    for chunk in clustering.chunks(previous):
        nearest = wrappers.nearest(residual.quantizers[num_stages - 1], backend.spread_rows(previous[chunk]))
        previous[chunk] -= ops.convert_to_numpy(nearest)
    return previous


def _near_residuals(residual: Any, vectors: np.ndarray, num_stages: int) -> np.ndarray:
    """Returns the residuals of each vector's best sums of codes of the first stages: `[n, D]` -> `[m, D]`.

    The best sum of each vector is too little: in a beam search, the next stage also gets residuals of other sums. A
    fixed number of sums is too much: if the vectors form clusters, the second-best sum is a code of another cluster,
    which no vector will use. So a sum is kept if its error is close to that of the best sum.
    """
    # `[n, S, num_stages]`
    indices = ops.stack(residual.search(backend.spread_rows(vectors), num_stages), axis=-1)[:, :BEAM_WIDTH]
    sums = ops.convert_to_numpy(residual.lookup(ops.reshape(indices, (-1, num_stages))))
    residuals = vectors[:, None] - sums.reshape(len(vectors), -1, vectors.shape[-1])
    errors = np.einsum("nsd,nsd->ns", residuals, residuals)
    return residuals[errors <= MAX_ERROR * errors[:, :1]]


def _refine(residual: Any, vectors: np.ndarray, keywords: dict[str, Any]) -> None:
    """Updates the codes of one stage after the other, while the other stages keep their codes."""
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
