"""Training of an autoencoder: its loss and its logs."""

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
from keras_vqvae.models.step import COMMITMENT_LOSS, QUANTIZER_LOSS, QUANTIZER_LOSSES, Pass, RecordedSteps, total
from keras_vqvae.models.targets import check_targets, targets_of
from keras_vqvae.types import Data, Sizes, Tensor

NORMALIZED = "normalized_mse"
"""The default loss."""
RECONSTRUCTION_LOSS = "reconstruction_loss"


class AutoencoderTraining(RecordedSteps):
    """Adds the loss and the logs of `fit` and `evaluate` to an autoencoder."""

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
        # Very large implicit codebooks have no counts.
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
        """Configures training as `keras.Model.compile` does. The default loss does not depend on the data's scale.

        With the default loss, a training step leaves the quantizer's commitment loss out if the reconstruction explains
        nothing of the variance, and counts it in full from 10% on. Without this, the commitment loss could make all
        vectors equal before a new decoder has learned to use them. Under masks, it always counts in full.

        Args:
            optimizer: As in `keras.Model.compile`. Defaults to `"adam"`.
            loss: The loss of the reconstruction, in any form that Keras supports, or `"normalized_mse"`, which cannot
                be in a list or dict of losses. The latter is 1/8 of the squared error summed over a sample, divided by
                the variance of the targets and by the number of elements of the latents. The quantizer's losses are
                means over these elements, so the balance between reconstruction and quantizer does not depend on the
                scale or the size of the data. The variance is taken for each element over all training batches so far,
                and averaged over the elements. Defaults to `"normalized_mse"`.
            **kwargs: Further arguments of `keras.Model.compile`.
        """
        self._normalizes = isinstance(loss, str) and loss == NORMALIZED
        super().compile(optimizer=optimizer, loss="mse" if self._normalizes else loss, **kwargs)
        if self._explained_variance is not None:
            # The next training may use other data.
            self._parts.reconstruction.targets.reset()

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        return {**config, "loss": NORMALIZED} if config and self._normalizes else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras requires this of a model that overrides `compile`.
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
        """Computes the loss as `keras.Model.compute_loss` does. Without `y`, the preprocessed `x` are the targets.

        Raises:
            ValueError: If a loss would broadcast a target, because its shape differs from the prediction's.
        """
        targets, passes = self._targets(x, y, training), self._step.passes
        check_targets(self.loss, targets if y is None else x, y, y_pred)
        reconstruction = self._built_parts().reconstruction
        pairs = reconstruction.pairs(targets, y_pred)
        # Read before any all-reduce: it lets other replicas run, and Keras keeps the losses of all replicas in one
        # list.
        added = total(self.losses)
        own = batch = reconstruction.moments(pairs or ())
        # PyTorch's processes may evaluate different numbers of batches, so they exchange moments in training only.
        # TensorFlow's replicas always exchange them.
        if training or backend.replicas_in_turns() > 1:
            batch = [moments.over_replicas(each) for each in own]
        if self._normalizes and training and pairs and reconstruction.targets.readable:
            reconstruction.targets.update(batch)
        if self.loss is None:
            return super().compute_loss(x, targets, y_pred, sample_weight, training)
        if self._normalizes and pairs is None:
            raise ValueError(
                f"`loss` must be passed to `compile`, such as 'mse': {NORMALIZED!r} is only for the decoder's outputs. "
                f"Received: loss={NORMALIZED!r}, "
                f"y_pred of shape {keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)}"
            )
        with self._without_losses():
            loss = super().compute_loss(x, targets, y_pred, sample_weight, training)
        # TensorFlow sums gradients over replicas, so Keras has divided the loss by their number. Logs undo this.
        replicas = backend.replicas_in_turns()
        variance = reconstruction.variance(pairs, batch, training) if self._normalizes else None
        if passes is not None:
            mean_loss = loss if replicas == 1 else loss * replicas
            self._step.reconstructions.append(mean_loss)
            # Not for masked outputs: masked positions are excluded from losses, but not from the moments.
            if pairs and not any(backend.mask_of(output) is not None for _, output in pairs):
                plain = self._normalizes and sample_weight is None
                error, count = mean_loss if plain else moments.squared_error(pairs), own[0].count
                self._step.targets.append((batch, error, count))
                commitment = [each.losses[COMMITMENT_LOSS] for each in passes if COMMITMENT_LOSS in each.losses]
                if training and variance is not None and commitment:
                    withheld = reconstruction.withheld(error, count, batch[0].count, variance)
                    added = added - total(commitment) * withheld
        if variance is not None:
            loss = loss * (reconstruction.factor(pairs, passes[-1].latent_shape if passes else None) / variance)
        return loss + (added if replicas == 1 else added / replicas)

    @contextlib.contextmanager
    def _without_losses(self) -> Iterator[None]:
        """Lets Keras's `compute_loss` return the loss of the outputs only, without `losses`."""
        self._step.hides_losses = True
        try:
            yield
        finally:
            self._step.hides_losses = False

    @property
    def losses(self) -> list[Tensor]:
        return [] if self._step.hides_losses else super().losses

    def _compute_loss(
        self, x: Data = None, y: Data = None, y_pred: Any = None, sample_weight: Data = None, training: bool = True
    ) -> Tensor:
        # Keras's steps call this method, which calls `compute_loss`. A subclass may override only the latter.
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
            for name in QUANTIZER_LOSSES:
                if name in each.losses:
                    # `quantizer_loss` is already summed over the calls. Its parts are not.
                    earlier = 0.0 if name == QUANTIZER_LOSS else values.get(name, 0.0)
                    values[name] = each.losses[name] + earlier
        if values:
            self._averages.update_state(values, samples)
            self._parts.logged |= set(values)

    def _log(self, metric: keras.metrics.Metric, *args: Any) -> None:
        metric.update_state(*args)
        self._parts.logged.add(metric.name)

    def compute_metrics(self, x: Data, y: Data, y_pred: Any, sample_weight: Data = None) -> dict[str, Any]:
        """Computes metrics as `keras.Model.compute_metrics` does. Without `y`, the preprocessed `x` are the targets."""
        return super().compute_metrics(x, self._targets(x, y), y_pred, sample_weight)

    def _targets(self, x: Data, y: Data, training: bool = False) -> Data:
        if y is not None:
            return y
        if self.preprocessing is None:
            return targets_of(self.encoder, x)
        if self._step.passes is not None:
            if len(self._step.inputs) != 1:
                raise ValueError(
                    "`y` must be given, because the model has `preprocessing`, and its `call` does not call "
                    "`autoencode` exactly once. Only then are the preprocessed inputs the targets. "
                    f"Received: y=None, {len(self._step.inputs)} calls of `autoencode`"
                )
            return self._step.inputs[0]
        # Outside of Keras's steps: in a custom training loop, or to infer shapes.
        return self.preprocessing(targets_of(self.preprocessing, x) if training else x, training=False)

    def get_metrics_result(self) -> dict[str, Any]:
        # Leaves out metrics that a subclass's `call` or `compute_loss` never updates.
        logged, silent = self._parts.logged, set(self._averages.numbers) - self._parts.logged
        if self._codebooks is not None and self._codebooks.name not in logged:
            silent |= set(self._codebooks.result())
        if self._explained_variance is not None and self._explained_variance.name not in logged:
            silent.add(self._explained_variance.name)
        return {name: value for name, value in super().get_metrics_result().items() if name not in silent}


def _batch_size(tensors: Any) -> Tensor:
    return ops.shape(keras.tree.flatten(tensors)[0])[0]
