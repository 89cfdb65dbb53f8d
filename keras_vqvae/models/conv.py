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


def _checked(
    name: str, shape: Sequence[int | None], filters: Iterable[int], num_residual_blocks: int
) -> tuple[tuple[int | None, ...], int, tuple[int, ...], int]:
    """Returns the grid's sizes, the channels, and the other two arguments, all of which must fit each other."""
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
        step = 2 ** len(filters)
        if size is not None and validation.positive_int(name, size) % step:
            fitting = [fits for fits in (size // step * step, (size // step + 1) * step) if fits]
            raise ValueError(
                f"{len(filters)} `filters` halve sizes that {step} divides, or None. The nearest to {size}: "
                f"{' and '.join(map(str, fitting))}. Received: {name}={tuple(shape)}"
            )
    return sizes, channels, filters, validation.non_negative_int("num_residual_blocks", num_residual_blocks)


def _conv(rank: int, filters: int, width: int, name: str, strides: int = 1, transpose: bool = False) -> keras.Layer:
    kind = getattr(layers, f"Conv{rank}D" + ("Transpose" if transpose else ""))
    return kind(filters, width, strides=strides, padding="same", name=name)


def _residual_blocks(x: Tensor, rank: int, filters: int, count: int, prefix: str) -> Tensor:
    for i in range(count):
        name = f"{prefix}_residual_{i}"
        change = layers.Activation("relu", name=f"{name}_act_0")(x)
        change = _conv(rank, filters, 3, name=f"{name}_conv_0")(change)
        change = layers.Activation("relu", name=f"{name}_act_1")(change)
        change = _conv(rank, filters, 1, name=f"{name}_conv_1")(change)
        x = layers.Add(name=name)([x, change])
    return layers.Activation("relu", name=f"{prefix}_act")(x)


def build_conv_encoder(
    input_shape: Sequence[int | None],
    embedding_dim: int = 64,
    filters: Iterable[int] = (64, 128),
    num_residual_blocks: int = 2,
    name: str = "encoder",
) -> keras.Model:
    """Builds a convolutional encoder: the paper's, for grids of one to three axes.

    Each entry of `filters` is a convolution of width 4 and stride 2, which halves every size of the grid; residual
    blocks and a convolution of width 1 to `embedding_dim` follow.

    Args:
        input_shape: That of a sample, in the order of `keras.config.image_data_format()`: `(steps, channels)`,
            `(height, width, channels)` or `(frames, height, width, channels)`. A size may be `None`, for any.
        embedding_dim: Size of an output vector, which is linear. Defaults to `64`.
        filters: Channels after each halving. Defaults to `(64, 128)`.
        num_residual_blocks: How many residual blocks, of the last of `filters`. Defaults to `2`.
        name: Of the model. Defaults to `"encoder"`.

    Returns:
        A functional model `input` -> `[batch, *sizes / 2 ** len(filters), embedding_dim]`. In its outputs the channels
        are always last, as quantizers want them.

    Raises:
        ValueError: If `filters` is empty, or a size cannot be halved so often.

    Example:

    >>> encoder = build_conv_encoder((28, 28, 1), embedding_dim=32)
    >>> encoder.output_shape
    (None, 7, 7, 32)

    Reference:

    - [van den Oord et al., 2017, section 4.1](https://arxiv.org/abs/1711.00937)
    """
    sizes, _, filters, count = _checked("input_shape", input_shape, filters, num_residual_blocks)
    embedding_dim = validation.positive_int("embedding_dim", embedding_dim)
    rank = len(sizes)
    inputs = x = keras.Input(tuple(input_shape), name="input")
    for i, size in enumerate(filters):
        if i:
            x = layers.Activation("relu", name=f"encoder_act_{i - 1}")(x)
        x = _conv(rank, size, 4, strides=2, name=f"encoder_conv_{i}")(x)
    x = _residual_blocks(x, rank, filters[-1], count, prefix="encoder")
    x = _conv(rank, embedding_dim, 1, name="encoder_to_embedding")(x)
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
) -> keras.Model:
    """Builds the mirror image of `build_conv_encoder` of the same arguments.

    A convolution of width 3, residual blocks, and for each entry of `filters`, the last first, a transposed convolution
    of width 4 and stride 2, which doubles every size of the grid.

    Args:
        output_shape: That of a sample, as the encoder's `input_shape`.
        embedding_dim: Size of a code. Defaults to `64`.
        filters: Channels before each doubling, in the encoder's order. Defaults to `(64, 128)`.
        num_residual_blocks: How many residual blocks, of the last of `filters`. Defaults to `2`.
        name: Of the model. Defaults to `"decoder"`.

    Returns:
        A functional model from `quantized`, `[batch, *sizes / 2 ** len(filters), embedding_dim]` with channels last, to
        `[batch, *output_shape]`, which is linear.

    Raises:
        ValueError: If `filters` is empty, or a size cannot be halved so often.

    Example:

    >>> decoder = build_conv_decoder((28, 28, 1), embedding_dim=32)
    >>> decoder.input_shape, decoder.output_shape
    ((None, 7, 7, 32), (None, 28, 28, 1))
    """
    sizes, channels, filters, count = _checked("output_shape", output_shape, filters, num_residual_blocks)
    embedding_dim = validation.positive_int("embedding_dim", embedding_dim)
    rank, step = len(sizes), 2 ** len(filters)
    grid = [None if size is None else size // step for size in sizes]
    inputs = x = keras.Input((*grid, embedding_dim), name="quantized")
    if _channels_first():
        # `[batch, *grid, D]` -> `[batch, D, *grid]`
        x = layers.Permute((rank + 1, *range(1, rank + 1)), name="decoder_channels_first")(x)
    x = _conv(rank, filters[-1], 3, name="decoder_conv")(x)
    x = _residual_blocks(x, rank, filters[-1], count, prefix="decoder")
    for i, size in enumerate(reversed(filters[:-1])):
        x = _conv(rank, size, 4, strides=2, transpose=True, name=f"decoder_conv_{i}")(x)
        x = layers.Activation("relu", name=f"decoder_act_{i}")(x)
    outputs = _conv(rank, channels, 4, strides=2, transpose=True, name="decoder_output")(x)
    return keras.Model(inputs, outputs, name=name)
