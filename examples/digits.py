"""Trains a VQ-VAE on images and a prior over its codes, and draws new images class by class.

    python examples/digits.py
    KERAS_BACKEND=torch python examples/digits.py --dataset fashion_mnist --epochs 5 --prior-epochs 10

The digits come with scikit-learn; the other data sets are downloaded by Keras, or read from `--data-dir`. The
script writes the model, the prior and a page of figures, `index.html`, to the folder `--output`.
"""

import argparse
import math

import images
import keras
import numpy as np
import page

import keras_vqvae
from keras_vqvae import plotting

GUIDANCE = 2.0
"""A scale above 1 makes new images more typical of their class, but less varied."""
LOGS = ("codebook_usage", "explained_variance", "perplexity")


def train_prior(
    model: keras_vqvae.VQVAE, codes: np.ndarray, labels: np.ndarray, batch_size: int, epochs: int, seed: int
) -> keras_vqvae.Prior:
    """Returns a class-conditional prior over the codes, trained with a cosine decay of the learning rate to 0."""
    prior = keras_vqvae.AutoregressivePrior.from_model(
        model, num_classes=10, num_layers=2, hidden_dim=64, dropout=0.2, seed=seed
    )
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * math.ceil(len(codes) / batch_size))
    prior.compile(keras.optimizers.AdamW(rate))
    prior.fit(codes, labels, batch_size=batch_size, epochs=epochs, verbose=2)
    return prior


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="digits", choices=images.DATASETS)
    parser.add_argument("--data-dir", help="folder of IDX files to read instead of downloading")
    parser.add_argument("--num-embeddings", type=int, default=64)
    parser.add_argument("--embedding-dim", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--prior-epochs", type=int, default=15)
    parser.add_argument(
        "--batch-size", type=int, default=60, help="samples per step; the default divides the 1,500 training digits"
    )


def draw(arguments: argparse.Namespace) -> page.Sections:
    """Trains a model and a prior, saves both, and returns figures."""
    num_embeddings = arguments.num_embeddings
    train, test = images.load(arguments.dataset, arguments.data_dir)
    labels = images.load_labels(arguments.dataset, arguments.data_dir)
    encoder, decoder = images.build_autoencoder(train.shape[1], arguments.embedding_dim)
    quantizer = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, seed=arguments.seed)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    fitted = model.fit(
        train, batch_size=arguments.batch_size, epochs=arguments.epochs, validation_data=(test,), verbose=2
    )

    codes = model.encode(train, verbose=0), model.encode(test, verbose=0)
    reconstructions = model.decode(codes[1], verbose=0)
    # Codes of images in which all positions have the same code.
    every_code = np.broadcast_to(np.arange(num_embeddings)[:, None, None], (num_embeddings, *codes[0].shape[1:]))
    prior = train_prior(model, codes[0], labels[0], arguments.batch_size, arguments.prior_epochs, arguments.seed)
    classes = np.repeat(np.arange(10), 12)
    new = model.sample(prior, len(classes), classes, guidance_scale=GUIDANCE, seed=arguments.seed, verbose=0)
    new = new.reshape(10, 12, *train.shape[1:])

    rows, columns = codes[0].shape[1:]
    most_bits = rows * columns * math.log2(num_embeddings)
    error = np.mean(np.square(reconstructions - test))
    bits = prior.evaluate(codes[1], labels[1], verbose=0, return_dict=True)["loss"] * rows * columns / math.log(2)
    print(f"error {error:.4f}; {bits:.0f} bits per image with the prior, {most_bits:.0f} without it")
    model.save(arguments.output / "model.keras")
    prior.save(arguments.output / "prior.keras")
    history = {name: values for name, values in fitted.history.items() if name.removeprefix("val_") in LOGS}
    return {
        "New images": (
            plotting.plot_samples({str(name): pictures for name, pictures in enumerate(new)}),
            f"Drawn from the prior, class by class, with a guidance of {GUIDANCE:g}, and decoded.",
        ),
        "Reconstructions": (
            plotting.plot_reconstructions(test, reconstructions),
            f"Test images, decoded from {rows} x {columns} codes out of {num_embeddings}.",
        ),
        "Codes": (plotting.plot_code_maps(test, codes[1], num_embeddings), "The code of each position of each image."),
        "What each code is": (
            plotting.plot_code_atlas(model.decode(every_code, verbose=0), quantizer.code_counts),
            "Images decoded from a single code at all positions.",
        ),
        "Codebook usage": (plotting.plot_code_use(codes[1], num_embeddings), "Usage on the test images."),
        "Training": (plotting.plot_training(history), "Metrics of the autoencoder for each epoch."),
    }


if __name__ == "__main__":
    page.command(__doc__, "digits", (add_arguments, draw))
