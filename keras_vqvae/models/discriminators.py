"""Discriminators, which tell data from reconstructions by their patches or their spectrograms."""

from collections.abc import Iterable, Sequence

import keras
from keras import layers

from keras_vqvae.constraints import SpectralNorm
from keras_vqvae.layers.log_spectrogram import LogSpectrogram
from keras_vqvae.models.conv import check_grid
from keras_vqvae.ops import spectrogram
from keras_vqvae.types import FromKeras

SPECTRAL_NORM = SpectralNorm()


def build_conv_discriminator(
    input_shape: Sequence[int | None],
    filters: Iterable[int] = (64, 128),
    kernel_constraint: FromKeras = SPECTRAL_NORM,
    name: str = "discriminator",
) -> keras.Model:
    """Builds a convolutional discriminator of patches, for inputs with one to three axes.

    Each entry of `filters` is a convolution of width 4 and stride 2, which halves every size, and a leaky ReLU of slope
    0.2. A convolution of width 3 to one channel follows. Each logit judges a patch of `5 * 2 ** len(filters) - 2`
    elements along each axis: 18 for two filters, 38 for three.

    Kernels are initialized orthogonally. By default, they keep a spectral norm of 1.

    Args:
        input_shape: Shape of a sample, in the order of `keras.config.image_data_format()`: `(steps, channels)`,
            `(height, width, channels)` or `(frames, height, width, channels)`. A size may be `None`, for any size.
        filters: Channels after each halving. Defaults to `(64, 128)`.
        kernel_constraint: Constraint of every kernel. Defaults to `SpectralNorm()`.
        name: Name of the model. Defaults to `"discriminator"`.

    Returns:
        A functional model from `input` to `{"logits": logits, "features": features}`, as `VQGAN` takes it. The logits
        have the shape `[batch, *ceil(sizes / 2 ** len(filters)), 1]`, with channels last. A trained discriminator gives
        larger logits to data than to reconstructions. The features are the outputs of each leaky ReLU, a list.

    Raises:
        ValueError: If `filters` is empty, or a size is not positive.

    Example:

    >>> discriminator = build_conv_discriminator((28, 28, 1), filters=(32, 64))
    >>> outputs = discriminator(np.zeros((2, 28, 28, 1)))
    >>> tuple(outputs["logits"].shape), len(outputs["features"])
    ((2, 7, 7, 1), 2)

    References:

    - [Isola et al., 2017](https://arxiv.org/abs/1611.07004), discriminators of patches
    - [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), spectral normalization
    """
    sizes, _, filters = check_grid("input_shape", input_shape, filters)
    constraint = keras.constraints.get(kernel_constraint)
    rank = len(sizes)
    kind = getattr(layers, f"Conv{rank}D")
    kernels = {"padding": "same", "kernel_initializer": "orthogonal", "kernel_constraint": constraint}
    inputs = x = keras.Input(tuple(input_shape), name="input")
    features = []
    for i, size in enumerate(filters):
        x = kind(size, 4, strides=2, name=f"discriminator_conv_{i}", **kernels)(x)
        x = layers.LeakyReLU(0.2, name=f"discriminator_act_{i}")(x)
        features.append(x)
    x = kind(1, 3, name="discriminator_logits", **kernels)(x)
    if spectrogram.channels_first():
        # `[batch, 1, *grid]` -> `[batch, *grid, 1]`
        x = layers.Permute((*range(2, rank + 2), 1), name="discriminator_channels_last")(x)
    return keras.Model(inputs, {"logits": x, "features": features}, name=name)


def build_spectrogram_discriminator(
    input_shape: Sequence[int | None],
    window_sizes: Iterable[int] = (1024, 256, 64),
    filters: Iterable[int] = (32, 64),
    kernel_constraint: FromKeras = SPECTRAL_NORM,
    name: str = "spectrogram_discriminator",
) -> keras.Model:
    """Builds a discriminator of sounds, which judges patches of their spectrograms at several resolutions.

    For each window size, a model of `build_conv_discriminator` judges an image of time, frequency and channels: the log
    magnitudes of a short-time Fourier transform, as in `SpectralLoss`. Magnitudes below 1e-3, in units of the data,
    count as silence. Train on data with a standard deviation close to 1.

    Args:
        input_shape: Shape of a sound, `(steps, channels)`, or `(channels, steps)` if
            `keras.config.image_data_format()` is `"channels_first"`. `steps` may be `None`, for any length.
        window_sizes: Sizes of the windows in steps, multiples of 4. Defaults to `(1024, 256, 64)`.
        filters: Channels of each discriminator, as in `build_conv_discriminator`. Defaults to `(32, 64)`.
        kernel_constraint: Constraint of every kernel. Defaults to `SpectralNorm()`.
        name: Name of the model. Defaults to `"spectrogram_discriminator"`.

    Returns:
        A functional model from `input` to `{"logits": logits, "features": features}`, as `VQGAN` takes it. The logits
        are a list of tensors `[batch, time, frequency, 1]`, one for each window size. The features are the outputs of
        each leaky ReLU of all discriminators, a list.

    Raises:
        ValueError: If `input_shape` is not the shape of a sound, or has fewer steps than the largest window.

    Example:

    >>> discriminator = build_spectrogram_discriminator((4096, 1), window_sizes=(512, 128))
    >>> outputs = discriminator(np.zeros((2, 4096, 1)))
    >>> [tuple(logits.shape) for logits in outputs["logits"]], len(outputs["features"])
    ([(2, 9, 65, 1), (2, 33, 17, 1)], 4)

    Reference:

    - [Jang et al., 2021](https://arxiv.org/abs/2106.07889), discriminators of spectrograms at several resolutions
    """
    sizes, _, filters = check_grid("input_shape", input_shape, filters)
    if len(sizes) != 1:
        raise ValueError(
            "`input_shape` must be the shape of a sound: the number of steps, and the channels. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    windows = spectrogram.window_sizes("window_sizes", window_sizes)
    spectrogram.check_steps("input_shape", tuple(input_shape), sizes[0], windows)
    inputs = keras.Input(tuple(input_shape), name="input")
    logits, features = [], []
    for i, window in enumerate(windows):
        image = LogSpectrogram(window, name=f"spectrogram_{i}")(inputs)
        part = build_conv_discriminator(image.shape[1:], filters, kernel_constraint, name=f"discriminator_{i}")
        outputs = part(image)
        logits.append(outputs["logits"])
        features += outputs["features"]
    return keras.Model(inputs, {"logits": logits, "features": features}, name=name)
