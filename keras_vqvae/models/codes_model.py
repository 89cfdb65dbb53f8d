"""Training and evaluation of the priors."""

import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models.codes_inputs import CodesInputs, holds_classes
from keras_vqvae.types import Data, Tensor


class Perplexity(keras.metrics.Mean):
    """The exponential of the mean nats per code: the number of equally likely codes with the same entropy."""

    def result(self) -> Tensor:
        return ops.exp(super().result())


class CodesModel(CodesInputs):
    """Base class of the priors that trains and evaluates them.

    Each step of `fit` and `evaluate` replaces the batch by `(inputs, codes, weights)`. Then `call`, `compute_loss` and
    `compute_metrics` work as in a Keras classifier: `call` takes `inputs`, the targets are `codes`, and `y_pred` are
    the logits.

    A subclass has the arguments of `Prior` as attributes, a `transformer` with a `seed_generator`, and `logits` and
    `corrupt` as described in `Prior`.
    """

    takes_masked: bool = False
    """Whether `call` accepts the code `num_embeddings`, which marks a code to fill in."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._perplexity = Perplexity(name="perplexity")

    def call(self, inputs: Tensor | Sequence[Tensor | None], training: bool | None = None) -> Tensor:
        codes, labels = inputs if isinstance(inputs, tuple | list) else (inputs, None)
        codes = self._check_codes(codes, masked=self.takes_masked)
        labels = self._check_labels(labels, ops.shape(codes)[0], or_none=True)
        # `[batch, *shape]` -> `[batch, L]` and back
        logits = self.logits(ops.reshape(codes, (-1, self.length)), labels, bool(training))
        return ops.reshape(logits, (-1, *self.shape, self.num_embeddings))

    def train_step(self, *args: Any) -> Any:
        backend.refuse_separate_training(self)
        return super().train_step(*backend.with_batch(self, args, lambda batch: self._prepare(batch, training=True)))

    def test_step(self, *args: Any) -> Any:
        return super().test_step(*backend.with_batch(self, args, lambda batch: self._prepare(batch, training=False)))

    def _prepare(self, batch: Any, training: bool) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor, Tensor | None]:
        """Turns a batch `(codes, labels, sample_weight)` into `(inputs, codes, weights)`."""
        codes, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if not holds_classes(labels) and training and self.num_classes:
            raise ValueError(
                f"`y` must be given: this prior has `num_classes={self.num_classes}`, so `fit` needs labels. "
                "Received: y=None"
            )
        self._require_labels("y", labels)
        codes = self._check_codes(codes)
        labels = self._check_labels(labels, ops.shape(codes)[0])
        inputs, weights = self.corrupt(ops.reshape(codes, (-1, self.length)))
        inputs = ops.reshape(inputs, (-1, *self.shape))
        if weights is not None:
            weights = ops.reshape(weights, (-1, *self.shape))
        if sample_weight is not None:
            sample_weight = self._check_sample_weight(sample_weight, codes)
            weights = sample_weight if weights is None else sample_weight * weights
        if self.num_classes:
            return (inputs, self._drop_labels(labels) if training else labels), codes, weights
        return inputs, codes, weights

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the mean nats per code, plus the losses that layers add.

        Sample weights multiply the nats of each code. As in Keras, the loss is the sum divided by the number of codes
        (`reduction="sum_over_batch_size"`), and metrics such as `perplexity` divide by the sum of the weights instead.
        """
        nats = ops.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        self._perplexity.update_state(nats, sample_weight=sample_weight)
        loss = ops.mean(nats if sample_weight is None else nats * sample_weight) + sum(self.losses)
        # Divided by the number of replicas, because TensorFlow sums their gradients.
        return loss / backend.replicas_in_turns()

    def compute_metrics(self, x: Data, y: Data, y_pred: Tensor, sample_weight: Tensor | None = None) -> dict[str, Any]:
        if y is None or tuple(y.shape[1:]) != tuple(y_pred.shape[1:-1]):
            # Keras builds the metrics with the shapes of a batch of `fit`, in which `x` are the codes.
            y = x
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures training as `keras.Model.compile` does, without a loss: the loss of a prior is its nats per code.

        Args:
            optimizer: As in `keras.Model.compile`. Defaults to `"rmsprop"`.
            loss: Must be `None`.
            loss_weights: Must be `None`.
            *args: Further arguments of `keras.Model.compile`.
            **kwargs: Further arguments of `keras.Model.compile`. `metrics` and `weighted_metrics` must compare integer
                codes with logits, as `"sparse_categorical_accuracy"` does.

        Raises:
            ValueError: If `loss` or `loss_weights` is given.
        """
        for name, value in {"loss": loss, "loss_weights": loss_weights}.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` must be None: the loss of a prior is its nats per code. To use another loss, override "
                    f"`compute_loss`. Received: {name}={value!r}"
                )
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras requires this of a model that overrides `compile`. Files of earlier versions may contain a loss, which
        # had no effect.
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**{**config, "loss": None, "loss_weights": None})
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def export(self, filepath: str | pathlib.Path, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        """Exports a model that returns the logits, with the arguments of `keras.Model.export`.

        Its inputs are int32 `codes` `[batch_size, *shape]` and, if the prior has `num_classes`, int32 `labels`
        `[batch_size]`.

        Args:
            filepath: Path of the exported file or folder.
            *args: Further arguments of `keras.Model.export`.
            batch_size: Batch size of the exported model. On PyTorch, ONNX needs an integer, because Keras cannot export
                its `LayerNormalization` with an unknown batch size. Defaults to `None`, any size.
            **kwargs: Further arguments of `keras.Model.export`, such as `format`.
        """
        codes = keras.InputSpec(shape=(batch_size, *self.shape), dtype="int32", name="codes")
        labels = keras.InputSpec(shape=(batch_size,), dtype="int32", name="labels")
        signature = [[codes, labels] if self.num_classes else codes]
        super().export(filepath, *args, **{"input_signature": signature, **kwargs})

    @property
    def _default_save_signature(self) -> None:
        """`None`, so that Keras does not add a second signature, with float inputs, to a SavedModel."""
        return None

    def fit(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, on codes `x` `[samples, *shape]` and their classes `y` `[samples]`.

        Without `num_classes`, leave `y` out. `sample_weight` has the shape `[samples]`, or has more of the
        axes of `[samples, *shape]`. A data set yields `(codes, labels, weights)`; without classes, the labels
        have shape `[samples, 0]`.

        Raises:
            ValueError: If codes, labels or weights have a wrong shape or are out of range.
        """
        bound = self._bind(super().fit, x, y, *args, **kwargs)
        given = bound.arguments
        if given.get("validation_data") is not None:
            given["validation_data"] = self._check_arrays(
                *keras.utils.unpack_x_y_sample_weight(given["validation_data"])
            )
        if given.get("class_weight") is not None and not self.num_classes:
            raise ValueError(
                "`class_weight` needs a prior that was made with `num_classes`. "
                f"Received: class_weight={given['class_weight']!r}, num_classes=None"
            )
        return super().fit(*bound.args, **bound.kwargs)

    def evaluate(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates codes as `keras.Model.evaluate` does. `loss` is in nats per code. `y` are classes, or `None`.

        Raises:
            ValueError: If codes, labels or weights have a wrong shape or are out of range.
        """
        bound = self._bind(super().evaluate, x, y, *args, **kwargs)
        return super().evaluate(*bound.args, **bound.kwargs)

    def _bind(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Returns the checked arguments of Keras's `fit` or `evaluate`. Builds the model if needed."""
        bound = inspect.signature(method).bind(*args, **kwargs)
        given = bound.arguments
        _, given["y"], _ = self._check_arrays(given["x"], given["y"], given.get("sample_weight"))
        if not self.built:
            self.build((None, *self.shape))
        return bound

    def _check_arrays(self, codes: Data, labels: Data, sample_weight: Data) -> tuple[Data, Data, Data]:
        # Only arrays are checked here, because a compiled step cannot check values. Other data come batch by batch.
        if isinstance(codes, np.ndarray) or ops.is_tensor(codes):
            self._check_codes(codes)
            if labels is not None:
                self._check_labels(labels, len(codes))
            if sample_weight is not None:
                self._check_sample_weight(sample_weight, codes)
                if labels is None:
                    # Keras drops the weights of data without targets, so these are targets that hold no classes.
                    labels = np.empty((len(codes), 0), "int32")
        return codes, labels, sample_weight

    def _drop_labels(self, labels: Tensor) -> Tensor:
        drawn = keras.random.uniform(ops.shape(labels), seed=self.transformer.seed_generator)
        return ops.where(drawn < self.label_dropout, self.num_classes or 0, labels)
