"""What the wrappers of quantizers share."""

import dataclasses
from typing import Any

import keras

from keras_vqvae import arguments
from keras_vqvae.layers.quantizer import Quantizer

MOST_COPIES = 1024
"""Each copy is a layer; a larger number is a mistake, and would take hours."""


@dataclasses.dataclass(frozen=True)
class Template:
    """Hides from Keras the quantizer that a wrapper makes copies of.

    As a layer of a model it would count as one that was never built, which `model.quantize("int8")` does not take.
    """

    quantizer: Quantizer


def template(quantizer: Any) -> Template:
    """Returns the quantizer that a wrapper makes copies of, given it or what Keras saved of it."""
    if isinstance(quantizer, dict):
        quantizer = keras.saving.deserialize_keras_object(quantizer)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"`quantizer` must be a Quantizer. Received: quantizer={quantizer!r}")
    if quantizer.built:
        raise ValueError(
            "`quantizer` must not be built yet: a wrapper works with copies, and what this one has learned would be "
            f"lost. Received: quantizer={quantizer.name}, built=True"
        )
    return Template(quantizer)


def copy(quantizer: Quantizer, number: int, trainable: bool = True) -> Quantizer:
    """A new quantizer of the same configuration, with a seed of its own where the seed is fixed."""
    config = quantizer.get_config()
    # What is frozen from the start has no layers yet to hand it on to.
    config["trainable"] = trainable and quantizer.trainable
    config["name"] = f"{quantizer.name}_{number}"
    if config.get("seed") is not None:
        config["seed"] = (config["seed"] + number) % arguments.LARGEST_INT
        initializer = config.get("embeddings_initializer")
        # The default initializer has the layer's seed; equal draws in two levels would be equal codes.
        if initializer is not None and initializer["config"].get("seed") is not None:
            initializer["config"]["seed"] += number
    if isinstance(config.get("quantizer"), dict):
        config["quantizer"] = keras.saving.serialize_keras_object(copy(quantizer.template.quantizer, number))
    return type(quantizer).from_config(config)
