"""Forecasts a series: an autoencoder encodes each second of it, and a prior over the codes draws the next ones.

    python examples/forecast.py
    KERAS_BACKEND=torch python examples/forecast.py --file series.txt --decimate 1 --block 64

The default series is SciPy's electrocardiogram, five minutes with 360 samples per second, which the package `pooch`
downloads. `--file` is a text file of numbers. The last fifth is used for testing, and the rest for training.
"""

import argparse
import math
import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure
from scipy import signal

import keras_vqvae

BLOCKS = 4
"""Number of blocks per window. Each is encoded separately, so no code depends on later blocks. The last is forecast."""
FILTERS = (32, 32, 64)
"""Filters of the encoder's stages. Each stage halves the length, so a code stands for 8 samples."""


def load(file: pathlib.Path | None, decimate: int) -> np.ndarray:
    if file is None:
        from scipy.datasets import electrocardiogram

        series = electrocardiogram()
    else:
        series = np.loadtxt(file)
    return signal.resample_poly(series, 1, decimate).astype("float32")


def windows(series: np.ndarray, block: int, hop: int) -> np.ndarray:
    """Returns overlapping windows, `[windows, BLOCKS, block]`, minus their mean over all blocks except the last."""
    parts = np.lib.stride_tricks.sliding_window_view(series, BLOCKS * block)[::hop].reshape(-1, BLOCKS, block)
    return parts - parts[:, :-1].mean(axis=(1, 2), keepdims=True)


def ranked_probability_score(draws: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean absolute error of `draws` minus half of their mean absolute difference from each other."""
    count = len(draws)
    # Sum |a - b| over pairs by ranks: each value is the larger one of `rank` pairs, and the smaller one of the others.
    ranks = np.arange(count).reshape(-1, *(1,) * truth.ndim)
    spread = np.sum((2 * ranks - count + 1) * np.sort(draws, axis=0), axis=0) / count**2
    return float(np.mean(np.abs(draws - truth).mean(axis=0) - spread))


def nearest_continuation(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns, for each window, the last block of the training window whose other blocks are nearest."""
    known, asked = (parts[:, :-1].reshape(len(parts), -1) for parts in (train, test))
    distances = np.sum(known**2, axis=1) - 2 * asked @ known.T
    return train[distances.argmin(axis=1), -1]


def plot(test: np.ndarray, draws: np.ndarray) -> Figure:
    """Draws the series in black, and forecasts `[draws, windows, block]` in color."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    block = test.shape[2]
    future = np.arange((BLOCKS - 1) * block, BLOCKS * block)
    chosen = np.linspace(0, len(test) - 1, 8).astype(int)
    for axis, window in zip(figure.subplots(4, 2, sharex=True).flat, chosen, strict=True):
        axis.plot(future, draws[:, window].T, color="tab:orange", linewidth=0.5, alpha=0.5)
        axis.plot(future, np.median(draws[:, window], axis=0), color="tab:red", linewidth=1)
        axis.plot(test[window].ravel(), color="black", linewidth=0.8)
    figure.suptitle(f"Black: the series. Orange: {len(draws)} forecasts of its last block; red: their median")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=pathlib.Path, help="text file of numbers")
    parser.add_argument("--decimate", type=int, default=3, help="keep every n-th sample")
    parser.add_argument("--block", type=int, default=120, help="samples per block; a code stands for 8")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--prior-epochs", type=int, default=10)
    parser.add_argument("--draws", type=int, default=20, help="forecasts per window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="forecast.png", help="file of the figure")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    series, block, count = load(arguments.file, arguments.decimate), arguments.block, arguments.draws
    end = len(series) * 4 // 5
    series /= series[:end].std()
    train, test = windows(series[:end], block, hop=5), windows(series[end:], block, hop=block // 2)

    sizes = {"embedding_dim": 32, "filters": FILTERS, "num_residual_blocks": 1}
    model = keras_vqvae.VQVAE(
        keras_vqvae.build_conv_encoder((block, 1), **sizes),
        keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=arguments.seed),
        keras_vqvae.build_conv_decoder((block, 1), **sizes),
    )

    def encode(parts: np.ndarray) -> np.ndarray:
        # `[windows, blocks, block]` -> `[windows, blocks, block / 8]`
        codes = model.encode(parts.reshape(-1, block, 1), batch_size=500, verbose=0)
        return codes.reshape(*parts.shape[:2], -1)

    def compile_for(trained: keras.Model, samples: int, epochs: int) -> None:
        rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * math.ceil(samples / 64))
        trained.compile(keras.optimizers.AdamW(rate))

    blocks = train.reshape(-1, block, 1)
    compile_for(model, len(blocks), arguments.epochs)
    model.fit(blocks, batch_size=64, epochs=arguments.epochs, verbose=2)

    codes, test_codes = encode(train), encode(test)
    # Do not use `from_model`: a sample of this prior has several blocks, and a sample of the model has only one.
    prior = keras_vqvae.AutoregressivePrior(
        arguments.codes, codes.shape[1:], num_layers=2, hidden_dim=64, dropout=0.2, seed=arguments.seed
    )
    compile_for(prior, len(codes), arguments.prior_epochs)
    prior.fit(codes, batch_size=64, epochs=arguments.prior_epochs, validation_data=(test_codes,), verbose=2)

    known = np.repeat(test_codes, count, axis=0)
    known[:, -1] = -1
    drawn = prior.generate(len(known), known=known, seed=arguments.seed, verbose=0)[:, -1]
    draws = model.decode(drawn, batch_size=500, verbose=0).reshape(len(test), count, block).swapaxes(0, 1)
    truth = test[:, -1]
    some = np.random.default_rng(arguments.seed).choice(len(train), count, replace=False)
    forecasts = {
        "the prior": draws,
        "random last blocks of the training data": np.broadcast_to(train[some, None, -1], draws.shape),
        "the last value, repeated": np.broadcast_to(test[None, :, -2, -1:], (1, *truth.shape)),
        "what followed the most similar training window": nearest_continuation(train, test)[None],
        "the true blocks, reconstructed": model.decode(test_codes[:, -1], batch_size=500, verbose=0)[None, ..., 0],
    }
    for name, forecast in forecasts.items():
        print(f"{name}: score {ranked_probability_score(forecast, truth):.3f}")
    low, high = np.quantile(draws, [0.1, 0.9], axis=0)
    print(f"true values between the draws' 10th and 90th percentile: {np.mean((low <= truth) & (truth <= high)):.0%}")
    plot(test, draws).savefig(arguments.output, dpi=110)
    print("open", arguments.output)


if __name__ == "__main__":
    main()
