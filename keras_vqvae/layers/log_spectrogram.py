"""A layer in front of a discriminator of sounds."""

from typing import Any

import keras
from keras import ops

from keras_vqvae.ops import spectrogram
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class LogSpectrogram(keras.layers.Layer):
    """Converts sounds to log-magnitude spectrograms, one image channel for each channel of the sound.

    `keras_vqvae.ops.spectrogram.magnitudes` defines the magnitudes.

    Args:
        window_size: Size of the window in steps, a multiple of 4.
        channels_first: Whether inputs and outputs have the channels first. Defaults to `None`: the order of
            `keras.config.image_data_format()` when the layer is made.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Input shape:
        `[batch, steps, channels]`.

    Output shape:
        `[batch, frames, window_size // 2 + 1, channels]`.
    """

    def __init__(self, window_size: int, channels_first: bool | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        (self.window_size,) = spectrogram.window_sizes("window_size", (window_size,))
        self.channels_first = spectrogram.channels_first() if channels_first is None else channels_first

    def call(self, sounds: Tensor) -> Tensor:
        sounds = ops.cast(sounds, "float32")
        if not self.channels_first:
            sounds = ops.swapaxes(sounds, 1, 2)
        logs = ops.log(spectrogram.magnitudes(sounds, self.window_size, spectrogram.FLOOR))
        return ops.cast(logs if self.channels_first else ops.moveaxis(logs, 1, -1), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, channels, steps = (
            input_shape if self.channels_first else (input_shape[0], input_shape[2], input_shape[1])
        )
        spectrogram.check_steps("input_shape", input_shape, steps, (self.window_size,))
        image = (spectrogram.num_frames(steps, self.window_size), self.window_size // 2 + 1)
        return (batch, channels, *image) if self.channels_first else (batch, *image, channels)

    def compute_output_spec(self, sounds: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(sounds.shape), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"window_size": self.window_size, "channels_first": self.channels_first}
        return {**super().get_config(), **own}
