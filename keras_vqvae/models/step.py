"""What a step of training or evaluation notes until its end, when the logs are taken."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from keras_vqvae.layers.record import Record
from keras_vqvae.models.moments import Moments
from keras_vqvae.types import Sizes, Tensor


class Pass(NamedTuple):
    """What a call of `autoencode` leaves for the logs: on JAX metrics cannot be updated within `call`."""

    indices: Tensor
    latent_shape: Sizes
    losses: dict[str, Tensor]
    """`quantizer_loss`, of all calls in the step so far, and its parts, of this call."""
    records: Sequence[Record]


class Step(threading.local):
    """The calls of `autoencode` in the step that runs. TensorFlow's replicas are threads with a step of their own."""

    passes: list[Pass] | None = None
    reconstructions: list[Tensor]
    """The losses of the reconstruction."""
    targets: list[tuple[list[Moments], Tensor, Tensor]]
    """The moments of the targets in all replicas, the squared error, and the number of own targets."""
    hides_losses: bool = False
