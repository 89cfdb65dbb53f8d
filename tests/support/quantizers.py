"""Lists every quantizer for the contract tests and the checks across backends. A new one needs a line in two lists."""

import keras_vqvae

SHAPE = (3, 4)
"""The shape of one sample that each quantizer is built for: vectors or a grid."""
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
    """Nests `inner` in both wrappers that accept any quantizer: a residual within a projection to fewer dimensions."""
    return lambda **keywords: keras_vqvae.ProjectedQuantizer(
        keras_vqvae.ResidualQuantizer(inner(3), 2, **fixed), 3, **keywords
    )


COMPOSED = {f"composed_{name}": composed(inner) for name, inner in INNER.items()}
COMPOSED["residual_projected"] = lambda **keywords: keras_vqvae.ResidualQuantizer(
    keras_vqvae.ProjectedQuantizer(vector(), 3), 2, **keywords
)
# Not with a shared codebook: two orders of the same codes tie, and compiled code breaks ties differently.
COMPOSED["composed_sim"] = composed(INNER["sim"], beam_width=4)
EVERY = QUANTIZERS | COMPOSED
"""The quantizers of the contract tests and of the checks across backends."""

REPRESENTATIVES = {
    "optimizer": "searches a codebook that the optimizer trains: blocks, gathers, dense gradients",
    "ema": "updates its codebook in `call`, and moves dead codes: sums by code, counts",
    "fsq": "computes its codes, has constants of the input's dtype, and draws noise",
    "gumbel": "draws codes, with gradients through a softmax",
    "residual_shared": "updates one codebook from several stages",
    "scales": "resizes and convolves grids",
    "composed_sim": "searches by a beam, within both wrappers",
}
"""The quantizers that the contract tests run on JAX and TensorFlow, with the backend-specific code that each covers.

The others consist of the same parts, or of plain `keras.ops`. `across/test_parity.py` compares a step and a file of
every quantizer across backends, and `make test-all` runs every quantizer on every backend.
"""

FOR_THE_BASE = {"optimizer", "fsq", "grouped_residual"}
"""The quantizers that run tests of the base class, which cover every shape and dtype policy."""

NO_LOSSES = {"fsq", "fsq_symmetric", "residual_fsq", "composed_fsq"}
"""The quantizers that learn only from the reconstruction."""

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
"""The quantizers that may map a code to a different code when it is their input. The code is bounded or projected, is
a sum, or another code is longer."""

DRAW_OUTPUTS = {"fsq", "gumbel", "diveq", "composed_gumbel"}
"""The quantizers whose output in training is random."""

DRAW_RESIDUALS = {"composed_gumbel"}
"""The quantizers whose later stages quantize random residuals in training, so their losses and indices are random."""

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
"""The quantizers that draw replacements for dead codes at random."""
