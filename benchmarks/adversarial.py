"""Does a discriminator sharpen images? Compares squared error, `PerceptualLoss`, `VQGAN`, and both together.

The test images' reconstructions are compared by squared and absolute error, structural similarity (Wang et al., 2004),
the Frechet distance in the features of a classifier, that classifier's accuracy, and the fraction of codes used.
`PerceptualLoss` uses a second classifier, trained from another seed. With `--prior-epochs`, an `AutoregressivePrior`
is trained on the codes of each run, and its samples are compared, too. `--pictures` draws a row of images for each run.

KERAS_BACKEND=torch python -m benchmarks.adversarial --data-dir FOLDER_OF_IDX_FILES --seeds 0 1 2 --pictures
KERAS_BACKEND=torch python -m benchmarks.adversarial --data-dir FOLDER --weights 0 0.1 --perceptual 0.1 --prior-epochs 2
KERAS_BACKEND=torch python -m benchmarks.adversarial --data-dir FOLDER --no-spectral --rates 0.3 --starts 500
python -m benchmarks.adversarial --short

Each run gives one row, saved in `results/adversarial/` when the run ends. Runs with a saved row are skipped.
"""

import argparse
import itertools
import json
import pathlib

import keras
import numpy as np

import keras_vqvae
from benchmarks import timing
from benchmarks.image_quality import Judge, train_classifier
from examples import images
from keras_vqvae.models.reconstruction import WEIGHT

FOLDER = timing.RESULTS / "adversarial"
DIM = 32
LEARNING_RATE = 1e-3
LOGS = ("codebook_usage", "discriminator_loss", "real_accuracy", "fake_accuracy")
SHOWN = 12
"""Number of images in each row of a picture."""
SAMPLES = 2000
"""Number of images sampled from a prior, equally many of each class."""


