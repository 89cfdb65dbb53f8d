"""Keras callbacks for any model that contains quantizers, however deeply nested."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_vqvae import metrics, validation
from keras_vqvae.layers.gumbel_quantizer import GumbelQuantizer
from keras_vqvae.layers.quantizer import Quantizer

Logs: TypeAlias = dict[str, Any] | None
"""The logs that Keras passes to callbacks: a value for each name."""


def _children(layer: keras.Layer) -> list[keras.Layer]:
    # Private, but the only way to find the sublayers of any layer. Keras's `summary` uses it.
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _find(layer: keras.Layer, kind: type[keras.Layer]) -> Iterator[keras.Layer]:
    """Yields the layers of a kind in `layer`, but none that is inside another of them."""
    if isinstance(layer, kind):
        yield layer
    else:
        for child in _children(layer):
            yield from _find(child, kind)


def _unique(layers: Iterator[keras.Layer]) -> list[keras.Layer]:
    return list({id(layer): layer for layer in layers}.values())


class CodebookMonitor(keras.callbacks.Callback):
    """Adds perplexity and usage of the codebooks to the logs of training and validation.

    With one quantizer, the logs are `perplexity`, `codebook_usage` and `bits_per_index`, prefixed with `val_` for
    validation. With several quantizers, the quantizer's name comes first: `top_perplexity`. If a quantizer has several
    codebooks, one for each stage, group or scale, these logs are means, and `min_perplexity` and `min_codebook_usage`
    are the values of the worst codebook. `VQVAE` reports all of these by itself. Put the callback before callbacks that
    read the logs, such as `CSVLogger` and `EarlyStopping`. A callback that monitors one of these logs needs
    `mode="max"`.

    For a frozen quantizer (`trainable=False`), the training `perplexity` is 0, because its `code_counts` are not
    updated.

    Args:
        per_codebook: Whether to also report each codebook of a quantizer with several, by its indices: `perplexity_0`
            and so on, or `perplexity_1_0` for stage 0 of group 1. Defaults to `False`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), VectorQuantizer(num_embeddings=32)])
    >>> model.compile("adam", "mse")
    >>> x = keras.random.normal((64, 4))
    >>> history = model.fit(x, x, validation_split=0.5, callbacks=[CodebookMonitor()], verbose=0)
    >>> sorted(name for name in history.history if "perplexity" in name)
    ['perplexity', 'val_perplexity']
    """

    def __init__(self, per_codebook: bool = False):
        super().__init__()
        self.per_codebook = validation.boolean("per_codebook", per_codebook)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._in_training = False
        self._retrace_evaluation()

    def _retrace_evaluation(self) -> None:
        # A traced evaluation either counts codes or does not, so Keras has to trace the next one again.
        self.model.test_function = None

    def _quantizers(self) -> list[Quantizer]:
        return [q for q in _unique(_find(self.model, Quantizer)) if not q.built or q.code_counts is not None]

    def _weights(self) -> list[keras.Variable]:
        return [quantizer.code_counts for quantizer in self._quantizers() if quantizer.built]

    def _counts(self) -> list[np.ndarray]:
        return [ops.convert_to_numpy(weight) for weight in self._weights()]

    def _report(self, before: Sequence[np.ndarray | int], prefix: str = "") -> dict[str, float]:
        quantizers = self._quantizers()
        found: dict[str, float] = {}
        # If the model was built only in its first step, there are no earlier counts.
        before = before or [0] * len(quantizers)
        for quantizer, earlier, now in zip(quantizers, before, self._counts(), strict=True):
            name = prefix + (f"{quantizer.name}_" if len(quantizers) > 1 else "")
            counts = now - earlier
            sizes = quantizer.codebook_sizes
            logs = metrics.summary(counts, sizes)
            if self.per_codebook and len(sizes) > 1:
                for index, size in zip(np.ndindex(counts.shape[:-1]), sizes, strict=True):
                    suffix, own = "_".join(map(str, index)), metrics.summary(counts[index][:size])
                    logs |= {f"{log}_{suffix}": value for log, value in own.items()}
            found |= {name + log: float(value) for log, value in logs.items()}
        return found

    def on_train_begin(self, logs: Logs = None) -> None:
        self._in_training = True
        self.validation: dict[str, float] = {}

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._before = self._counts()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        # Keras passes these logs to the callbacks after this one. The logs of `on_test_end` reach no other callback.
        if logs is not None:
            logs.update(self._report(self._before) | self.validation)

    def on_train_end(self, logs: Logs = None) -> None:
        self._in_training = False
        self._retrace_evaluation()

    def on_test_begin(self, logs: Logs = None) -> None:
        self._before_test = self._counts()
        for quantizer in self._quantizers():
            quantizer.count_in_inference = True

    def on_test_end(self, logs: Logs = None) -> None:
        for quantizer in self._quantizers():
            quantizer.count_in_inference = False
        self.validation = self._report(self._before_test, prefix="val_")
        for weight, counts in zip(self._weights(), self._before_test, strict=False):
            weight.assign(counts)
        if not self._in_training:
            self._retrace_evaluation()


class TemperatureScheduler(keras.callbacks.Callback):
    """Sets the temperature of every `GumbelQuantizer` at the start of each epoch.

    On TensorFlow, a layer that is built in the first step keeps its initial temperature in the first epoch.

    Args:
        schedule: A function that takes the epoch, an integer from 0, and the current temperature, and returns the new
            temperature, above 0.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), GumbelQuantizer(num_embeddings=32)])
    >>> model.compile("adam", "mse")
    >>> x = keras.random.normal((64, 4))
    >>> callback = TemperatureScheduler(lambda epoch, temperature: max(0.1, 0.5**epoch))
    >>> history = model.fit(x, x, epochs=3, callbacks=[callback], verbose=0)
    >>> float(model.layers[0].temperature)
    0.25
    """

    def __init__(self, schedule: Callable[[int, float], float]):
        super().__init__()
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        for layer in _unique(_find(self.model, GumbelQuantizer)):
            if layer.built:
                before = float(ops.convert_to_numpy(layer.temperature))
                layer.temperature.assign(validation.positive("schedule", self.schedule(epoch, before)))
