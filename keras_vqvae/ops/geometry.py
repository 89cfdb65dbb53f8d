"""Lengths, directions and distances of vectors."""

from keras import ops

from keras_vqvae.types import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner products of the last axes, `[..., D]` -> `[..., 1]`."""
    return ops.sum(a * b, axis=-1, keepdims=True)


def zero_nonfinite(x: Tensor) -> Tensor:
    """`x`, with 0 in place of what has no finite square.

    Such vectors count nowhere, but through a product their gradient, which is no number, would reach all weights.
    """
    return ops.where(ops.abs(x) < 1e19, x, 0.0)


def normalize_with_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x / |x|`, zero where `x` is, and `|x|`: `[..., D]` -> `[..., D]`, `[..., 1]`.

    The gradient is finite everywhere; that of `keras.ops.normalize` is no number at 0.
    """
    # 0 in place of what is no number: its gradient would be no number for the codes, which others share.
    x = ops.where(ops.isfinite(x), x, 0.0)
    # Scaled first, because squares of small numbers vanish; `where` first, because the root has no gradient at 0. By
    # the mean, because of no vectors at all there is no maximum; divided first, because a sum of large ones overflows.
    scale = ops.stop_gradient(ops.sum(ops.abs(x) / x.shape[-1], axis=-1, keepdims=True))
    x = x / ops.where(scale > 0, scale, 1.0)
    square = dot(x, x)
    length = ops.sqrt(ops.where(square > 0, square, 1.0))
    return x / length, ops.where(square > 0, length * scale, 0.0)


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
