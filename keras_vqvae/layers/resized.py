"""Codebook quantizers of another size with the codes of a trained one."""

from typing import Any

import numpy as np
from keras import ops

from keras_vqvae import serialization


def with_codes(quantizer: Any, rows: np.ndarray, num_embeddings: int) -> tuple[Any, np.ndarray]:
    """Returns a new layer that begins with the codes `rows` of a quantizer, and the new index of each old code.

    Args:
        quantizer: A built `CodebookQuantizer`.
        rows: Integers `[n]`: the codes to take, with all that belongs to them.
        num_embeddings: Number of codes of the new layer, at least `n`. Its initializer draws the others.

    Returns:
        `(layer, new_indices)`: the layer, built, and an int32 array `[K]` with -1 for codes that were not taken.
    """
    config = serialization.live_config(quantizer)
    config["embeddings_initializer"] = serialization.fresh_initializer(quantizer.embeddings_initializer, 0)
    layer = type(quantizer).from_config({**config, "num_embeddings": num_embeddings})
    layer.build((None, quantizer.embedding_dim))
    for old, new in zip(quantizer.weights, layer.weights, strict=True):
        values, drawn = ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        # A weight has a row for each code, or does not depend on their number.
        new.assign(values if old.shape == new.shape else np.concatenate([values[rows], drawn[len(rows) :]]))
    new_indices = np.full(quantizer.num_embeddings, -1, "int32")
    new_indices[rows] = np.arange(len(rows))
    return layer, new_indices
