"""Spectrograms of sounds, for losses and discriminators.

Shapes in comments: `C` channels, `T` steps, `F` frames, `W` the size of a window.
"""

import math

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.types import Tensor

FLOOR = 1e-3
"""Magnitude of silence, in units of the data: the `floor` of `magnitudes`."""


def window_sizes(name: str, values: object) -> tuple[int, ...]:
    """Returns `values` as a tuple of window sizes, which must be multiples of 4."""
    sizes = validation.positive_ints(name, values)
    if not sizes or any(size % 4 for size in sizes):
        raise ValueError(f"`{name}` must be one or more multiples of 4. Received: {name}={validation.shown(values)}")
    return sizes


def check_steps(name: str, shape: tuple[int | None, ...], steps: int | None, sizes: tuple[int, ...]) -> None:
    """Raises an error if a sound of known length is shorter than the largest window."""
    if steps is not None and steps < max(sizes):
        raise ValueError(
            f"`{name}` must have at least as many steps as the largest window, {max(sizes)}: give longer sounds, or "
            f"smaller `window_sizes`. Received: {name} of shape {tuple(shape)}, of {steps} steps, window_sizes={sizes}"
        )


def channels_first() -> bool:
    """Whether Keras's image data format is `[batch, channels, ...]`."""
    return keras.config.image_data_format() == "channels_first"


def num_frames(steps: int | None, window_size: int) -> int | None:
    """Returns the number of frames that `magnitudes` computes for sounds of `steps` steps."""
    return None if steps is None else 1 + steps // (window_size // 4)


def magnitudes(sounds: Tensor, window_size: int, floor: float) -> Tensor:
    """Returns the magnitudes of a short-time Fourier transform, in float32 and at least `floor`.

    It uses Hann windows, with a hop of a quarter of the window. The first window is centered at the first step, and the
    sound is mirrored at its ends. A magnitude is `sqrt(|X|^2 + floor^2)`, so that silence has a logarithm and a
    gradient. `X` is divided by the window's Euclidean norm. For white noise of variance 1, the mean of `|X|^2` is then
    1 with any window.

    Args:
        sounds: `[..., C, T]`.
        window_size: A multiple of 4, and at most `T`.
        floor: The magnitude of silence, above 0.

    Returns:
        `[..., C, F, W // 2 + 1]`, where `F = 1 + T // (W // 4)`.
    """
    sounds = ops.cast(sounds, "float32")
    real, imaginary = ops.stft(sounds, window_size, window_size // 4, window_size)
    # The squares of a Hann window sum to 3/8 of its size.
    scale = 1 / math.sqrt(0.375 * window_size)
    return ops.sqrt(ops.square(scale * real) + ops.square(scale * imaginary) + floor**2)
