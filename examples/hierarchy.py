"""Trains a hierarchy of codes, as in VQ-VAE-2: few coarse codes per image, and more fine codes that depend on them.

    KERAS_BACKEND=torch python examples/hierarchy.py
    python examples/hierarchy.py --dataset digits --epochs 20 --prior-epochs 20

The functional model has two quantizers. One prior covers both grids of codes, coarse codes first. It draws new images,
and new fine codes for given coarse codes. Fashion-MNIST is downloaded by Keras, or read from `--data-dir`.
"""

import argparse
import math
import pathlib

import images
import keras
import numpy as np
import page
from keras import layers, ops

import keras_vqvae
from keras_vqvae import plotting

GUIDANCE = 2.0
# Weights of the losses of both outputs. With 0.1 for `coarse`, the coarse codes went out of use.
LOSS_WEIGHTS = {"both": 1.0, "coarse": 0.25}


def build(
    image_size: int, num_embeddings: int, embedding_dim: int, seed: int
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Returns three models that share layers: one to train, one from images to both grids of codes, and its inverse."""
    margin = -image_size % 8 // 2
    size = image_size + 2 * margin
    sizes = {"embedding_dim": embedding_dim, "num_residual_blocks": 1}
    fine_shape = (size // 4, size // 4, embedding_dim)
    fine_encoder = keras_vqvae.build_conv_encoder((size, size, 1), filters=(32, 64), **sizes, name="fine_encoder")
    coarse_encoder = keras_vqvae.build_conv_encoder(fine_shape, filters=(64,), **sizes, name="coarse_encoder")
    spread = keras_vqvae.build_conv_decoder(fine_shape, filters=(64,), **sizes, name="coarse_decoder")
    decoder = keras_vqvae.build_conv_decoder((size, size, 1), filters=(32, 64), **sizes, name="fine_decoder")
    coarse_quantizer, fine_quantizer = (
        keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, seed=seed + level, name=name)
        for level, name in enumerate(("coarse", "fine"))
    )
    join_features, join_codes = (layers.Conv2D(embedding_dim, 1, name=name) for name in ("features", "codes"))
    crop = layers.Cropping2D(margin)

    def decode(spread_codes, fine):
        return crop(decoder(join_codes(ops.concatenate([spread_codes, fine], axis=-1))))

    inputs = keras.Input((image_size, image_size, 1))
    # `[28, 28, 1]` -> `[8, 8, D]` -> `[4, 4, D]`
    features = fine_encoder(layers.ZeroPadding2D(margin)(inputs))
    coarse, coarse_codes = coarse_quantizer(coarse_encoder(features), return_indices=True)
    # `[4, 4, D]` -> `[8, 8, D]`. The fine codes depend on the coarse ones.
    coarse = spread(coarse)
    features = join_features(ops.concatenate([features, coarse], axis=-1))
    fine, fine_codes = fine_quantizer(features, return_indices=True)
    # The decoder is also trained without the fine codes, so that it can decode only the coarse ones.
    outputs = {"both": decode(coarse, fine), "coarse": decode(coarse, ops.zeros_like(fine))}

    codes = [keras.Input(part.shape[1:], dtype="int32") for part in (coarse_codes, fine_codes)]
    decoded = decode(spread(coarse_quantizer.decode(codes[0])), fine_quantizer.decode(codes[1]))
    return keras.Model(inputs, outputs), keras.Model(inputs, [coarse_codes, fine_codes]), keras.Model(codes, decoded)


class OneSequence:
    """Both grids of codes as one sequence, coarse codes first. Fine codes are numbered after the coarse ones."""

    def __init__(self, coarse_shape: tuple[int, ...], fine_shape: tuple[int, ...], num_embeddings: int):
        self.shapes, self.num_embeddings = (coarse_shape, fine_shape), num_embeddings
        self.num_coarse = math.prod(coarse_shape)

    def join(self, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        count = len(coarse)
        return np.concatenate([coarse.reshape(count, -1), fine.reshape(count, -1) + self.num_embeddings], axis=1)

    def split(self, sequences: np.ndarray) -> list[np.ndarray]:
        # Clip codes of the other grid, which a barely trained prior may draw.
        parts = sequences[:, : self.num_coarse], sequences[:, self.num_coarse :] - self.num_embeddings
        parts = [np.clip(part, 0, self.num_embeddings - 1) for part in parts]
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--data-dir", help="folder of IDX files to read instead of downloading")
    parser.add_argument("--codes", type=int, default=128, help="number of codes in each codebook")
    parser.add_argument("--embedding-dim", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--prior-epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("hierarchy"), help="folder of the page")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    labels, test_labels = images.load_labels(arguments.dataset, arguments.data_dir)

    model, encoder, decoder = build(train.shape[1], arguments.codes, arguments.embedding_dim, arguments.seed)
    names = "both", "coarse"
    rate = keras.optimizers.schedules.CosineDecay(1e-3, arguments.epochs * math.ceil(len(train) / 60))
    model.compile(keras.optimizers.Adam(rate), loss=dict.fromkeys(names, "mse"), loss_weights=LOSS_WEIGHTS)
    model.fit(train, dict.fromkeys(names, train), batch_size=60, epochs=arguments.epochs, verbose=2)

    codes, test_codes = (encoder.predict(part, batch_size=500, verbose=0) for part in (train, test))
    sequence = OneSequence(*(part.shape[1:] for part in codes), arguments.codes)
    sequences, test_sequences = sequence.join(*codes), sequence.join(*test_codes)
    prior = keras_vqvae.AutoregressivePrior(
        2 * arguments.codes, sequences.shape[1:], num_classes=10, num_layers=2, hidden_dim=64, seed=arguments.seed
    )
    rate = keras.optimizers.schedules.CosineDecay(3e-3, arguments.prior_epochs * math.ceil(len(sequences) / 60))
    prior.compile(keras.optimizers.AdamW(rate))
    prior.fit(sequences, labels, batch_size=60, epochs=arguments.prior_epochs, verbose=2)
    nats = prior.evaluate(test_sequences, test_labels, batch_size=500, verbose=0, return_dict=True)["loss"]
    print(f"{sequences.shape[1]} codes, {nats * sequences.shape[1] / math.log(2):.0f} bits per image with the prior")

    def draw(classes: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        drawn = prior.generate(
            len(classes), classes, guidance_scale=GUIDANCE, known=known, seed=arguments.seed, verbose=0
        )
        return decoder.predict(sequence.split(drawn), verbose=0)

    classes, redrawn = np.repeat(np.arange(10), 12), np.repeat(np.arange(6), 12)
    new = draw(classes).reshape(10, 12, *train.shape[1:])
    known = test_sequences[redrawn]
    known[:, sequence.num_coarse :] = -1
    details = draw(test_labels[redrawn], known).reshape(6, 12, *train.shape[1:])
    details[:, 0] = test[:6]
    decoded = model.predict(test, batch_size=500, verbose=0)
    sections = {
        "New images": (
            plotting.plot_samples({str(name): pictures for name, pictures in enumerate(new)}),
            f"Drawn from the prior, class by class, with a guidance of {GUIDANCE:g}.",
        ),
        "Levels": (
            plotting.plot_reconstructions(test, {name: decoded[name] for name in reversed(names)}),
            f"Test images, decoded from {sequence.num_coarse} coarse codes, and from all {sequences.shape[1]} codes.",
        ),
        "Details": (
            plotting.plot_samples({f"image {name}": pictures for name, pictures in enumerate(details)}),
            "Each row shows a test image, then its coarse codes decoded with newly drawn fine codes.",
        ),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    page.write(arguments.output / "index.html", f"{arguments.dataset}: a hierarchy of codes", sections)
    print("open", arguments.output / "index.html")


if __name__ == "__main__":
    main()
