"""Trains a VQ-VAE on images and draws what it learned.

    python examples/digits.py
    KERAS_BACKEND=torch python examples/digits.py --dataset fashion_mnist --epochs 5

The digits come with scikit-learn; the other data sets are downloaded by Keras, or read from `--data-dir`.
"""

import argparse
import pathlib

import images
import keras
import numpy as np
from keras import layers

import keras_vqvae
from keras_vqvae import plotting


def build_autoencoder(image_size: int, embedding_dim: int) -> tuple[keras.Model, keras.Model]:
    """Convolutions that halve the size until a code stands for 2 x 2 or 4 x 4 pixels, and their mirror image."""
    filters = [32] if image_size < 16 else [32, 64]
    encoder = keras.Sequential([keras.Input((image_size, image_size, 1))], name="encoder")
    for size in filters:
        encoder.add(layers.Conv2D(size, 4, strides=2, padding="same", activation="relu"))
    encoder.add(layers.Conv2D(filters[-1], 3, padding="same", activation="relu"))
    encoder.add(layers.Conv2D(embedding_dim, 1))

    decoder = keras.Sequential([keras.Input(encoder.output_shape[1:])], name="decoder")
    decoder.add(layers.Conv2D(filters[-1], 3, padding="same", activation="relu"))
    for size in reversed(filters):
        decoder.add(layers.Conv2DTranspose(size, 4, strides=2, padding="same", activation="relu"))
    decoder.add(layers.Conv2D(1, 3, padding="same"))
    return encoder, decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=images.DATASETS)
    parser.add_argument("--data-dir", help="folder of IDX files to read instead of downloading")
    parser.add_argument("--num-embeddings", type=int, default=64)
    parser.add_argument("--embedding-dim", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo"), help="folder of the pictures")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(arguments.seed)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    encoder, decoder = build_autoencoder(train.shape[1], arguments.embedding_dim)
    quantizer = keras_vqvae.VectorQuantizer(arguments.num_embeddings, ema_decay=0.99, seed=arguments.seed)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    model.adapt(train, verbose=0)
    fitted = model.fit(train, batch_size=arguments.batch_size, epochs=arguments.epochs, validation_data=(test,))

    codes = model.encode(test)
    reconstructions = model.decode(codes)
    # Images that consist of one code throughout.
    every_code = np.arange(arguments.num_embeddings)[:, None, None]
    atlas = model.decode(np.broadcast_to(every_code, (arguments.num_embeddings, *codes.shape[1:])))
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, figure in {
        "reconstructions": plotting.plot_reconstructions(test, reconstructions),
        "code_use": plotting.plot_code_use(codes, arguments.num_embeddings),
        "code_atlas": plotting.plot_code_atlas(atlas, quantizer.code_counts),
        "training": plotting.plot_training(fitted.history),
        "code_maps": plotting.plot_code_maps(test, codes, arguments.num_embeddings),
    }.items():
        path = arguments.output / f"{name}.png"
        figure.savefig(path, dpi=150)
        print("wrote", path)
    model.save(arguments.output / "model.keras")
    print(f"{codes.shape[1]} x {codes.shape[2]} codes an image; model in {arguments.output / 'model.keras'}")


if __name__ == "__main__":
    main()
