"""Training of an autoencoder with codes in between: its loss and its logs."""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.code_counts import MAX_COUNTED_CODES
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record, apply_updates
from keras_vqvae.metrics import CodebookSummary
from keras_vqvae.models import moments
from keras_vqvae.models.autoencoder import CodeAutoencoder
from keras_vqvae.models.reconstruction import Reconstruction
from keras_vqvae.models.targets import check_targets
from keras_vqvae.types import Data, Sizes, Tensor

NORMALIZED = "normalized_mse"
"""The default loss."""


class Pass(NamedTuple):
    """What a call of `autoencode` leaves for the logs: on JAX metrics cannot be updated within `call`."""

    indices: Tensor
    latent_shape: Sizes
    quantizer_loss: Tensor
    deferred: Sequence[Record]


class _Step(threading.local):
    """The calls of `autoencode` in the step that runs. TensorFlow's replicas are threads with a step of their own."""

    passes: list[Pass] | None = None
    targets: list[tuple[list[moments.Moments], Tensor, Tensor]]
    """The moments of the targets in all replicas, the squared error, and the number of own targets."""
    hides_losses: bool = False


class AutoencoderTraining(CodeAutoencoder):
    """Steps of `fit` and `evaluate`. A subclass, `VQVAE`, notes its calls in `_step.passes`."""

    def __init__(self, encoder: keras.Layer, quantizer: Quantizer, decoder: keras.Layer, **kwargs: Any):
        self._step = _Step()
        super().__init__(encoder, quantizer, decoder, **kwargs)
        self._reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self._quantizer_loss = keras.metrics.Mean(name="quantizer_loss")
        # The codes of a vast implicit codebook are not counted.
        shape = (*quantizer.codebook_shape, quantizer.num_embeddings)
        self._codebooks = (
            CodebookSummary(shape, quantizer.codebook_sizes) if math.prod(shape) <= MAX_COUNTED_CODES else None
        )
        self._parts.logged = set()
        self._normalizes = False
        self._explained_variance: moments.ExplainedVariance | None = None

    def _prepare_training(self, output_shapes: list[Sizes], latent_shape: Sizes) -> None:
        self._parts.reconstruction = Reconstruction(output_shapes, latent_shape, self._add_zeros)
        self._explained_variance = moments.ExplainedVariance(output_shapes)

    def _add_zeros(self, shape: tuple[int, ...], name: str) -> keras.Variable:
        return self.add_weight(shape, "zeros", "float32", trainable=False, autocast=False, name=name)

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "adam", loss: Any = NORMALIZED, **kwargs: Any
    ) -> None:
        """As `keras.Model.compile`, with a default loss that does not depend on the scale of the data.

        Args:
            optimizer: As in `keras.Model.compile`. Defaults to `"adam"`.
            loss: The loss of the reconstruction, in any form that Keras takes. Or `"normalized_mse"`, the default: 1/8
                of a sample's sum of squared errors, divided by the variance of the targets and by the number of
                elements of the latents. The quantizer's losses are means over these elements, too, so the balance
                between them does not depend on the scale or the size of the data. The variance is that of the targets
                over the training so far, about the mean of each of their elements.
            **kwargs: Further arguments of `keras.Model.compile`.
        """
        self._normalizes = isinstance(loss, str) and loss == NORMALIZED
        super().compile(optimizer=optimizer, loss="mse" if self._normalizes else loss, **kwargs)
        if self._explained_variance is not None:
            # It may be trained with other data now.
            self._parts.reconstruction.targets.reset()

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        return {**config, "loss": NORMALIZED} if config and self._normalizes else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras leaves this to every model with a `compile` of its own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @contextlib.contextmanager
    def _recording(self, passes: list[Pass] | None) -> Iterator[None]:
        before, self._step.passes = self._step.passes, passes
        self._step.targets = []
        try:
            yield
        finally:
            self._step.passes = before

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # What a symbolic call within a step computes has no value in that step.
        with self._recording(None):
            return super().compute_output_spec(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        backend.refuse_separate_training(self)
        with self._recording([]):
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._recording([]):
            return super().test_step(*args, **kwargs)

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Any = None,
        sample_weight: Data = None,
        training: bool = True,
    ) -> Tensor:
        """As `keras.Model.compute_loss`; without `y` the inputs `x` are the targets.

        Raises:
            ValueError: If a target has another shape than its prediction, and an elementwise loss would broadcast it.
        """
        check_targets(self.loss, x, y, y_pred)
        targets, samples, passes = x if y is None else y, _batch_size(y_pred), self._step.passes
        reconstruction, scale = self._built_parts().reconstruction, None
        pairs = reconstruction.pairs(targets, y_pred)
        # First, because an exchange lets other replicas run, and Keras keeps the losses of all of them in one list.
        added = sum(self.losses, ops.zeros(())) / backend.replicas_in_turns()
        own = batch = reconstruction.moments(pairs or ())
        # In inference a process may take fewer steps than the others; replicas take the same.
        if training or backend.replicas_in_turns() > 1:
            batch = [moments.over_replicas(each) for each in own]
        if self._normalizes:
            if pairs is None:
                raise ValueError(
                    "`loss` must be given to `compile` for outputs that are not the decoder's. Received: "
                    f"loss={NORMALIZED!r}, y_pred={keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)}"
                )
            scale = reconstruction.scale(pairs, batch, passes[-1].latent_shape if passes else None)
            targets, y_pred = reconstruction.scaled((targets, y_pred), scale)
        if self.loss is None:
            return super().compute_loss(x, targets, y_pred, sample_weight, training)
        with self._without_losses():
            loss = super().compute_loss(x, targets, y_pred, sample_weight, training)
        if passes is not None:
            # Keras divides all losses by the number of replicas, as TensorFlow sums gradients over them.
            reconstruction_loss = loss * backend.replicas_in_turns()
            if scale is not None:
                reconstruction_loss = reconstruction_loss / ops.square(scale)
            self._log(self._reconstruction_loss, reconstruction_loss, sample_weight=samples)
            # What is masked counts in no loss, but in the moments.
            if pairs and not any(getattr(output, "_keras_mask", None) is not None for _, output in pairs):
                self._step.targets.append((batch, moments.squared_error(pairs), own[0].count))
        elif training and pairs and reconstruction.targets.readable:
            # In a training loop of the user's.
            reconstruction.targets.update(batch)
        return loss + added

    @contextlib.contextmanager
    def _without_losses(self) -> Iterator[None]:
        """Keras's `compute_loss` gives the loss of the outputs alone, which a difference of sums would hide."""
        self._step.hides_losses = True
        try:
            yield
        finally:
            self._step.hides_losses = False

    @property
    def losses(self) -> list[Tensor]:
        return [] if self._step.hides_losses else super().losses

    def _compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Any = None,
        sample_weight: Data = None,
        training: bool = True,
    ) -> Tensor:
        # Keras's steps call this one, and it calls `compute_loss`, which a subclass may override.
        total = super()._compute_loss(x, y, y_pred, sample_weight, training)
        if self._step.passes is None:
            return total
        passes, self._step.passes = self._step.passes, []
        targets, self._step.targets = self._step.targets, []
        if passes:
            # The quantizer's losses of all passes so far.
            self._log(self._quantizer_loss, passes[-1].quantizer_loss, sample_weight=_batch_size(y_pred))
        for each in passes if self._codebooks is not None else ():
            self._log(self._codebooks, self.quantizer.count_codes(each.indices), ops.shape(each.indices)[0])
        # These let other replicas take their turn, which must find no loss of this one.
        for record in (record for each in passes for record in each.deferred):
            apply_updates(record, within_call=False)
        for batch, error, count in targets:
            if training:
                self._parts.reconstruction.targets.update(batch)
            self._log(self._explained_variance, batch, error, count)
        return total

    def _log(self, metric: keras.metrics.Metric, *args: Any, **kwargs: Any) -> None:
        metric.update_state(*args, **kwargs)
        self._parts.logged.add(metric.name)

    def compute_metrics(self, x: Data, y: Data, y_pred: Any, sample_weight: Data = None) -> dict[str, Any]:
        """As `keras.Model.compute_metrics`; without `y` the inputs `x` are the targets."""
        return super().compute_metrics(x, x if y is None else y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        # A metric of this class that a subclass's `call` or `compute_loss` never updates is left out.
        own = (self._reconstruction_loss, self._quantizer_loss, self._codebooks, self._explained_variance)
        silent: set[str] = set()
        for metric in own:
            if metric is not None and metric.name not in self._parts.logged:
                silent |= set(metric.result()) if isinstance(metric, CodebookSummary) else {metric.name}
        return {name: value for name, value in super().get_metrics_result().items() if name not in silent}


def _batch_size(tensors: Any) -> Tensor:
    return ops.shape(keras.tree.flatten(tensors)[0])[0]
