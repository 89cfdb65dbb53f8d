"""Records of a training or evaluation step, from which its logs are computed at the end of the step."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.record import Record, apply_updates
from keras_vqvae.models.coding import Coding
from keras_vqvae.models.moments import Moments
from keras_vqvae.types import Sizes, Tensor

QUANTIZER_LOSS, COMMITMENT_LOSS = "quantizer_loss", "commitment_loss"
_PARTS = (COMMITMENT_LOSS, "codebook_loss", "entropy_loss", "assignment_loss", "kl_loss", "output_loss")
QUANTIZER_LOSSES = (QUANTIZER_LOSS, *_PARTS)
"""Names of the logs: the sum of a quantizer's losses, and its parts. Losses with other names are only in the sum."""


class Pass(NamedTuple):
    """Results of one call of `autoencode`, kept for the logs: on JAX, `call` cannot update metrics."""

    indices: Tensor
    latent_shape: Sizes
    losses: dict[str, Tensor]
    """`quantizer_loss`, summed over all calls in the step so far, and its parts for this call."""
    records: Sequence[Record]


class Step(threading.local):
    """The calls of `autoencode` in the current step. It is thread-local, as TensorFlow runs replicas in threads."""

    passes: list[Pass] | None = None
    inputs: list[Any]
    """Inputs of the encoder, before scaling, in each call of `autoencode`."""
    reconstructions: list[Tensor]
    """Losses of the reconstructions, without the quantizer's."""
    targets: list[tuple[list[Moments], Tensor, Tensor]]
    """Moments of the targets in all replicas, squared error, and number of targets in this replica."""
    hides_losses: bool = False
    """Whether the model's `losses` are empty, while Keras computes the loss of the outputs."""


class RecordedSteps(Coding):
    """Records the calls of `autoencode` in each step of `fit` and `evaluate`."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._step = Step()
        super().__init__(*args, **kwargs)

    @contextlib.contextmanager
    def _recording(self, passes: list[Pass] | None) -> Iterator[None]:
        before, self._step.passes = self._step.passes, passes
        if passes is not None:
            self._step.inputs, self._step.reconstructions, self._step.targets = [], [], []
        try:
            yield
        finally:
            self._step.passes = before
            if passes is not None:
                self._step.inputs = []

    def encoded_inputs(self, x: Any) -> list[np.ndarray]:
        """Calls the model. Returns the encoder's inputs, before scaling, in each call of `autoencode`."""
        with self._recording([]):
            self(x, training=False)
            return [ops.convert_to_numpy(ops.cast(each, "float32")) for each in self._step.inputs]

    @contextlib.contextmanager
    def _quantizing(self) -> Iterator[list[Record]]:
        """Collects the records of the quantizer's calls. Applies their updates, unless `_compute_loss` does so."""
        with self.quantizer.deferred_updates() as records:
            yield records
        if not self._updates_later():
            for record in records:
                apply_updates(record)

    def _updates_later(self) -> bool:
        # On TensorFlow, an update lets other replicas run, so this replica's losses must be consumed before it.
        return self._step.passes is not None and backend.replicas_in_turns() > 1

    def _quantizer_losses(self, records: Sequence[Record]) -> dict[str, Tensor]:
        losses = {QUANTIZER_LOSS: total(self.quantizer.losses)}
        for name, loss in (pair for record in records for pair in record.losses or ()):
            losses[name] = losses[name] + loss if name in losses else loss
        return losses

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # Not recorded: the tensors of a symbolic call have no values in the step.
        with self._recording(None):
            return super().compute_output_spec(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        backend.refuse_separate_training(self)
        with self._recording([]):
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._recording([]):
            return super().test_step(*args, **kwargs)


def total(losses: Sequence[Tensor]) -> Tensor:
    """The sum of losses, 0 if there are none."""
    return sum(losses[1:], losses[0]) if losses else ops.zeros(())
