"""Directions and rotations of vectors in the general form that `keras.ops` allows."""

from keras import ops

from keras_vqvae.types import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis: `[..., D]` -> `[..., 1]`."""
    return ops.sum(a * b, axis=-1, keepdims=True)


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Implements `Backend.normalize`, with automatic differentiation."""
    # Replaces NaN and infinity by 0. Their NaN gradient would spread to the codes, which all vectors share.
    x = ops.where(ops.isfinite(x), x, 0.0)
    # Divides by the mean magnitude first, because squares of small numbers underflow. Not by the maximum, which Keras
    # does not compute for an empty batch. Each element is divided by the number of elements before the sum, which could
    # otherwise overflow.
    scale = ops.stop_gradient(ops.sum(ops.abs(x) / x.shape[-1], axis=-1, keepdims=True))
    x = x / ops.where(scale > 0, scale, 1.0)
    # The square root has no gradient at 0, so `where` comes before it.
    square = dot(x, x)
    length = ops.sqrt(ops.where(square > 0, square, 1.0))
    return x / length, ops.where(square > 0, length * scale, 0.0)


def rotate(z_e: Tensor, z_q: Tensor) -> Tensor:
    """Implements `Backend.rotate`: rotates the vectors, with automatic differentiation."""
    z_q = ops.stop_gradient(z_q)
    # Norms in float32: squares of float16 overflow from 256 on.
    z, q = ops.cast(z_e, "float32"), ops.cast(z_q, "float32")
    u, z_norm = normalize(ops.stop_gradient(z))
    c, q_norm = normalize(q)
    w, w_norm = normalize(u + c)
    # Below 1e-6 the direction of `u + c` is rounding noise.
    rotates = ops.logical_and(ops.logical_and(z_norm > 1e-18 * q_norm, q_norm > 0), w_norm > 1e-6)
    rotated = z - 2 * dot(z, w) * w + 2 * dot(z, u) * c
    rotated = ops.where(rotates, rotated * (q_norm / ops.where(rotates, z_norm, 1.0)), z)
    # The value is exactly the code, and the gradient is the gradient of `rotated`.
    return z_q + ops.cast(rotated - ops.stop_gradient(rotated), z_q.dtype)
