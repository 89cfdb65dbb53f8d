"""Networks for the studies."""

import keras
from keras import layers


def small_autoencoder(image_size: int = 28, embedding_dim: int = 32) -> tuple[keras.Model, keras.Model]:
    """Returns an encoder to a quarter of the image size and its decoder, as in vector-quantize-pytorch's examples."""
    encoder = keras.Sequential(
        [
            keras.Input((image_size, image_size, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.MaxPooling2D(),
            layers.Activation("gelu"),
            layers.Conv2D(embedding_dim, 3, padding="same"),
            layers.MaxPooling2D(),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input((image_size // 4, image_size // 4, embedding_dim)),
            layers.UpSampling2D(),
            layers.Conv2D(16, 3, padding="same", activation="gelu"),
            layers.UpSampling2D(),
            layers.Conv2D(1, 3, padding="same"),
        ]
    )
    return encoder, decoder
