"""Encoders and decoders with dense layers, for inputs that are vectors."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import keras

from keras_vqvae import validation
from keras_vqvae.types import Tensor

Activation: TypeAlias = str | Callable[[Tensor], Tensor] | None


def _dense_stack(x: Tensor, sizes: Iterable[int], activation: Activation, prefix: str) -> Tensor:
    for i, size in enumerate(sizes):
        x = keras.layers.Dense(size, name=f"{prefix}_dense_{i}")(x)
        x = keras.layers.Activation(activation, name=f"{prefix}_act_{i}")(x)
    return x


def build_encoder(
    input_size: int,
    embedding_dim: int = 64,
    encoder_sizes: Iterable[int] = (256, 128),
    activation: Activation = "relu",
) -> keras.Model:
    """Builds an encoder, `[batch, input_size]` -> `[batch, embedding_dim]`.

    Args:
        input_size: Size of an input vector.
        embedding_dim: Size of the output vectors. The last layer is linear. Defaults to `64`.
        encoder_sizes: Sizes of the hidden layers. If empty, the encoder is linear. Defaults to `(256, 128)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.

    Returns:
        A functional model with the input `input` and the layers `encoder_dense_i`, `encoder_act_i` and
        `encoder_to_embedding`.

    Example:

    >>> encoder = build_encoder(input_size=784, embedding_dim=32)
    >>> encoder.output_shape
    (None, 32)
    """
    input_size = validation.positive_int("input_size", input_size)
    embedding_dim = validation.positive_int("embedding_dim", embedding_dim)
    encoder_sizes = validation.positive_ints("encoder_sizes", encoder_sizes)
    inputs = keras.Input((input_size,), name="input")
    x = _dense_stack(inputs, encoder_sizes, activation, prefix="encoder")
    outputs = keras.layers.Dense(embedding_dim, name="encoder_to_embedding")(x)
    return keras.Model(inputs, outputs, name="encoder")


def build_decoder(
    input_size: int | None = None,
    output_size: int | None = None,
    embedding_dim: int = 64,
    decoder_sizes: Iterable[int] = (128, 256),
    activation: Activation = "relu",
) -> keras.Model:
    """Builds a decoder, `[batch, embedding_dim]` -> `[batch, output_size]`.

    Args:
        input_size: Size of the encoder's input vectors, used if `output_size` is not given. One of the two is required.
            Defaults to `None`.
        output_size: Size of the output vectors. The last layer is linear. Defaults to `None`, `input_size`.
        embedding_dim: Size of a code. Defaults to `64`.
        decoder_sizes: Sizes of the hidden layers. If empty, the decoder is linear. Defaults to `(128, 256)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.

    Returns:
        A functional model with the input `quantized` and the layers `decoder_dense_i`, `decoder_act_i` and
        `decoder_output`.

    Example:

    >>> decoder = build_decoder(output_size=784, embedding_dim=32)
    >>> decoder.output_shape
    (None, 784)
    """
    if input_size is None and output_size is None:
        raise ValueError(
            "Either `input_size` or `output_size` must be given. Received: input_size=None, output_size=None"
        )
    if input_size is not None:
        input_size = validation.positive_int("input_size", input_size)
    size = input_size if output_size is None else validation.positive_int("output_size", output_size)
    embedding_dim = validation.positive_int("embedding_dim", embedding_dim)
    decoder_sizes = validation.positive_ints("decoder_sizes", decoder_sizes)
    inputs = keras.Input((embedding_dim,), name="quantized")
    x = _dense_stack(inputs, decoder_sizes, activation, prefix="decoder")
    outputs = keras.layers.Dense(size, name="decoder_output")(x)
    return keras.Model(inputs, outputs, name="decoder")


def build(
    input_size: int,
    embedding_dim: int = 64,
    num_embeddings: int = 512,
    encoder_sizes: Iterable[int] = (256, 128),
    decoder_sizes: Iterable[int] = (128, 256),
    activation: Activation = "relu",
) -> tuple[keras.Model, keras.Model]:
    """Builds the encoder and the decoder of a VQ-VAE over vectors.

    Args:
        input_size: Size of an input vector.
        embedding_dim: Size of a code. Defaults to `64`.
        num_embeddings: Number of codes. It is accepted for compatibility, and has no effect. Defaults to `512`.
        encoder_sizes: Sizes of the encoder's hidden layers. Defaults to `(256, 128)`.
        decoder_sizes: Sizes of the decoder's hidden layers. Defaults to `(128, 256)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.

    Returns:
        `(encoder, decoder)`, the functional models of `build_encoder` and `build_decoder`.

    Example:

    >>> encoder, decoder = build(input_size=784, embedding_dim=32)
    >>> decoder(encoder(keras.ops.zeros((5, 784)))).shape == (5, 784)
    True
    """
    validation.positive_int("num_embeddings", num_embeddings)
    return (
        build_encoder(input_size, embedding_dim, encoder_sizes, activation),
        build_decoder(input_size, None, embedding_dim, decoder_sizes, activation),
    )
