"""Measures what a beam search in `adapt` gains for a residual quantizer, on several data sets.

Errors are measured on held-out vectors and divided by their variance. The columns are

- `no beam`: neither `adapt` nor the encoding of the held-out vectors uses a beam.
- `in encoding`: the same codebooks, but the encoding uses a beam.
- `in both`: `adapt` and the encoding use a beam.

    KERAS_BACKEND=torch python -m benchmarks.adapting
"""

import argparse
from collections.abc import Callable

import keras
import numpy as np

import keras_vqvae
from benchmarks import timing


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clusters(rng: np.random.Generator, n: int, dim: int, number: int, noise: float) -> np.ndarray:
    centers = rng.standard_normal((number, dim))
    return centers[rng.integers(0, number, n)] + noise * rng.standard_normal((n, dim))


def tree(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """300 clusters, whose centers form 32 larger clusters."""
    centers = clusters(rng, 300, dim, 32, 0.5)
    return centers[rng.integers(0, 300, n)] + 0.25 * rng.standard_normal((n, dim))


def smooth(rng: np.random.Generator, n: int) -> np.ndarray:
    """4 x 4 patches of blurred noise."""
    blur = np.exp(-np.square(np.subtract.outer(np.arange(12), np.arange(12))) / 8)
    return (blur @ rng.standard_normal((n, 12, 12)) @ blur)[:, 4:8, 4:8].reshape(n, 16)


def digits(rng: np.random.Generator, n: int) -> np.ndarray:
    """4 x 4 patches of scikit-learn's digits. There are 44,925 patches in total."""
    from sklearn.datasets import load_digits

    windows = np.lib.stride_tricks.sliding_window_view(load_digits().images / 16, (4, 4), axis=(1, 2)).reshape(-1, 16)
    return windows[rng.permutation(len(windows))[:n]]


SETS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "tree of clusters, length 1, 128 dimensions": lambda rng, n: unit(tree(rng, n, 128)),
    "tree of clusters, 64": lambda rng, n: tree(rng, n, 64),
    "tight clusters, 32": lambda rng, n: clusters(rng, n, 32, 400, 0.1),
    "wide clusters, 32": lambda rng, n: clusters(rng, n, 32, 400, 0.5),
    "few clusters, 8": lambda rng, n: clusters(rng, n, 8, 40, 0.3),
    "Gaussian, 4": lambda rng, n: rng.standard_normal((n, 4)),
    "Gaussian, 16": lambda rng, n: rng.standard_normal((n, 16)),
    "correlated Gaussian, 32": lambda rng, n: rng.standard_normal((n, 32)) * 0.8 ** np.arange(32),
    "Laplace, 16": lambda rng, n: rng.laplace(size=(n, 16)),
    "directions, 16": lambda rng, n: unit(rng.standard_normal((n, 16))),
    "smooth patches, 4 x 4": smooth,
    "patches of digits, 4 x 4": digits,
}


def residual(arguments: argparse.Namespace, width: int) -> keras_vqvae.ResidualQuantizer:
    inner = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=0)
    return keras_vqvae.ResidualQuantizer(inner, arguments.depth, beam_width=width)


def errors(arguments: argparse.Namespace, train: np.ndarray, test: np.ndarray) -> list[float]:
    """Returns the errors without a beam, with a beam in encoding only, and with one in `adapt` and encoding."""
    greedy, mixed, both = (residual(arguments, width) for width in (1, arguments.width, arguments.width))
    greedy.adapt(train, verbose=0)
    mixed.build(test.shape)
    mixed.set_weights(greedy.get_weights())
    both.adapt(train, verbose=0)
    found = [keras.ops.convert_to_numpy(layer(test)) for layer in (greedy, mixed, both)]
    return [float(np.square(quantized - test).mean() / test.var()) for quantized in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vectors", type=int, default=5000)
    arguments = parser.parse_args()
    rows = []
    for name, make in SETS.items():
        found = []
        for seed in range(arguments.seeds):
            x = make(np.random.default_rng(seed), arguments.vectors + 5000).astype("float32")
            found.append(errors(arguments, x[: arguments.vectors], x[arguments.vectors :]))
        means, ratios = np.mean(found, axis=0), [both / mixed for _, mixed, both in found]
        rows.append(
            {
                "set": name,
                "no beam": f"{means[0]:.5f}",
                "in encoding": f"{means[1]:.5f}",
                "in both": f"{means[2]:.5f}",
                "in both / in encoding": f"{min(ratios):.2f} to {max(ratios):.2f}",
            }
        )
        print(rows[-1], flush=True)
    timing.report("adapting", rows)


if __name__ == "__main__":
    main()
