"""Does a prior give anomalies a low likelihood? Compares the scores of both priors with the reconstruction error.

KERAS_BACKEND=torch python -m benchmarks.anomalies --data-dir FOLDER_OF_IDX_FILES
python -m benchmarks.anomalies --short

A `VQVAE` and both priors are trained on Fashion-MNIST without one of its classes. Test images of the other classes are
normal. There are two kinds of anomalies: test images of the class left out, and scikit-learn's handwritten digits,
resized. The score is the negative log-likelihood of an image's codes, in nats, or its reconstruction error.

Each row is one score, with the area under the ROC curve for each kind of anomaly. This is the probability that an
anomaly scores higher than a normal image; 0.5 is chance.
"""

import argparse
import math

import keras
import numpy as np

import keras_vqvae
from benchmarks import timing
from examples import images

PRIORS = {"AutoregressivePrior": keras_vqvae.AutoregressivePrior, "MaskedPrior": keras_vqvae.MaskedPrior}


def area_under_curve(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """The fraction of pairs in which the anomaly scores higher; equal scores count half."""
    ranked = np.sort(normal)
    below = np.searchsorted(ranked, anomalous, "left") + np.searchsorted(ranked, anomalous, "right")
    return float(below.mean() / (2 * len(normal)))


def resized_digits(size: int) -> np.ndarray:
    digits = np.concatenate(images.load("digits"))
    return keras.ops.convert_to_numpy(keras.ops.image.resize(digits, (size, size)))


def optimizer(rate: float, epochs: int, samples: int, batch_size: int) -> keras.optimizers.Optimizer:
    steps = epochs * math.ceil(samples / batch_size)
    return keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(rate, steps))


def run(held_out: int, arguments: argparse.Namespace) -> list[dict]:
    keras.utils.set_random_seed(arguments.seed)
    train, test = images.load("fashion_mnist", arguments.data_dir)
    labels, test_labels = images.load_labels("fashion_mnist", arguments.data_dir)
    train = train[labels != held_out][: arguments.train]
    sets = {
        "normal": test[test_labels != held_out][: arguments.test],
        "class left out": test[test_labels == held_out][: arguments.test],
        "digits": resized_digits(train.shape[1])[: arguments.test],
    }
    encoder, decoder = images.build_autoencoder(train.shape[1], embedding_dim=32)
    quantizer = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=arguments.seed)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(optimizer(2e-3, arguments.epochs, len(train), 64))
    model.fit(train, batch_size=64, epochs=arguments.epochs, verbose=2)
    codes = model.encode(train, batch_size=500, verbose=0)
    coded = {name: model.encode(x, batch_size=500, verbose=0) for name, x in sets.items()}
    scores = {
        "reconstruction error": {
            name: np.square(model.decode(coded[name], batch_size=500, verbose=0) - x).mean((1, 2, 3))
            for name, x in sets.items()
        }
    }
    for kind, prior_class in PRIORS.items():
        prior = prior_class.from_model(
            model, num_layers=2, hidden_dim=arguments.width, dropout=0.0, seed=arguments.seed
        )
        prior.compile(optimizer(3e-3, arguments.prior_epochs, len(codes), 32))
        prior.fit(codes, batch_size=32, epochs=arguments.prior_epochs, verbose=2)
        ways = [{}] if kind == "AutoregressivePrior" else [{"num_steps": steps} for steps in (4, 12, 49)]
        for way in ways:
            name = kind + "".join(f", {steps} steps" for steps in way.values())
            scores[name] = {
                part: -prior.log_likelihood(x, batch_size=250, verbose=0, **way).sum((1, 2))
                for part, x in coded.items()
            }
    return [
        {
            "class left out": held_out,
            "score": score,
            "mean of normal images": float(of["normal"].mean()),
            **{f"area, {name}": area_under_curve(of["normal"], of[name]) for name in sets if name != "normal"},
        }
        for score, of in scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--held-out", type=int, nargs="+", default=[8], help="classes to leave out, one per run; 8 is bags"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codes", type=int, default=128)
    parser.add_argument("--train", type=int, default=12000, help="images to train on")
    parser.add_argument("--test", type=int, default=1000, help="images of each kind to score")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--prior-epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--short", action="store_true", help="500 images, 32 codes, one epoch")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.train, arguments.test, arguments.codes, arguments.epochs, arguments.prior_epochs = 500, 50, 32, 1, 1
    timing.report("anomalies", [row for held_out in arguments.held_out for row in run(held_out, arguments)])


if __name__ == "__main__":
    main()
