"""How the gradient passes the assignment of codes, which has none of its own.

An estimator maps encoder outputs and their codes, both `[..., D]`, to the quantizer's output: its value is the codes,
its gradient is what the estimator says. It gives the codes no gradient; the losses do that.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_vqvae.arguments import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]


def straight_through(z_e: Tensor, z_q: Tensor) -> Tensor:
    """The codes, with the gradient of a copy: `z_q` forward, the identity to `z_e` backward.

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
    z_e, z_q = ops.convert_to_tensor(z_e), ops.convert_to_tensor(z_q)
    # Equal to `z_e + stop_gradient(z_q - z_e)` without its rounding: the difference is exactly 0.
    return ops.stop_gradient(z_q) + (z_e - ops.stop_gradient(z_e))


_BY_NAME: dict[str, Estimator] = {"straight_through": straight_through}


def get(identifier: str | dict | Estimator) -> Estimator:
    """Returns the estimator of that name, of what `serialize` made of it, or the callable itself."""
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if callable(identifier):
        return identifier
    if identifier not in _BY_NAME:
        raise ValueError(
            f"`estimator` must be callable or one of {sorted(_BY_NAME)}. Received: estimator={identifier!r}"
        )
    return _BY_NAME[identifier]


def serialize(estimator: Estimator) -> Any:
    """Returns the name of an estimator of this module, or what Keras saves of another function."""
    for name, function in _BY_NAME.items():
        if function is estimator:
            return name
    return keras.saving.serialize_keras_object(estimator)
