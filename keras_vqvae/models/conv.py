"""Convolutional encoders and decoders, for series and sound, images, and videos."""

from collections.abc import Iterable, Sequence

import keras
from keras import layers

from keras_vqvae import validation
from keras_vqvae.types import Tensor

RANKS = (1, 2, 3)
"""Of grids that Keras has convolutions for."""


def _channels_first() -> bool:
    return keras.config.image_data_format() == "channels_first"


def check_grid(
    name: str, shape: Sequence[int | None], filters: Iterable[int]
) -> tuple[tuple[int | None, ...], int, tuple[int, ...]]:
    """Returns the grid's sizes, the channels and `filters`, one for each halving of the sizes."""
    filters = validation.positive_ints("filters", filters)
    if not filters:
        raise ValueError("`filters` must have an entry for each halving of the size. Received: filters=()")
    if not isinstance(shape, list | tuple) or len(shape) - 1 not in RANKS:
        raise ValueError(
            f"`{name}` must be that of one sample: one to three axes and the channels. Received: {name}={shape!r}"
        )
    channels = validation.positive_int(name, shape[0 if _channels_first() else -1])
    sizes = tuple(shape[1:] if _channels_first() else shape[:-1])
    for size in sizes:
        if size is not None:
            validation.positive_int(name, size)
    return sizes, channels, filters


def _checked(
    name: str, shape: Sequence[int | None], filters: Iterable[int], num_residual_blocks: int, causal: bool
) -> tuple[tuple[int | None, ...], int, tuple[int, ...], int]:
    """Returns the grid's sizes, the channels, and the next two arguments, all of which must fit each other."""
    sizes, channels, filters = check_grid(name, shape, filters)
    if validation.boolean("causal", causal) and (len(sizes) > 1 or _channels_first()):
        raise ValueError(
            f"`causal` needs one axis, and channels last: `{name}` must be (steps, channels). "
            f"Received: causal=True, {name}={tuple(shape)}, image_data_format={keras.config.image_data_format()!r}"
        )
    return sizes, channels, filters, validation.non_negative_int("num_residual_blocks", num_residual_blocks)


class _Convolutions:
    """Makes convolutions of one kind: of as many axes as the grid has, causal or not.

    A causal one pads at the start alone. All that it knows of the past is what is padded, so that a stream has to
    remember nothing else (see `CausalStep`).
    """

    def __init__(self, rank: int, causal: bool):
        self.rank, self.causal = rank, causal
        self._padding = "valid" if causal else "same"

    def conv(self, x: Tensor, filters: int, width: int, name: str, strides: int = 1) -> Tensor:
        """An output sees the inputs up to the end of its stride."""
        if self.causal and width > strides:
            x = layers.ZeroPadding1D((width - strides, 0), name=f"{name}_pad")(x)
        kind = getattr(layers, f"Conv{self.rank}D")
        return kind(filters, width, strides=strides, padding=self._padding, name=name)(x)

    def upsample(self, x: Tensor, filters: int, name: str) -> Tensor:
        """Doubles every size: width 4, stride 2."""
        if self.causal:
            x = layers.ZeroPadding1D((1, 0), name=f"{name}_pad")(x)
        kind = getattr(layers, f"Conv{self.rank}DTranspose")
        x = kind(filters, 4, strides=2, padding=self._padding, name=name)(x)
        # The padding became two outputs, and the last two lack an input that comes later.
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
    """Builds a convolutional encoder: the paper's, for grids of one to three axes.

    Each entry of `filters` is a convolution of width 4 and stride 2, which halves every size of the grid; residual
    blocks and a convolution of width 1 to `embedding_dim` follow.

    The strides multiply to `stride = 2 ** len(filters)`. A size that `stride` does not divide is padded with zeros, as
    `padding="same"` does, and the size of the grid is rounded up.

    Args:
        input_shape: That of a sample, in the order of `keras.config.image_data_format()`: `(steps, channels)`,
            `(height, width, channels)` or `(frames, height, width, channels)`. A size may be `None`, for any.
        embedding_dim: Size of an output vector, which is linear. Defaults to `64`.
        filters: Channels after each halving. Defaults to `(64, 128)`.
        num_residual_blocks: How many residual blocks, of the last of `filters`. Defaults to `2`.
        name: Of the model. Defaults to `"encoder"`.
        causal: Whether vector `t` depends only on the samples before `(t + 1) * stride`, so that a stream can be
            encoded as it comes: see `VQVAE.encode_stream`. All zeros are then padded at the start, except those that
            complete the last `stride` samples. For one axis only. Defaults to `False`.

    Returns:
        A functional model `input` -> `[batch, *ceil(sizes / stride), embedding_dim]`. In its outputs the channels are
        always last, as quantizers want them.

    Raises:
        ValueError: If `filters` is empty, a size is not positive, or `causal` is set for more than one axis or for
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
        # Completes the last vector. Convolutions without padding drop what is more than that.
        x = layers.ZeroPadding1D((0, 2 ** len(filters) - 1), name="encoder_end_pad")(x)
    for i, size in enumerate(filters):
        if i:
            x = layers.Activation("relu", name=f"encoder_act_{i - 1}")(x)
        x = convolutions.conv(x, size, 4, strides=2, name=f"encoder_conv_{i}")
    x = convolutions.residual_blocks(x, filters[-1], count, prefix="encoder")
    x = convolutions.conv(x, embedding_dim, 1, name="encoder_to_embedding")
    if _channels_first():
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
    """Builds the mirror image of `build_conv_encoder` of the same arguments.

    A convolution of width 3, residual blocks, and for each entry of `filters`, the last first, a transposed convolution
    of width 4 and stride 2, which doubles every size of the grid. If `2 ** len(filters)` does not divide a size, the
    output is cropped at its end. If the size is `None`, the output has full multiples; `VQVAE` crops it to the size of
    its input.

    Args:
        output_shape: That of a sample, as the encoder's `input_shape`.
        embedding_dim: Size of a code. Defaults to `64`.
        filters: Channels before each doubling, in the encoder's order. Defaults to `(64, 128)`.
        num_residual_blocks: How many residual blocks, of the last of `filters`. Defaults to `2`.
        name: Of the model. Defaults to `"decoder"`.
        causal: Whether the samples of vector `t` depend only on the vectors up to `t`: see `VQVAE.decode_stream`. For
            one axis only. Defaults to `False`.

    Returns:
        A functional model from `quantized`, `[batch, *ceil(sizes / 2 ** len(filters)), embedding_dim]` with channels
        last, to `[batch, *output_shape]`, which is linear.

    Raises:
        ValueError: If `filters` is empty, a size is not positive, or `causal` is set for more than one axis or for
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
    if _channels_first():
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
