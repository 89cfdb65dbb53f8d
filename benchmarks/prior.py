"""What do priors over the codes of images learn? Measures nats per code, and a classifier's accuracy on samples.

KERAS_BACKEND=torch python -m benchmarks.prior --data-dir FOLDER_OF_IDX_FILES --seeds 0 1 2
python -m benchmarks.prior --short

Each row is a prior with its sampling arguments. A small classifier, trained on real images, classifies test images,
their reconstructions, and samples of each class. For comparison, the first row has the nats of uniform codes and of the
frequencies of single codes. The models and a picture for each row are saved in the folder `--output`.
"""

import argparse
import math
import pathlib

import keras
import numpy as np
from keras import layers

import keras_vqvae
from benchmarks import timing
from examples import images
from keras_vqvae import plotting

GUIDANCES = (None, 2.0, 4.0)
BATCH_SIZE = 32
STEPS = (4, 8, 24)
"""Numbers of steps of the masked prior besides 12, sampled with the second guidance scale."""
PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}


def train_autoencoder(train: np.ndarray, quantizer: keras_vqvae.Quantizer, epochs: int) -> keras_vqvae.VQVAE:
    encoder, decoder = images.build_autoencoder(train.shape[1], embedding_dim=32)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(train, batch_size=64, epochs=epochs, verbose=2)
    return model


def train_classifier(train: np.ndarray, labels: np.ndarray, epochs: int) -> keras.Model:
    """Returns a small classifier. It is not the one of `image_quality`, so their accuracies cannot be compared."""
    classifier = keras.Sequential([keras.Input(train.shape[1:])])
    for filters in (16, 32):
        classifier.add(layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu"))
    classifier.add(layers.Flatten())
    classifier.add(layers.Dropout(0.3))
    classifier.add(layers.Dense(64, activation="relu"))
    classifier.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    classifier.fit(train, labels, batch_size=128, epochs=epochs, verbose=2)
    return classifier


def unigram_nats(train: np.ndarray, test: np.ndarray, num_embeddings: int) -> float:
    """Returns the nats per test code under the frequencies of the training codes, with 1 added to each count."""
    counts = np.bincount(train.ravel(), minlength=num_embeddings) + 1
    return float(-np.log(counts / counts.sum())[test.ravel()].mean())


def ways_to_draw(name: str) -> list[dict]:
    ways = [{"guidance_scale": guidance} for guidance in GUIDANCES]
    return ways if name == "autoregressive" else [{**ways[1], "num_steps": steps} for steps in STEPS] + ways


def save_pictures(path: pathlib.Path, pictures: np.ndarray) -> None:
    """Saves a figure with a row for each class. Picture `i` has class `i % 10`."""
    rows = {str(label): pictures[label::10][:12] for label in range(10)}
    plotting.plot_samples(rows).savefig(path, dpi=110)


def run(seed: int, arguments: argparse.Namespace) -> list[dict]:
    keras.utils.set_random_seed(seed)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    labels, test_labels = images.load_labels(arguments.dataset, arguments.data_dir)
    num_embeddings = arguments.codes
    classifier = train_classifier(train, labels, arguments.epochs)
    quantizer = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, seed=seed)
    model = train_autoencoder(train, quantizer, arguments.epochs)

    def accuracy(pictures: np.ndarray, classes: np.ndarray) -> float:
        return classifier.evaluate(np.clip(pictures, 0, 1), classes, batch_size=500, verbose=0, return_dict=True)[
            "accuracy"
        ]

    codes, test_codes = (model.encode(part, batch_size=500, verbose=0) for part in (train, test))
    reconstructions = model.decode(test_codes, batch_size=500, verbose=0)
    length = math.prod(codes.shape[1:])
    rows = [
        {
            "seed": seed,
            "prior": "none",
            "error": float(np.mean(np.square(reconstructions - test))),
            "uniform nats": math.log(num_embeddings),
            "unigram nats": unigram_nats(codes, test_codes, num_embeddings),
            "accuracy, test images": accuracy(test, test_labels),
            "accuracy, reconstructions": accuracy(reconstructions, test_labels),
        }
    ]
    print(rows[0], flush=True)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        model.save(arguments.output / f"autoencoder_{seed}.keras")
    classes = np.arange(arguments.samples) % 10
    for name, kind in PRIORS.items():
        sizes = {"num_layers": arguments.layers, "hidden_dim": arguments.width, "dropout": arguments.dropout}
        prior = kind.from_model(model, num_classes=10, seed=seed, **sizes)
        steps = arguments.prior_epochs * math.ceil(len(codes) / BATCH_SIZE)
        prior.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps)))
        prior.fit(codes, labels, batch_size=BATCH_SIZE, epochs=arguments.prior_epochs, verbose=2)
        if arguments.output:
            prior.save(arguments.output / f"{name}_{seed}.keras")
        nats = prior.evaluate(test_codes, test_labels, batch_size=500, verbose=0, return_dict=True)["loss"]
        for way in ways_to_draw(name):
            drawn = prior.generate(len(classes), classes, seed=seed, verbose=0, **way)
            pictures = model.decode(drawn, batch_size=500, verbose=0)
            if arguments.output:
                save_pictures(arguments.output / f"{name}_{seed}_{'_'.join(map(str, way.values()))}.png", pictures)
            rows.append(
                {
                    **{"seed": seed, "prior": name, **way},
                    "nats": nats,
                    "bits per image": nats * length / math.log(2),
                    "accuracy": accuracy(pictures, classes),
                    "different": len(np.unique(drawn.reshape(len(drawn), -1), axis=0)) / len(drawn),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the autoencoder and of the classifier")
    parser.add_argument("--prior-epochs", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout rate of the priors")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--output", type=pathlib.Path, help="folder for models and pictures")
    parser.add_argument("--short", action="store_true", help="the digits, one epoch, 64 codes")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.dataset, arguments.codes, arguments.seeds, arguments.samples = "digits", 64, [0], 100
        arguments.epochs = arguments.prior_epochs = 1
    timing.report("prior", [row for seed in arguments.seeds for row in run(seed, arguments)])


if __name__ == "__main__":
    main()
