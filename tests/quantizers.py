"""Every quantizer, for the contract suite and the checks across backends. A new one costs a line."""

import keras_vqvae

DIM = 4
"""The last axis that each of them takes."""

QUANTIZERS = {
    "optimizer": lambda **keywords: keras_vqvae.VectorQuantizer(16, seed=7, **keywords),
    "ema": lambda **keywords: keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=7, **keywords),
    "ema_without_revival": lambda **keywords: keras_vqvae.VectorQuantizer(
        16, ema_decay=0.9, dead_code_threshold=0, seed=7, **keywords
    ),
    "cosine": lambda **keywords: keras_vqvae.VectorQuantizer(
        16, ema_decay=0.9, distance="cosine", estimator="rotation", seed=7, **keywords
    ),
    "diveq": lambda **keywords: keras_vqvae.VectorQuantizer(16, estimator="diveq", seed=7, **keywords),
}
