"""Convolutional encoders and decoders for time series, sounds, images and videos."""

from collections.abc import Iterable, Sequence

import keras
from keras import layers

from keras_vqvae import validation
from keras_vqvae.ops.spectrogram import channels_first
from keras_vqvae.types import Tensor

RANKS = (1, 2, 3)
"""Numbers of axes for which Keras has convolutions."""


def check_grid(
    name: str, shape: Sequence[int | None], filters: Iterable[int]
) -> tuple[tuple[int | None, ...], int, tuple[int, ...]]:
    """Returns the sizes and the channels of a sample's shape, and `filters` as a tuple."""
    filters = validation.positive_ints("filters", filters)
    if not filters:
        raise ValueError("`filters` must have at least one entry. Each entry halves the size. Received: filters=()")
    if not isinstance(shape, list | tuple) or len(shape) - 1 not in RANKS:
        raise ValueError(
            f"`{name}` must be the shape of one sample without the batch: one to three sizes, and the channels. "
            f"Received: {name}={shape if isinstance(shape, int | list | tuple) else type(shape).__name__}"
        )
    channel_axis = 0 if channels_first() else len(shape) - 1
    channels = validation.positive_int(f"{name}[{channel_axis}]", shape[channel_axis])
    for axis, size in enumerate(shape):
        if size is not None:
            validation.positive_int(f"{name}[{axis}]", size)
    return (*shape[:channel_axis], *shape[channel_axis + 1 :]), channels, filters


def _checked(
    name: str, shape: Sequence[int | None], filters: Iterable[int], num_residual_blocks: int, causal: bool
) -> tuple[tuple[int | None, ...], int, tuple[int, ...], int]:
    """Checks arguments. Returns the sizes and the channels of a sample's shape, `filters` and `num_residual_blocks`."""
    sizes, channels, filters = check_grid(name, shape, filters)
    if validation.boolean("causal", causal) and (len(sizes) > 1 or channels_first()):
        raise ValueError(
            f"`causal=True` needs sequences with channels last: `{name}` must be (steps, channels). "
            f"Received: causal=True, {name}={tuple(shape)}, image_data_format={keras.config.image_data_format()!r}"
        )
    return sizes, channels, filters, validation.non_negative_int("num_residual_blocks", num_residual_blocks)


class _Convolutions:
    """Makes convolutions over grids of `rank` axes, causal or not.

    Causal convolutions pad sequences at the start only, with a separate padding layer. A stream replaces this padding
    by the last steps of the part before (see `CausalStep`).
    """

    def __init__(self, rank: int, causal: bool):
        self.rank, self.causal = rank, causal
        self._padding = "valid" if causal else "same"

    def conv(self, x: Tensor, filters: int, width: int, name: str, strides: int = 1) -> Tensor:
        """A convolution. If causal, an output depends on the inputs up to the end of its stride."""
        if self.causal and width > strides:
            x = layers.ZeroPadding1D((width - strides, 0), name=f"{name}_pad")(x)
        kind = getattr(layers, f"Conv{self.rank}D")
        return kind(filters, width, strides=strides, padding=self._padding, name=name)(x)

    def upsample(self, x: Tensor, filters: int, name: str) -> Tensor:
        """A transposed convolution of width 4 and stride 2, which doubles every size."""
        if self.causal:
            x = layers.ZeroPadding1D((1, 0), name=f"{name}_pad")(x)
        kind = getattr(layers, f"Conv{self.rank}DTranspose")
        x = kind(filters, 4, strides=2, padding=self._padding, name=name)(x)
        # Drops two outputs of the padding, and the last two, which also depend on the next input.
        return layers.Cropping1D((2, 2), name=f"{name}_crop")(x) if self.causal else x

    def residual_blocks(self, x: Tensor, filters: int, count: int, prefix: str) -> Tensor:
        for i in range(count):
            name = f"{prefix}_residual_{i}"
            change = layers.Activation("relu", name=f"{name}_act_0")(x)
            change = self.conv(change, filters, 3, name=f"{name}_conv_0")
            change = layers.Activation("relu", name=f"{name}_act_1")(change)
            change = self.conv(change, filters, 1, name=f"{name}_conv_1")
            x = layers.Add(name=name)([x, change])
        return layers.Activation("relu", name=f"{prefix}_act")(x)


