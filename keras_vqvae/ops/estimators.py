"""Gradient estimators for the assignment of codes, which is not differentiable.

An estimator maps encoder outputs and their codes, both `[..., D]`, to the quantizer's output, and defines its gradient.
Without randomness, the value of the output is the codes. An estimator with a `seed` argument adds noise in training. In
inference, the straight-through estimator takes its place.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.ops import geometry
from keras_vqvae.types import Seed, Tensor

Estimator: TypeAlias = Callable[..., Tensor]


def straight_through(z_e: Tensor, z_q: Tensor) -> Tensor:
    """Returns the codes, and copies the gradient to the encoder: `z_q` forward, the identity to `z_e` backward.

    Args:
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their codes, of the same shape.

    Returns:
        A tensor of the same shape.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> z_q = straight_through(codebook[:3] + 0.1, codebook[:3])
    >>> bool(keras.ops.all(z_q == codebook[:3]))
    True

    Reference:

    - [Bengio et al., 2013](https://arxiv.org/abs/1308.3432)
    """
    return backend.copy_gradient(ops.convert_to_tensor(z_e), ops.convert_to_tensor(z_q))


def rotation(z_e: Tensor, z_q: Tensor) -> Tensor:
    """Returns the codes, with the gradient of the rotation and scaling that maps each vector to its code.

    With `u = z / |z|`, `c = q / |q|` and `w = (u + c) / |u + c|` as constants, the output is
    `|q| / |z| (z - 2 (z.w) w + 2 (z.u) c)`, whose value is `q`. The gradient of the vector has the same angle to the
    vector as the gradient of the output has to the code. If there is no such rotation, the gradient is copied: if
    `q = 0`, if `z` is almost 0, or if `q` is opposite to `z`. The codes get no gradient.

    Args:
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their codes, of the same shape.

    Returns:
        A tensor of the same shape.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> z_q = rotation(codebook[:3] + 0.1, codebook[:3])
    >>> bool(keras.ops.all(z_q == codebook[:3]))
    True

    Reference:

    - [Fifty et al., 2024](https://arxiv.org/abs/2410.06424), equation 4
    """
    return backend.rotate(ops.convert_to_tensor(z_e), ops.convert_to_tensor(z_q))


def diveq(z_e: Tensor, z_q: Tensor, seed: Seed = None, stddev: float = 0.03) -> Tensor:
    """Moves each vector by the distance to its code, approximately in the direction of the code (DiVeQ).

    The output is `z + |q - z| * stop_gradient(unit(q - z + stddev * v))`, where `v` is standard normal. The gradient of
    the distance reaches vectors and codes. The codebook therefore learns from the loss of the reconstruction, and needs
    neither a codebook loss nor a commitment loss.

    Args:
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their codes, of the same shape.
        seed: Integer or `keras.random.SeedGenerator`. Defaults to `None`, a random seed.
        stddev: Standard deviation of the direction's noise, at least 0. Defaults to `0.03`.

    Returns:
        A tensor of the same shape. Without noise, it is equal to the codes.

    Raises:
        ValueError: If `seed` or `stddev` is invalid.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> z_q = diveq(codebook[:3] + 0.1, codebook[:3], seed=0, stddev=0.0)
    >>> bool(keras.ops.all(abs(z_q - codebook[:3]) < 1e-6))
    True

    Reference:

    - [Vali et al., 2025](https://arxiv.org/abs/2509.26469)
    """
    validation.non_negative("stddev", stddev)
    z, q, noise = _floats_and_noise(z_e, z_q, seed)
    return _step_towards(z, q, ops.stop_gradient(q - z) + stddev * noise, z_e)


def nsvq(z_e: Tensor, z_q: Tensor, seed: Seed = None) -> Tensor:
    """Replaces the quantization error of each vector by random noise of the same norm (NSVQ).

    The output is `z + |q - z| * v / |v|`, where `v` is standard normal. The gradient of `|q - z|` reaches vectors and
    codes. The codebook therefore learns from the loss of the reconstruction, and needs neither a codebook loss nor a
    commitment loss.

    Args:
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their codes, of the same shape.
        seed: Integer or `keras.random.SeedGenerator`. Defaults to `None`, a random seed.

    Returns:
        A tensor of the same shape, as far from `z_e` as the codes are.

    Raises:
        ValueError: If `seed` is invalid.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> nsvq(codebook[:3] + 0.1, codebook[:3], seed=0).shape == (3, 2)
    True

    Reference:

    - [Vali and Baeckstroem, 2022](https://ieeexplore.ieee.org/document/9696322)
    """
    z, q, noise = _floats_and_noise(z_e, z_q, seed)
    return _step_towards(z, q, noise, z_e)


def _floats_and_noise(z_e: Tensor, z_q: Tensor, seed: Seed) -> tuple[Tensor, Tensor, Tensor]:
    z, q = ops.cast(z_e, "float32"), ops.cast(z_q, "float32")
    return z, q, keras.random.normal(ops.shape(z), dtype="float32", seed=_checked(seed))


def _checked(seed: Seed) -> Seed:
    return seed if isinstance(seed, keras.random.SeedGenerator) else validation.seed(seed)


def _step_towards(z: Tensor, q: Tensor, direction: Tensor, like: Tensor) -> Tensor:
    moved = z + geometry.normalize_with_norm(q - z)[1] * ops.stop_gradient(geometry.unit(direction))
    return ops.cast(moved, ops.convert_to_tensor(like).dtype)


_BY_NAME: dict[str, Estimator] = {function.__name__: function for function in (straight_through, rotation, diveq, nsvq)}


def apply(estimator: Estimator, z_e: Tensor, z_q: Tensor, seed: Seed, training: bool) -> Tensor:
    """Applies an estimator. Outside of training, the straight-through estimator replaces estimators with noise."""
    if "seed" not in inspect.signature(estimator).parameters:
        return estimator(z_e, z_q)
    return estimator(z_e, z_q, seed=seed) if training else straight_through(z_e, z_q)


def get(identifier: str | dict[str, Any] | Estimator) -> Estimator:
    """Returns an estimator, given its name, its saved configuration or the function itself."""
    if isinstance(identifier, dict) and "class_name" in identifier:
        identifier = keras.saving.deserialize_keras_object(identifier)
    if callable(identifier):
        return identifier
    if not isinstance(identifier, str) or identifier not in _BY_NAME:
        raise ValueError(
            f"`estimator` must be a function or one of {sorted(_BY_NAME)}. Received: estimator={identifier!r}"
        )
    return _BY_NAME[identifier]


def serialize(estimator: Estimator) -> str | dict[str, Any] | Estimator:
    """Returns the name of an estimator of this module, or Keras's configuration of another function."""
    for name, function in _BY_NAME.items():
        if function is estimator:
            return name
    return serialization.saved(estimator)
