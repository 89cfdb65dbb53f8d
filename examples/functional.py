"""Trains a functional model with a `VectorQuantizer`, and makes a tokenizer from its layers.

    python examples/functional.py
    KERAS_BACKEND=tensorflow python examples/functional.py

Fashion-MNIST is downloaded by Keras, or read from `--data-dir`.
"""

import argparse

import images
import keras
import numpy as np
from keras import layers, ops

import keras_vqvae

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-dir", help="folder of IDX files to read instead of downloading")
parser.add_argument("--num-embeddings", type=int, default=256)
parser.add_argument("--epochs", type=int, default=2)
arguments = parser.parse_args()

keras.utils.set_random_seed(0)
train, test = images.load("fashion_mnist", arguments.data_dir)

# `[28, 28, 1]` -> `[7, 7, 32]`
inputs = keras.Input((28, 28, 1))
x = layers.Conv2D(32, 4, strides=2, padding="same", activation="relu")(inputs)
x = layers.Conv2D(64, 4, strides=2, padding="same", activation="relu")(x)
x = layers.Conv2D(32, 1)(x)

# The layer adds its own losses in training. Its indices are a second output.
quantizer = keras_vqvae.VectorQuantizer(arguments.num_embeddings, ema_decay=0.99, seed=0)
quantized, codes = quantizer(x, return_indices=True)

# `[7, 7, 32]` -> `[28, 28, 1]`
x = layers.Conv2DTranspose(64, 4, strides=2, padding="same", activation="relu")(quantized)
x = layers.Conv2DTranspose(32, 4, strides=2, padding="same", activation="relu")(x)
outputs = layers.Conv2D(1, 3, padding="same")(x)

model = keras.Model(inputs, outputs)
tokenizer = keras.Model(inputs, codes)
model.compile(optimizer="adam", loss="mse")
model.fit(train, train, batch_size=128, epochs=arguments.epochs, validation_data=(test, test))

tokens = tokenizer.predict(test)
print(f"{tokens.shape[1]} x {tokens.shape[2]} codes per image, {len(np.unique(tokens))} codes used on the test images")
print(f"most frequent code in training: {int(ops.argmax(quantizer.code_counts))}")
