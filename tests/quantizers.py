"""Every quantizer, for the contract suite and the checks across backends. A new one costs a line in two lists."""

import keras_vqvae

SHAPE = (3, 4)
"""Of a sample, of vectors or a grid: what each of them is built for."""
DIM = SHAPE[-1]


def vector(ema_decay=0.9):
    return keras_vqvae.VectorQuantizer(16, ema_decay=ema_decay, seed=7)


def scalar():
    return keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2))


QUANTIZERS = {
    "optimizer": lambda **keywords: keras_vqvae.VectorQuantizer(16, seed=7, **keywords),
    "ema": lambda **keywords: keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=7, **keywords),
    "ema_without_revival": lambda **keywords: keras_vqvae.VectorQuantizer(
        16, ema_decay=0.9, dead_code_threshold=0, seed=7, **keywords
    ),
    "cosine": lambda **keywords: keras_vqvae.VectorQuantizer(
        16, ema_decay=0.9, distance="cosine", estimator="rotation", seed=7, **keywords
    ),
    "direction": lambda **keywords: keras_vqvae.VectorQuantizer(16, distance="direction", seed=7, **keywords),
    "fsq": lambda **keywords: keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2), noise=0.5, seed=7, **keywords),
    "fsq_symmetric": lambda **keywords: keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2), symmetric=True, **keywords),
    "lfq": lambda **keywords: keras_vqvae.LookupFreeQuantizer(4, **keywords),
    "bsq": lambda **keywords: keras_vqvae.BinarySphericalQuantizer(4, **keywords),
    "sim": lambda **keywords: keras_vqvae.SimVectorQuantizer(16, seed=7, **keywords),
    "ibq": lambda **keywords: keras_vqvae.IndexBackpropagationQuantizer(16, seed=7, **keywords),
    "gumbel": lambda **keywords: keras_vqvae.GumbelQuantizer(16, seed=7, **keywords),
    "residual": lambda **keywords: keras_vqvae.ResidualQuantizer(vector(), 2, **keywords),
    "residual_shared": lambda **keywords: keras_vqvae.ResidualQuantizer(vector(), 2, shared_codebook=True, **keywords),
    "residual_fsq": lambda **keywords: keras_vqvae.ResidualQuantizer(scalar(), 3, **keywords),
    "stages": lambda **keywords: keras_vqvae.ResidualQuantizer(
        [
            keras_vqvae.VectorQuantizer(16, distance="cosine", seed=7),
            keras_vqvae.VectorQuantizer(8, ema_decay=0.9, seed=8),
            keras_vqvae.ProjectedQuantizer(keras_vqvae.VectorQuantizer(4, seed=9), 3),
        ],
        **keywords,
    ),
    "grouped": lambda **keywords: keras_vqvae.GroupedQuantizer(vector(), 2, **keywords),
    "grouped_residual": lambda **keywords: keras_vqvae.GroupedQuantizer(
        keras_vqvae.ResidualQuantizer(vector(ema_decay=None), 2), 2, **keywords
    ),
    "projected": lambda **keywords: keras_vqvae.ProjectedQuantizer(vector(), 3, **keywords),
    "diveq": lambda **keywords: keras_vqvae.VectorQuantizer(16, estimator="diveq", seed=7, **keywords),
    "scales": lambda **keywords: keras_vqvae.MultiScaleQuantizer(vector(), (1, 3), convolution=True, **keywords),
    "strides": lambda **keywords: keras_vqvae.MultiScaleQuantizer(vector(), strides=(3, 1), **keywords),
}

INNER = {
    "fsq": lambda dim: keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2)[:dim]),
    "lfq": lambda dim: keras_vqvae.LookupFreeQuantizer(dim),
    "bsq": lambda dim: keras_vqvae.BinarySphericalQuantizer(dim),
    "sim": lambda dim: keras_vqvae.SimVectorQuantizer(16, seed=7),
    "ibq": lambda dim: keras_vqvae.IndexBackpropagationQuantizer(16, seed=7),
    "gumbel": lambda dim: keras_vqvae.GumbelQuantizer(16, seed=7),
}


def composed(inner, **fixed):
    """In both wrappers that can hold any: a quantizer of each level of a residual in fewer dimensions."""
    return lambda **keywords: keras_vqvae.ProjectedQuantizer(
        keras_vqvae.ResidualQuantizer(inner(3), 2, **fixed), 3, **keywords
    )


COMPOSED = {f"composed_{name}": composed(inner) for name, inner in INNER.items()}
COMPOSED["residual_projected"] = lambda **keywords: keras_vqvae.ResidualQuantizer(
    keras_vqvae.ProjectedQuantizer(vector(), 3), 2, **keywords
)
# Not where levels share a codebook: two orders of the same codes are a tie, which compiled code breaks otherwise.
COMPOSED["composed_sim"] = composed(INNER["sim"], beam_width=4)
EVERY = QUANTIZERS | COMPOSED
"""For the contract, and for the checks across backends."""

REPRESENTATIVES = {
    "optimizer": "searches a codebook that the optimizer trains: blocks, gathers, dense gradients",
    "ema": "updates its codebook in `call`, and draws where dead codes go: sums by code, counts, searches for ranks",
    "fsq": "computes its codes, has constants of the input's dtype, and draws noise",
    "gumbel": "draws codes, with gradients through a softmax",
    "residual_shared": "updates one codebook from several stages",
    "scales": "resizes and convolves grids",
    "composed_sim": "searches by a beam, within both wrappers",
}
"""Those that the contract tries on JAX and TensorFlow, and what each does there by code of that backend.

The others are made of the same parts, or of plain `keras.ops`. A step and a file of every one are compared across
backends in `across/test_parity.py`, and `make test-all` tries every one on every backend.
"""

FOR_THE_BASE = {"optimizer", "fsq", "grouped_residual"}
"""Those that are tried with every shape and policy where the base class alone has to do with what is tried."""

NO_LOSSES = {"fsq", "fsq_symmetric", "residual_fsq", "composed_fsq"}
"""Those that learn from the reconstruction alone."""

MOVE_THEIR_CODES = {
    "fsq",
    "ibq",
    "residual",
    "residual_shared",
    "residual_fsq",
    "stages",
    "grouped_residual",
    "projected",
    "scales",
    "strides",
    *COMPOSED,
}
"""Those that take a code, given as an input, to another one: it is bounded, projected, or a sum, or
another code is longer."""

DRAW_OUTPUTS = {"fsq", "gumbel", "diveq", "composed_gumbel"}
"""Those whose output in training is drawn."""

DRAW_RESIDUALS = {"composed_gumbel"}
"""Those whose later stages quantize, in training, what a draw has left: so their losses and indices are drawn, too."""

DRAW_STATE = {
    "ema",
    "cosine",
    "residual",
    "residual_shared",
    "grouped",
    "projected",
    "scales",
    "strides",
    "residual_projected",
}
"""Those that draw where dead codes go."""