def optimizer(rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Adam with a separate rate for the discriminator. The rates decay to 0, because training oscillates otherwise."""
    schedule = keras.optimizers.schedules.CosineDecay
    adam = keras.optimizers.Adam(schedule(LEARNING_RATE, steps))
    if rate == 1:
        return adam
    own = keras.optimizers.Adam(schedule(rate * LEARNING_RATE, steps))
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(adam, {".*discriminator.*": own}))


def perceptual_loss(features: keras.Model, weight: float, train: np.ndarray) -> tuple[keras.losses.Loss, float]:
    """Returns the loss `factor * (mse / variance + weight * perceptual)`, and `VQVAE`'s default `factor`."""
    positions = (train.shape[1] // 4) ** 2 if train.shape[1] >= 16 else (train.shape[1] // 2) ** 2
    factor = WEIGHT * np.prod(train.shape[1:]) / (positions * DIM)
    names = [layer.name for layer in features.layers if "conv" in layer.name]
    losses = [keras.losses.MeanSquaredError(), keras_vqvae.PerceptualLoss(features, names)]
    return keras_vqvae.LossSum(losses, [factor / train.var(axis=0).mean(), factor * weight]), factor


def train_model(train: np.ndarray, run: dict, steps: int, features: keras.Model | None) -> keras_vqvae.VQVAE:
    """Trains the model of one run."""
    seed = run["seed"]
    keras.utils.set_random_seed(seed)
    batches = train[np.random.default_rng(seed).integers(len(train), size=steps * 64)]
    encoder, decoder = images.build_autoencoder(train.shape[1], DIM)
    quantizer = keras_vqvae.VectorQuantizer(run["codes"], ema_decay=0.99, seed=seed)
    loss, factor = "normalized_mse", 1.0
    if run["perceptual"]:
        loss, factor = perceptual_loss(features, run["perceptual"], train)
    if run["weight"]:
        constraint = {} if run["spectral"] else {"kernel_constraint": None}
        discriminator = keras_vqvae.build_conv_discriminator(train.shape[1:], (32, 64), **constraint)
        if not run["features"]:
            discriminator = keras.Model(discriminator.input, discriminator.output["logits"], name="discriminator")
        weight = factor * run["weight"]
        model = keras_vqvae.VQGAN(encoder, quantizer, decoder, discriminator, weight, run["start"])
    else:
        model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(optimizer(run.get("rate", 1), steps), loss)
    model.fit(batches, batch_size=64, shuffle=False, verbose=0)
    return model


def sample(
    model: keras_vqvae.VQVAE, train: np.ndarray, labels: np.ndarray, seed: int, epochs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images sampled from a prior over the codes of `train`, and their classes."""
    codes = model.encode(train, batch_size=500, verbose=0)
    prior = keras_vqvae.AutoregressivePrior.from_model(
        model, num_classes=10, num_layers=3, hidden_dim=128, dropout=0.0, seed=seed
    )
    steps = epochs * -(-len(codes) // 64)
    prior.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps)))
    prior.fit(codes, labels, batch_size=64, epochs=epochs, verbose=0)
    classes = np.arange(SAMPLES) % 10
    return model.sample(prior, SAMPLES, classes, guidance_scale=2.0, seed=seed, verbose=0), classes


def picture(path: pathlib.Path, rows: dict[str, np.ndarray]) -> None:
    """Draws rows of images, one above the other."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 1, figsize=(SHOWN, 1.25 * len(rows)), layout="constrained")
    for (name, shown), axis in zip(rows.items(), axes, strict=True):
        axis.imshow(np.clip(np.concatenate(list(shown[..., 0]), 1), 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=110)


def title(run: dict) -> str:
    parts = ["squared error"]
    parts += [f"{name} {run[key]:g}" for key, name in (("perceptual", "perceptual"), ("weight", "VQGAN")) if run[key]]
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--codes", type=int, nargs="+", default=[32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.03, 0.1, 0.3], help="0: no discriminator")
    parser.add_argument("--perceptual", type=float, nargs="+", default=[0.0], help="weights of `PerceptualLoss`")
    parser.add_argument("--starts", type=int, nargs="+", default=[0], help="steps before adversarial training")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1], help="learning rates of the discriminator, relative to 1e-3"
    )
    parser.add_argument("--no-features", action="store_true", help="train without the feature matching loss")
    parser.add_argument("--no-spectral", action="store_true", help="train without spectral normalization")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--prior-epochs", type=int, default=0, help="epochs of a prior for each run; 0 trains none")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--short", action="store_true", help="30 steps on the digits")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.dataset, arguments.steps = "digits", 30
    FOLDER.mkdir(parents=True, exist_ok=True)
    dataset, data_dir, epochs = arguments.dataset, arguments.data_dir, arguments.prior_epochs
    train, test = images.load(dataset, data_dir)
    labels, test_labels = images.load_labels(dataset, data_dir)
    judge = Judge(train_classifier(FOLDER / f"classifier {dataset}.keras", dataset, data_dir), test, test_labels)
    print("accuracy on the test images:", judge.accuracy)
    features = train_classifier(FOLDER / f"features {dataset}.keras", dataset, data_dir, seed=1)
    found, shown = [], {"test images": test[:SHOWN]}
    runs = itertools.product(
        arguments.codes, arguments.seeds, arguments.perceptual, arguments.weights, arguments.starts, arguments.rates
    )
    for codes, seed, perceptual, weight, start, rate in runs:
        run = {"codes": codes, "seed": seed, "perceptual": perceptual, "weight": weight}
        if weight:
            run |= {"start": start, "rate": rate, "spectral": not arguments.no_spectral}
            run["features"] = not arguments.no_features
        run |= {"prior epochs": epochs} if epochs else {}
        name = " ".join([dataset, str(arguments.steps), *(f"{key}={value}" for key, value in run.items())])
        file = FOLDER / f"{name}.json"
        if not file.exists():
            model = train_model(train, run, arguments.steps, features)
            made = model.predict(test, batch_size=500, verbose=0)
            logs = model.evaluate(test, batch_size=500, verbose=0, return_dict=True)
            row = {**run, **judge.reconstructions(made), **{log: logs[log] for log in LOGS if log in logs}}
            if epochs:
                drawn, classes = sample(model, train, labels, seed, epochs)
                row |= {f"samples: {key}": value for key, value in judge.samples(drawn, classes).items()}
                np.save(FOLDER / f"{name} samples.npy", drawn[:SHOWN])
            np.save(FOLDER / f"{name}.npy", made[:SHOWN])
            file.write_text(json.dumps(row))
        found.append(json.loads(file.read_text()))
        shown[title(run)] = np.load(FOLDER / f"{name}.npy")
        if epochs:
            shown[f"samples, {title(run)}"] = np.load(FOLDER / f"{name} samples.npy")
        print(found[-1], flush=True)
    timing.report("adversarial", found)
    if arguments.pictures:
        picture(FOLDER / "pictures.png", shown)


if __name__ == "__main__":
    main()
