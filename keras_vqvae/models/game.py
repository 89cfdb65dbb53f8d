"""The losses of a generator, and of the discriminator that judges its reconstructions."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models.step import total
from keras_vqvae.types import Tensor

NOT_LOGITS = ("sigmoid", "hard_sigmoid", "softmax", "relu", "softplus")
"""Activations that are never negative: with them, the hinge loss of reconstructions cannot fall below 1."""
MIN_FEATURE = 1e-6
"""Lower bound of the mean magnitude of the data's features, by which differences of features are divided."""


def split_outputs(outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the logits and the features of a discriminator's outputs."""
    if isinstance(outputs, dict) and outputs.keys() == {"logits", "features"}:
        return keras.tree.flatten(outputs["logits"]), keras.tree.flatten(outputs["features"])
    if not keras.tree.is_nested(outputs):
        return [outputs], []
    parts = outputs if isinstance(outputs, dict) else dict(enumerate(outputs))
    other_keys = "features" in parts or ("logits" in parts and len(parts) > 1)
    if other_keys or any(map(keras.tree.is_nested, parts.values())):
        raise ValueError(
            "`discriminator` must return logits, as a tensor or a list or dict of tensors, or logits and features as "
            '`{"logits": logits, "features": [...]}`. Received: outputs of shapes '
            f"{keras.tree.map_structure(lambda each: tuple(each.shape), outputs)}"
        )
    return keras.tree.flatten(outputs), []


def discriminator_loss(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the hinge loss, and the accuracies on data and on reconstructions.

    Args:
        logits: Tensors `[2 * batch, ...]`: the logits of the data, then those of the reconstructions.
    """
    losses, accuracies = [], []
    for each in logits:
        each = ops.reshape(ops.cast(each, "float32"), (2, -1))
        margins = each * ops.expand_dims(backend.constants((1.0, -1.0), each), -1)
        losses.append(2.0 * ops.mean(ops.relu(1.0 - margins)))
        accuracies.append(ops.mean(ops.cast(margins > 0, "float32"), axis=1))
    accuracy = _average(accuracies)
    return _average(losses), accuracy[0], accuracy[1]


def generator_loss(logits: Sequence[Tensor]) -> Tensor:
    """Returns the mean of the logits of reconstructions, with the sign reversed."""
    return _average([-ops.mean(ops.cast(each, "float32")) for each in logits])


def feature_loss(both: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Returns the mean difference of features, relative to the magnitude of those of the data.

    Args:
        both: Tensors `[2 * batch, ...]`: features of the data and of the reconstructions. Only those of the data are
            used, without a gradient.
        features: Tensors `[batch, ...]`: features of the reconstructions, with a gradient for the reconstructions.
    """
    losses = []
    for pair, each in zip(both, features, strict=True):
        data = ops.stop_gradient(ops.reshape(ops.cast(pair, "float32"), (2, -1))[0])
        difference = ops.mean(ops.abs(ops.reshape(ops.cast(each, "float32"), (-1,)) - data))
        losses.append(difference / backend.at_least(ops.mean(ops.abs(data)), MIN_FEATURE))
    return _average(losses)


@contextlib.contextmanager
def constant_weights(layer: keras.Layer) -> Iterator[None]:
    """In this context, the weights of a layer are constants without a gradient."""
    values = [
        (variable, ops.stop_gradient(variable.value) if variable.trainable else variable.value)
        for variable in layer.variables
    ]
    with keras.StatelessScope(initialize_variables=False) as scope:
        for value in values:
            scope.add_update(value)
        yield


def check_logits(discriminator: keras.Layer) -> None:
    """Raises an error if the last activation of a discriminator is never negative."""
    for activation in _last_activations(discriminator):
        if activation in NOT_LOGITS:
            raise ValueError(
                "`discriminator` must return logits: remove the activation of its last layer. "
                f"Received: discriminator whose last layer has the activation {activation!r}"
            )


def _last_activations(layer: keras.Layer) -> Iterator[str]:
    """Yields the names of the activations of a layer, or of the last layers of a functional or sequential model."""
    outputs = getattr(layer, "outputs", None) or ()
    structure = getattr(layer, "output", None) if outputs else None
    for output in split_outputs(structure)[0] if isinstance(structure, dict) else outputs:
        last = output._keras_history.operation
        if last is not layer:
            yield from _last_activations(last)
    if isinstance(layer, keras.layers.Softmax):
        yield "softmax"
    yield getattr(getattr(layer, "activation", None), "__name__", "linear")


def _average(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else total(values) / len(values)
