"""What models over codes do in `fit` and `evaluate`."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_vqvae import arguments, backend
from keras_vqvae.arguments import Data, Tensor

LABEL_DROPOUT = 0.1
"""The share of samples whose class is left out in training, so that `guidance` can go without."""


class _Step(NamedTuple):
    codes: Tensor
    labels: Tensor


class Perplexity(keras.metrics.Mean):
    """The exponential of the mean nats a code: of how many equally likely codes it is a choice."""

    def result(self) -> Tensor:
        return ops.exp(super().result())


class CodesModel(keras.Model):
    """The training of a distribution over codes `[*shape]`, of samples of `num_classes` classes or none.

    A subclass has these three, a `transformer` with a `seed_generator`, and `logits` and `nats` as in `Prior`.
    """

    takes_masked: bool = False
    """Whether codes may be `num_embeddings`, for those that are to be filled in."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._perplexity = Perplexity(name="perplexity")

    def call(self, inputs: Tensor | tuple[Tensor, Tensor | None], training: bool | None = None) -> Tensor:
        step = isinstance(inputs, _Step)
        codes, labels = inputs if isinstance(inputs, tuple | list) else (inputs, None)
        codes = self._check_codes(codes)
        if not step:
            labels = self._check_labels(labels, ops.shape(codes)[0])
        # `[batch, *shape]` -> `[batch, L]`
        codes = ops.reshape(codes, (-1, self.length))
        if step:
            return self.nats(codes, self._drop_labels(labels) if training else labels, bool(training))
        logits = self.logits(codes, labels, bool(training))
        return ops.reshape(logits, (-1, *self.shape, self.num_embeddings))

    def train_step(self, *args: Any) -> Any:
        backend.refuse_separate_training(self)
        return super().train_step(*args[:-1], self._as_step(args[-1], training=True))

    def test_step(self, *args: Any) -> Any:
        return super().test_step(*args[:-1], self._as_step(args[-1], training=False))

    def _as_step(self, data: Any, training: bool) -> tuple[_Step, None, Tensor | None]:
        """A batch of `fit` with the classes, which are its targets, among the inputs."""
        codes, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None and training and self.num_classes:
            raise ValueError(f"`fit` needs labels of {self.num_classes} classes. Received: y=None")
        return _Step(codes, self._check_labels(labels, ops.shape(codes)[0])), None, sample_weight

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        nats = ops.reshape(y_pred, (-1, *self.shape))
        if sample_weight is not None:
            weights = ops.cast(sample_weight, "float32")
            nats = nats * ops.reshape(weights, (*ops.shape(weights), *(1,) * (len(nats.shape) - len(weights.shape))))
        loss = ops.mean(nats)
        self._perplexity.update_state(loss, sample_weight=ops.shape(nats)[0])
        # TensorFlow sums gradients over replicas.
        return loss / backend.replicas_in_turns()

    def fit(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`: `x` are codes `[samples, *shape]`, `y` their classes `[samples]`, if there are any.

        Raises:
            ValueError: If codes or classes in arrays are none of the model's, or of another shape.
        """
        self._check_arrays(x, y)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: `loss` is in nats a code. Without classes, those of codes of any class."""
        self._check_arrays(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def _check_arrays(self, codes: Data, labels: Data) -> None:
        # What a compiled step cannot see. Data sets of other kinds come batch by batch.
        if isinstance(codes, np.ndarray) or ops.is_tensor(codes):
            self._check_codes(codes)
            if labels is not None:
                self._check_labels(labels, len(codes))

    def _check_codes(self, codes: Tensor) -> Tensor:
        codes = arguments.code_indices("codes", codes, self.num_embeddings + self.takes_masked)
        if len(codes.shape) != 1 + len(self.shape) or any(
            size not in (None, own) for size, own in zip(codes.shape[1:], self.shape, strict=True)
        ):
            raise ValueError(
                f"`codes` must have shape {('samples', *self.shape)}. Received: codes of shape {tuple(codes.shape)}"
            )
        return codes

    def _check_labels(self, labels: Tensor | None, samples: Tensor) -> Tensor:
        """Returns int32 classes `[samples]`, the number of classes where there is none."""
        none = self.num_classes or 0
        if labels is None:
            return ops.full((samples,), none, dtype="int32")
        if not none:
            raise ValueError(f"`labels` need a prior with `num_classes`. Received: labels={labels!r}, num_classes=None")
        labels = arguments.code_indices("labels", labels, none)
        if len(labels.shape) == 0:
            labels = ops.broadcast_to(labels, (samples,))
        if len(labels.shape) != 1 or (isinstance(samples, int) and labels.shape[0] not in (None, samples)):
            raise ValueError(
                "`labels` must be a class for each sample. "
                f"Received: labels of shape {tuple(labels.shape)} for {samples} samples"
            )
        return labels

    def _drop_labels(self, labels: Tensor) -> Tensor:
        drawn = keras.random.uniform(ops.shape(labels), seed=self.transformer.seed_generator)
        return ops.where(drawn < LABEL_DROPOUT, self.num_classes or 0, labels)
