"""Lengths, directions and distances of vectors."""

from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.backend.directions import dot
from keras_vqvae.types import Tensor


def normalize_with_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x / |x|`, zero where `x` is, and `|x|`, with a finite gradient: `[..., D]` -> `[..., D]`, `[..., 1]`."""
    return backend.normalize(x)


def unit(x: Tensor) -> Tensor:
    """`x / |x|`, zero where `x` is, with a finite gradient: `[..., D]` -> `[..., D]`."""
    return backend.normalize(x)[0]


def distance_factors(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, D + 1]` and `[K, D + 1]`, whose inner products are `-|z - e|^2 / 2` but for a number for each vector.

    They are `(z, 1)` and `(e, -|e|^2 / 2)`, all moved so that the codes' mean is 0: that changes no distance, and
    rounding hides distances between points far from 0.
    """
    centre = ops.stop_gradient(ops.mean(codebook, axis=0))
    vectors, codebook = vectors - centre, codebook - centre
    codebook = ops.concatenate([codebook, -0.5 * dot(codebook, codebook)], axis=-1)
    # Not `pad`, for which `torch.compile` compiles anew at every call: Keras names each one.
    return ops.concatenate([vectors, ops.ones_like(vectors[:, :1])], axis=-1), codebook
