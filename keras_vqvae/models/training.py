"""Training of an autoencoder with codes in between: its loss and its logs."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.code_counts import MAX_COUNTED_CODES
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import apply_updates
from keras_vqvae.metrics import CodebookSummary
from keras_vqvae.models import moments
from keras_vqvae.models.logs import Averages, ExplainedVariance
from keras_vqvae.models.reconstruction import Reconstruction
from keras_vqvae.models.step import COMMITMENT_LOSS, QUANTIZER_LOSSES, Pass, RecordedSteps, total
from keras_vqvae.models.targets import check_targets, targets_of
from keras_vqvae.types import Data, Sizes, Tensor

NORMALIZED = "normalized_mse"
"""The default loss."""
RECONSTRUCTION_LOSS = "reconstruction_loss"


class AutoencoderTraining(RecordedSteps):
    """The loss and the logs of `fit` and `evaluate`."""

    def __init__(
        self,
        encoder: keras.Layer,
        quantizer: Quantizer,
        decoder: keras.Layer,
        preprocessing: keras.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(encoder, quantizer, decoder, preprocessing, **kwargs)
        self._averages = Averages((RECONSTRUCTION_LOSS, *QUANTIZER_LOSSES), name="averages")
        # The codes of a vast implicit codebook are not counted.
        shape = (*quantizer.codebook_shape, quantizer.num_embeddings)
        self._codebooks = (
            CodebookSummary(shape, quantizer.codebook_sizes) if math.prod(shape) <= MAX_COUNTED_CODES else None
        )
        self._parts.logged = set()
        self._normalizes = False
        self._explained_variance: ExplainedVariance | None = None

    def _prepare_training(self, output_shapes: list[Sizes], latent_shape: Sizes) -> None:
        self._parts.reconstruction = Reconstruction(output_shapes, latent_shape, self._add_zeros)
        self._explained_variance = ExplainedVariance(output_shapes)

    def _add_zeros(self, shape: tuple[int, ...], name: str) -> keras.Variable:
        return self.add_weight(shape, "zeros", "float32", trainable=False, autocast=False, name=name)

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "adam", loss: Any = NORMALIZED, **kwargs: Any
    ) -> None:
        """As `keras.Model.compile`, with a default loss that does not depend on the scale of the data.

        Whatever the loss, a step of training leaves out the quantizer's commitment loss if the reconstruction explains
        nothing of the batch's variance, and counts it in full if it explains 10% or more. Otherwise the commitment loss
        could make all vectors equal before a new decoder has learned to use them. Under masks it always counts in full.

        Args:
            optimizer: As in `keras.Model.compile`. Defaults to `"adam"`.
            loss: The loss of the reconstruction, in any form that Keras takes. Or `"normalized_mse"`, the default: 1/8
                of a sample's sum of squared errors, divided by the variance of the targets and by the number of
                elements of the latents. The quantizer's losses are means over these elements, too, so the balance
                between them does not depend on the scale or the size of the data. The variance is that of the targets
                of all training batches so far, about the mean of each of their elements.
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

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Any = None,
        sample_weight: Data = None,
        training: bool = True,
    ) -> Tensor:
        """As `keras.Model.compute_loss`; without `y` the inputs `x`, preprocessed, are the targets.

        Raises:
            ValueError: If a target has another shape than its prediction, and an elementwise loss would broadcast it.
        """
        targets, passes = self._targets(x, y, training), self._step.passes
        check_targets(self.loss, targets if y is None else x, y, y_pred)
        reconstruction = self._built_parts().reconstruction
        pairs = reconstruction.pairs(targets, y_pred)
        # First, because an exchange lets other replicas run, and Keras keeps the losses of all of them in one list.
        added = total(self.losses)
        own = batch = reconstruction.moments(pairs or ())
        # In inference a process may take fewer steps than the others; replicas take the same.
        if training or backend.replicas_in_turns() > 1:
            batch = [moments.over_replicas(each) for each in own]
        if self._normalizes and training and pairs and reconstruction.targets.readable:
            reconstruction.targets.update(batch)
        if self.loss is None:
            return super().compute_loss(x, targets, y_pred, sample_weight, training)
        if self._normalizes and pairs is None:
            raise ValueError(
                "`loss` must be given to `compile` for outputs that are not the decoder's. Received: "
                f"loss={NORMALIZED!r}, y_pred={keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)}"
            )
        with self._without_losses():
            loss = super().compute_loss(x, targets, y_pred, sample_weight, training)
        # Keras divides all losses by the number of replicas, as TensorFlow sums gradients over them.
        replicas = backend.replicas_in_turns()
        if passes is not None:
            own_loss = loss if replicas == 1 else loss * replicas
            self._step.reconstructions.append(own_loss)
            # What is masked counts in no loss, but in the moments.
            if pairs and not any(backend.mask_of(output) is not None for _, output in pairs):
                plain = self._normalizes and sample_weight is None
                error = own_loss if plain else moments.squared_error(pairs)
                self._step.targets.append((batch, error, own[0].count))
                commitment = [each.losses[COMMITMENT_LOSS] for each in passes if COMMITMENT_LOSS in each.losses]
                if training and commitment:
                    added = added - total(commitment) * reconstruction.withheld(pairs, error, own, batch)
        if self._normalizes:
            loss = loss * reconstruction.weight(pairs, batch, passes[-1].latent_shape if passes else None, training)
        return loss + (added if replicas == 1 else added / replicas)

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
        loss = super()._compute_loss(x, y, y_pred, sample_weight, training)
        step = self._step
        if step.passes is None:
            return loss
        self._log_averages(step.passes, step.reconstructions, _batch_size(y_pred))
        for each in step.passes:
            if self._codebooks is not None:
                self._log(self._codebooks, self.quantizer.count_codes(each.indices), ops.shape(each.indices)[0])
            if self._updates_later():
                for record in each.records:
                    apply_updates(record, within_call=False)
        for target in step.targets:
            self._log(self._explained_variance, *target)
        step.passes, step.reconstructions, step.targets = [], [], []
        return loss

    def _log_averages(self, passes: Sequence[Pass], reconstructions: Sequence[Tensor], samples: Tensor) -> None:
        values = {RECONSTRUCTION_LOSS: total(reconstructions) / len(reconstructions)} if reconstructions else {}
        for each in passes:
            # The first is of all calls already.
            for name in (name for name in QUANTIZER_LOSSES if name in each.losses):
                earlier = values.get(name, 0.0) if name != QUANTIZER_LOSSES[0] else 0.0
                values[name] = each.losses[name] + earlier
        if values:
            self._averages.update_state(values, samples)
            self._parts.logged |= set(values)

    def _log(self, metric: keras.metrics.Metric, *args: Any) -> None:
        metric.update_state(*args)
        self._parts.logged.add(metric.name)

    def compute_metrics(self, x: Data, y: Data, y_pred: Any, sample_weight: Data = None) -> dict[str, Any]:
        """As `keras.Model.compute_metrics`; without `y` the inputs `x`, preprocessed, are the targets."""
        return super().compute_metrics(x, self._targets(x, y), y_pred, sample_weight)

    def _targets(self, x: Data, y: Data, training: bool = False) -> Data:
        if y is not None:
            return y
        if self.preprocessing is None:
            return targets_of(self.encoder, x)
        if self._step.passes is not None:
            if len(self._step.inputs) != 1:
                raise ValueError(
                    "`y` must be given where there is `preprocessing`, unless `call` calls `autoencode` just once: its "
                    f"preprocessed inputs are then the target. Received: y=None, {len(self._step.inputs)} calls"
                )
            return self._step.inputs[0]
        # In a training loop of the user's, or to learn the shapes.
        return self.preprocessing(targets_of(self.preprocessing, x) if training else x, training=False)

    def get_metrics_result(self) -> dict[str, Any]:
        # What a subclass's `call` or `compute_loss` never updates is left out.
        logged, silent = self._parts.logged, set(self._averages.numbers) - self._parts.logged
        if self._codebooks is not None and self._codebooks.name not in logged:
            silent |= set(self._codebooks.result())
        if self._explained_variance is not None and self._explained_variance.name not in logged:
            silent.add(self._explained_variance.name)
        return {name: value for name, value in super().get_metrics_result().items() if name not in silent}


def _batch_size(tensors: Any) -> Tensor:
    return ops.shape(keras.tree.flatten(tensors)[0])[0]