def build_conv_encoder(
    input_shape: Sequence[int | None],
    embedding_dim: int = 64,
    filters: Iterable[int] = (64, 128),
    num_residual_blocks: int = 2,
    name: str = "encoder",
    causal: bool = False,
) -> keras.Model:
    """Builds the convolutional encoder of the VQ-VAE paper, for inputs with one to three axes.

    Each entry of `filters` is a convolution of width 4 and stride 2, which halves every size. Residual blocks and a
    convolution of width 1 to `embedding_dim` follow.

    Together the strides are `stride = 2 ** len(filters)`. A size that is not a multiple of `stride` is padded with
    zeros, as with `padding="same"`, so the size of the output is rounded up.

    Args:
        input_shape: Shape of a sample, in the order of `keras.config.image_data_format()`: `(steps, channels)`,
            `(height, width, channels)` or `(frames, height, width, channels)`. A size may be `None`, for any size.
        embedding_dim: Size of the output vectors. The last layer is linear. Defaults to `64`.
        filters: Channels after each halving. Defaults to `(64, 128)`.
        num_residual_blocks: Number of residual blocks. They have as many channels as the last of `filters`. Defaults to
            `2`.
        name: Name of the model. Defaults to `"encoder"`.
        causal: Whether vector `t` depends only on the samples before `(t + 1) * stride`, so that a stream can be
            encoded as it arrives: see `VQVAE.encode_stream`. Zeros are then padded at the start, and at the end only to
            complete the last `stride` samples. For sequences only. Defaults to `False`.

    Returns:
        A functional model from `input` to `[batch, *ceil(sizes / stride), embedding_dim]`. The channels of its outputs
        are always last, as quantizers expect them.

    Raises:
        ValueError: If `filters` is empty, a size is not positive, or `causal` is set for more than one axis or with
            channels first.

    Example:

    >>> encoder = build_conv_encoder((28, 28, 1), embedding_dim=32)
    >>> encoder.output_shape
    (None, 7, 7, 32)

    Reference:

    - [van den Oord et al., 2017, section 4.1](https://arxiv.org/abs/1711.00937)
    """
    sizes, _, filters, count = _checked("input_shape", input_shape, filters, num_residual_blocks, causal)
    embedding_dim = validation.positive_int("embedding_dim", embedding_dim)
    rank = len(sizes)
    convolutions = _Convolutions(rank, causal)
    inputs = x = keras.Input(tuple(input_shape), name="input")
    if causal:
        # Completes the last vector. Convolutions without padding drop any surplus.
        x = layers.ZeroPadding1D((0, 2 ** len(filters) - 1), name="encoder_end_pad")(x)
    for i, size in enumerate(filters):
        if i:
            x = layers.Activation("relu", name=f"encoder_act_{i - 1}")(x)
        x = convolutions.conv(x, size, 4, strides=2, name=f"encoder_conv_{i}")
    x = convolutions.residual_blocks(x, filters[-1], count, prefix="encoder")
    x = convolutions.conv(x, embedding_dim, 1, name="encoder_to_embedding")
    if channels_first():
        # `[batch, D, *grid]` -> `[batch, *grid, D]`
        x = layers.Permute((*range(2, rank + 2), 1), name="encoder_channels_last")(x)
    return keras.Model(inputs, x, name=name)


def build_conv_decoder(
    output_shape: Sequence[int | None],
    embedding_dim: int = 64,
    filters: Iterable[int] = (64, 128),
    num_residual_blocks: int = 2,
    name: str = "decoder",
    causal: bool = False,
) -> keras.Model:
    """Builds the decoder that mirrors `build_conv_encoder` with the same arguments.

    It has a convolution of width 3, residual blocks, and for each entry of `filters`, in reverse order, a transposed
    convolution of width 4 and stride 2, which doubles every size. A size that is not a multiple of `2 ** len(filters)`
    is cropped at its end. If the size is `None`, the output's size is a multiple, and `VQVAE` crops it to the size of
    its input.

    Args:
        output_shape: Shape of a sample: the encoder's `input_shape`.
        embedding_dim: Size of a code. Defaults to `64`.
        filters: Channels before each doubling, in the encoder's order. Defaults to `(64, 128)`.
        num_residual_blocks: Number of residual blocks. They have as many channels as the last of `filters`. Defaults to
            `2`.
        name: Name of the model. Defaults to `"decoder"`.
        causal: Whether the samples that vector `t` decodes to depend only on the vectors up to `t`: see
            `VQVAE.decode_stream`. For sequences only. Defaults to `False`.

    Returns:
        A functional model from `quantized`, `[batch, *ceil(sizes / 2 ** len(filters)), embedding_dim]` with channels
        last, to `[batch, *output_shape]`. The last layer is linear.

    Raises:
        ValueError: If `filters` is empty, a size is not positive, or `causal` is set for more than one axis or with
            channels first.

    Example:

    >>> decoder = build_conv_decoder((28, 28, 1), embedding_dim=32)
    >>> decoder.input_shape, decoder.output_shape
    ((None, 7, 7, 32), (None, 28, 28, 1))
    """
    sizes, channels, filters, count = _checked("output_shape", output_shape, filters, num_residual_blocks, causal)
    embedding_dim = validation.positive_int("embedding_dim", embedding_dim)
    rank, stride = len(sizes), 2 ** len(filters)
    convolutions = _Convolutions(rank, causal)
    grid = [None if size is None else -(-size // stride) for size in sizes]
    inputs = x = keras.Input((*grid, embedding_dim), name="quantized")
    if channels_first():
        # `[batch, *grid, D]` -> `[batch, D, *grid]`
        x = layers.Permute((rank + 1, *range(1, rank + 1)), name="decoder_channels_first")(x)
    x = convolutions.conv(x, filters[-1], 3, name="decoder_conv")
    x = convolutions.residual_blocks(x, filters[-1], count, prefix="decoder")
    for i, size in enumerate(reversed(filters[:-1])):
        x = convolutions.upsample(x, size, name=f"decoder_conv_{i}")
        x = layers.Activation("relu", name=f"decoder_act_{i}")(x)
    outputs = convolutions.upsample(x, channels, name="decoder_output")
    if any(size is not None and size % stride for size in sizes):
        outputs = outputs[(slice(None), *(slice(size) for size in output_shape))]
    return keras.Model(inputs, outputs, name=name)
