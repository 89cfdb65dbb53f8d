"""What the wrappers of quantizers share."""

from typing import Any

import keras

from keras_vqvae.layers.quantizer import Quantizer


def template(quantizer: Any) -> Quantizer:
    """Returns the quantizer that a wrapper makes copies of, or what Keras saved of it."""
    if isinstance(quantizer, dict):
        quantizer = keras.saving.deserialize_keras_object(quantizer)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"`quantizer` must be a Quantizer. Received: quantizer={quantizer!r}")
    if quantizer.built:
        raise ValueError(
            "`quantizer` must not be built yet: a wrapper works with copies, and what this one has learned would be "
            f"lost. Received: quantizer={quantizer.name}, built=True"
        )
    return quantizer


def copy(quantizer: Quantizer, number: int, trainable: bool = True) -> Quantizer:
    """A new quantizer of the same configuration, with a seed of its own where the seed is fixed."""
    config = quantizer.get_config()
    # What is frozen from the start has no layers yet to hand it on to.
    config["trainable"] = trainable and quantizer.trainable
    config["name"] = f"{quantizer.name}_{number}"
    if config.get("seed") is not None:
        config["seed"] += number
        initializer = config.get("embeddings_initializer")
        # The default initializer has the layer's seed; equal draws in two levels would be equal codes.
        if initializer is not None and initializer["config"].get("seed") is not None:
            initializer["config"]["seed"] += number
    if isinstance(config.get("quantizer"), dict):
        config["quantizer"] = keras.saving.serialize_keras_object(copy(quantizer.template, number))
    return type(quantizer).from_config(config)
