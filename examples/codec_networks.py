"""Networks of an audio codec: one strided convolution from samples to vectors, and residual blocks over the vectors."""

import keras
from keras import layers


def padded(x: keras.KerasTensor, size: int, causal: bool) -> keras.KerasTensor:
    """Pads with `size` zeros: all at the start if `causal`, else half at each end."""
    return layers.ZeroPadding1D((size, 0) if causal else (size // 2, size // 2))(x)


def residual_blocks(x: keras.KerasTensor, width: int, count: int, causal: bool) -> keras.KerasTensor:
    for _ in range(count):
        change = padded(layers.Activation("relu")(x), 2, causal)
        change = layers.Activation("relu")(layers.Conv1D(width, 3)(change))
        x = layers.Add()([x, layers.Conv1D(width, 1)(change)])
    return x


def build_encoder(stride: int, width: int, embedding_dim: int, num_blocks: int, causal: bool) -> keras.Model:
    """Maps sounds `[batch, steps, 1]` to a vector per `stride` samples. The first convolution spans `2 * stride`."""
    inputs = keras.Input((None, 1))
    # The zeros at the end complete the last vector.
    x = layers.ZeroPadding1D((stride, stride - 1) if causal else (stride // 2, stride // 2 + stride - 1))(inputs)
    x = layers.Conv1D(width, 2 * stride, strides=stride)(x)
    x = residual_blocks(x, width, num_blocks, causal)
    return keras.Model(inputs, layers.Conv1D(embedding_dim, 1)(x), name="encoder")


def build_decoder(stride: int, width: int, embedding_dim: int, num_blocks: int, causal: bool) -> keras.Model:
    """Mirrors `build_encoder`. The outputs of neighboring vectors overlap and are added."""
    inputs = keras.Input((None, embedding_dim))
    x = layers.Conv1D(width, 3)(padded(inputs, 2, causal))
    x = residual_blocks(x, width, num_blocks, causal)
    if causal:
        x = layers.ZeroPadding1D((1, 0))(x)
    x = layers.Conv1DTranspose(1, 2 * stride, strides=stride)(x)
    cropping = (stride, stride) if causal else (stride // 2, stride // 2)
    return keras.Model(inputs, layers.Cropping1D(cropping)(x), name="decoder")
