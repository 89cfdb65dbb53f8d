"""Does a discriminator sharpen images? Squared error alone beside `VQGAN` over a decade of weights.

Of the test images: squared and absolute error, structural similarity (Wang et al., 2004), the Frechet distance to their
reconstructions in the features of a classifier, that classifier's accuracy on the reconstructions, and the fraction of
codes used. The classifier is trained once. `--pictures` draws originals and reconstructions, a row for each run.

KERAS_BACKEND=torch python -m benchmarks.adversarial --data-dir FOLDER_OF_IDX_FILES --seeds 0 1 2 --pictures
KERAS_BACKEND=torch python -m benchmarks.adversarial --data-dir FOLDER --no-spectral --rates 0.3 --starts 500
python -m benchmarks.adversarial --short

A row a run, each kept in `results/adversarial/` as soon as it is there; rows that are there are not run again.
"""

import argparse
import itertools
import json
import pathlib

import keras
import numpy as np
from keras import layers

import keras_vqvae
from benchmarks import networks, timing
from examples import images

FOLDER = timing.RESULTS / "adversarial"
DIM = 32
LEARNING_RATE = 1e-3
LOGS = ("codebook_usage", "discriminator_loss", "real_accuracy", "fake_accuracy")
SHOWN = 12
"""Images in a row of a picture."""


def classifier(dataset: str, data_dir: str | None) -> tuple[keras.Model, keras.Model]:
    """A classifier of the images, and the model of its features."""
    train, _ = images.load(dataset, data_dir)
    labels, _ = images.load_labels(dataset, data_dir)
    path = FOLDER / f"classifier {dataset}.keras"
    if not path.exists():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input(train.shape[1:]),
                layers.Conv2D(16, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        model.fit(train, labels, batch_size=128, epochs=60 if dataset == "digits" else 4, verbose=0)
        model.save(path)
    model = keras.models.load_model(path)
    return model, keras.Model(model.inputs, model.layers[-2].output)


def optimizer(rate: float) -> keras.optimizers.Optimizer:
    """Adam, at a fraction of its rate for the discriminator."""
    adam = keras.optimizers.Adam(LEARNING_RATE)
    if rate == 1:
        return adam
    own = keras.optimizers.Adam(rate * LEARNING_RATE)
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(adam, {".*discriminator.*": own}))


def reconstructions(
    train: np.ndarray,
    test: np.ndarray,
    codes: int,
    seed: int,
    steps: int,
    weight: float,
    start: int,
    rate: float,
    spectral: bool,
) -> tuple[np.ndarray, dict[str, float]]:
    """Trains once. Returns the reconstructions of the test images, and their logs."""
    keras.utils.set_random_seed(seed)
    batches = train[np.random.default_rng(seed).integers(len(train), size=steps * 64)]
    encoder, decoder = networks.small_autoencoder(train.shape[1], embedding_dim=DIM)
    quantizer = keras_vqvae.VectorQuantizer(codes, seed=seed)
    if weight:
        constraint = {} if spectral else {"kernel_constraint": None}
        discriminator = keras_vqvae.build_conv_discriminator(train.shape[1:], (32, 64), **constraint)
        model = keras_vqvae.VQGAN(encoder, quantizer, decoder, discriminator, weight, start)
    else:
        model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(optimizer(rate) if weight else optimizer(1))
    model.fit(batches, batch_size=64, shuffle=False, verbose=0)
    logs = model.evaluate(test, batch_size=500, verbose=0, return_dict=True)
    return model.predict(test, batch_size=500, verbose=0), {name: logs[name] for name in LOGS if name in logs}


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Mean structural similarity of images in 0..1, in Gaussian windows of 1.5 pixels."""
    from scipy import ndimage

    def blurred(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5)

    one, other = one.astype("float64"), other.astype("float64")
    means = blurred(one), blurred(other)
    variances = [blurred(x * x) - mean**2 for x, mean in zip((one, other), means, strict=True)]
    covariance = blurred(one * other) - means[0] * means[1]
    luminance = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
    return float(np.mean(luminance * (2 * covariance + 0.03**2) / (sum(variances) + 0.03**2)))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Of the normal distributions with the moments of two sets of vectors `[N, D]` (Heusel et al., 2017)."""
    one, other = one.astype("float64"), other.astype("float64")
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # The trace of the root of a product of two positive semidefinite matrices.
    root = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    return float(np.square(one.mean(0) - other.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root)


def picture(path: pathlib.Path, rows: dict[str, np.ndarray]) -> None:
    """Draws rows of images, one above the other."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 1, figsize=(SHOWN, 1.25 * len(rows)), layout="constrained")
    for (name, shown), axis in zip(rows.items(), axes, strict=True):
        axis.imshow(np.clip(np.concatenate(list(shown[..., 0]), 1), 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--codes", type=int, nargs="+", default=[32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[0.0, 0.03, 0.1, 0.3], help="0 is squared error alone"
    )
    parser.add_argument("--starts", type=int, nargs="+", default=[0], help="steps before the game")
    parser.add_argument("--rates", type=float, nargs="+", default=[1], help="the discriminator's, relative to 1e-3")
    parser.add_argument("--no-spectral", action="store_true", help="no spectral normalization")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--short", action="store_true", help="30 steps on the digits")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.dataset, arguments.steps = "digits", 30
    FOLDER.mkdir(parents=True, exist_ok=True)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    _, labels = images.load_labels(arguments.dataset, arguments.data_dir)
    classify, features = classifier(arguments.dataset, arguments.data_dir)
    seen = features.predict(test, batch_size=500, verbose=0)
    print("accuracy on the test images:", np.mean(classify.predict(test, verbose=0).argmax(-1) == labels))
    found, shown = [], {"test images": test[:SHOWN]}
    games = itertools.product(arguments.codes, arguments.seeds, arguments.weights, arguments.starts, arguments.rates)
    for codes, seed, weight, start, rate in games:
        game = {"start": start, "rate": rate, "spectral": not arguments.no_spectral} if weight else {}
        row = {"codes": codes, "seed": seed, "weight": weight, **game}
        name = " ".join([arguments.dataset, str(arguments.steps), *(f"{key}={value}" for key, value in row.items())])
        file = FOLDER / f"{name}.json"
        if not file.exists():
            made, logs = reconstructions(
                train, test, codes, seed, arguments.steps, weight, start, rate, not arguments.no_spectral
            )
            np.save(FOLDER / f"{name}.npy", made[:SHOWN])
            row |= {
                "squared error": float(np.mean(np.square(made - test))),
                "L1": float(np.mean(np.abs(made - test))),
                "SSIM": similarity(made, test),
                "Frechet": frechet_distance(features.predict(made, batch_size=500, verbose=0), seen),
                "accuracy": float(np.mean(classify.predict(made, batch_size=500, verbose=0).argmax(-1) == labels)),
                **logs,
            }
            file.write_text(json.dumps(row))
        found.append(json.loads(file.read_text()))
        shown[f"weight {weight:g}" if weight else "squared error"] = np.load(FOLDER / f"{name}.npy")
        print(found[-1], flush=True)
    timing.report("adversarial", found)
    if arguments.pictures:
        picture(FOLDER / "pictures.png", shown)


if __name__ == "__main__":
    main()
