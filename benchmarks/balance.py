"""Measures the variance that a `VQVAE` explains, for several scales of the data and both reconstruction losses.

Embeddings are unit vectors times the scale, like text embeddings. The means of their 200 clusters explain 0.64 of the
variance. Digits are scikit-learn's, with dense networks. Sounds are windows of WAV files, with convolutional networks.

KERAS_BACKEND=torch python -m benchmarks.balance --seeds 0 1 2
KERAS_BACKEND=torch python -m benchmarks.balance --scales 1e-3 1 1e3
KERAS_BACKEND=torch python -m benchmarks.balance --data digits sound --scales 1 30
"""

import argparse
import functools
import pathlib
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_vqvae
from benchmarks import timing

CODES = {"embeddings": (1024, 256), "digits": (64, 32), "sound": (1024, 256)}
"""Number of codes of a single codebook, and of each stage of a residual."""
VQ = keras_vqvae.VectorQuantizer
QUANTIZERS: dict[str, Callable[[int, int, int], keras_vqvae.Quantizer]] = {
    "VectorQuantizer": lambda codes, each, seed: VQ(codes, seed=seed),
    "residual of 3, EMA": lambda codes, each, seed: keras_vqvae.ResidualQuantizer(
        VQ(each, ema_decay=0.99, seed=seed), 3
    ),
    "residual of 3, optimizer": lambda codes, each, seed: keras_vqvae.ResidualQuantizer(VQ(each, seed=seed), 3),
    "projected residual FSQ": lambda codes, each, seed: keras_vqvae.ProjectedQuantizer(
        keras_vqvae.ResidualQuantizer(keras_vqvae.FiniteScalarQuantizer((8, 5, 5, 5)), 3), 4
    ),
}
NETWORKS = {
    "embeddings": lambda: keras_vqvae.build(768, embedding_dim=32),
    "digits": lambda: keras_vqvae.build(64, embedding_dim=8),
    "sound": lambda: tuple(
        build((2048, 1), embedding_dim=32, filters=(32, 32, 64, 64), num_residual_blocks=1)
        for build in (keras_vqvae.build_conv_encoder, keras_vqvae.build_conv_decoder)
    ),
}


def embeddings(rows: int = 8192, size: int = 768) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((200, size))
    x = centers[rng.integers(0, 200, rows)] + 0.7 * rng.standard_normal((rows, size))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")
    return x[:6144], x[6144:]


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x = np.random.default_rng(0).permutation(load_digits().data.astype("float32") / 16)
    return x[:1500], x[1500:]


def sounds(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(train, test)` windows of 2,048 samples. Every eighth window is for testing."""
    from scipy.io import wavfile

    found = []
    for path in sorted(folder.rglob("*.wav")):
        _, sound = wavfile.read(path)
        sound = (sound if sound.ndim == 1 else sound[:, 0]).astype("float32") / 32768
        found.append(sound[: len(sound) // 2048 * 2048].reshape(-1, 2048, 1))
    x = np.concatenate(found)
    tested = np.arange(len(x)) % 8 == 0
    return x[~tested], x[tested]


def explained(
    data: str, name: str, train: np.ndarray, test: np.ndarray, seed: int, loss: str, around: str | None, epochs: int
) -> float:
    """Returns the explained variance of the test data, 1 - error / variance."""
    keras.utils.set_random_seed(seed)
    encoder, decoder = NETWORKS[data]()
    if around == "identity":
        # `VQVAE` does not rescale its data if the encoder contains a scaling layer.
        encoder = keras.Sequential([keras.Input(train.shape[1:]), layers.Rescaling(1.0), encoder])
    elif around == "normalizations":
        scale = {"axis": None, "mean": float(train.mean()), "variance": float(train.var())}
        first, inverse = layers.Normalization(**scale), layers.Normalization(**scale, invert=True)
        inputs, latents = keras.Input(train.shape[1:]), keras.Input(encoder.output_shape[1:])
        encoder, decoder = keras.Model(inputs, encoder(first(inputs))), keras.Model(latents, inverse(decoder(latents)))
    model = keras_vqvae.VQVAE(encoder, QUANTIZERS[name](*CODES[data], seed), decoder)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(train, batch_size=256 if data == "embeddings" else 64, epochs=epochs, verbose=0)
    return 1 - np.square(model.predict(test, verbose=0) - test).mean() / test.var(0).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["embeddings"], choices=list(NETWORKS))
    parser.add_argument("--folder", type=pathlib.Path, default="/usr/share/sounds/alsa", help="folder of WAV files")
    parser.add_argument("--quantizers", nargs="+", default=list(QUANTIZERS), choices=list(QUANTIZERS))
    parser.add_argument("--scales", type=float, nargs="+", default=[0.03, 0.3, 1, 5, 30])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--losses", nargs="+", default=["normalized_mse", "mse"])
    around = parser.add_mutually_exclusive_group()
    constant = {"dest": "around", "action": "store_const"}
    around.add_argument("--normalizations", const="normalizations", help="add `Normalization` layers", **constant)
    around.add_argument("--as-they-are", const="identity", help="prevent the model from rescaling the data", **constant)
    arguments = parser.parse_args()
    sources = {"embeddings": embeddings, "digits": digits, "sound": functools.partial(sounds, arguments.folder)}
    rows = []
    for data in arguments.data:
        train, test = sources[data]()
        for name in arguments.quantizers:
            for loss in arguments.losses:
                row = {"data": data, "quantizer": name, "loss": loss}
                for scale in np.float32(arguments.scales):
                    found = [
                        explained(
                            *(data, name, scale * train, scale * test, seed),
                            *(loss, arguments.around, arguments.epochs),
                        )
                        for seed in arguments.seeds
                    ]
                    row[f"{scale:g}"] = " / ".join(f"{value:.3f}" for value in found)
                rows.append(row)
                print(row, flush=True)
    timing.report("balance", rows)


if __name__ == "__main__":
    main()
