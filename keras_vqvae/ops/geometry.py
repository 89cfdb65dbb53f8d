"""Norms, directions and distances of vectors."""

from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.backend.directions import dot
from keras_vqvae.types import Tensor


def normalize_with_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `x / |x|` (0 for `x = 0`) and `|x|`, with finite gradients: `[..., D]` -> `[..., D]`, `[..., 1]`."""
    return backend.normalize(x)


def unit(x: Tensor) -> Tensor:
    """Scales vectors to unit norm (0 for `x = 0`), with a finite gradient: `[..., D]` -> `[..., D]`."""
    return backend.normalize(x)[0]


def distance_factors(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Returns vectors and codes with one more dimension, whose inner products measure distances.

    They are `(z, 1)`, `[N, D + 1]`, and `(e, -|e|^2 / 2)`, `[K, D + 1]`. Their inner product is `-|z - e|^2 / 2` plus
    a constant for each vector. All points are first shifted so that the mean of the codes is 0. This changes no
    distance, and avoids the rounding errors of products far from 0.
    """
    centre = ops.stop_gradient(ops.mean(codebook, axis=0))
    vectors, codebook = vectors - centre, codebook - centre
    codebook = ops.concatenate([codebook, -0.5 * dot(codebook, codebook)], axis=-1)
    # `ops.pad` would do, but Keras gives each of its calls a name, and so `torch.compile` would compile at every call.
    return ops.concatenate([vectors, ops.ones_like(vectors[:, :1])], axis=-1), codebook
