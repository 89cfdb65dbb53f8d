"""How much does each stage of a residual add? Measures the error at each depth, on 4 x 4 patches of Fashion-MNIST.

The baseline is greedy k-means, stage by stage, with scikit-learn and with `adapt`.

    KERAS_BACKEND=torch python -m benchmarks.residuals --data-dir FOLDER_OF_IDX_FILES
"""

import argparse

import keras
import numpy as np
from sklearn.cluster import KMeans

import keras_vqvae
from benchmarks import timing
from benchmarks.patches import patches
from examples import images


def errors(layer: keras_vqvae.ResidualQuantizer, x: np.ndarray) -> dict[str, float]:
    """Returns the mean squared errors of `x` decoded from its first 1, 2, ... codes."""
    indices = keras.ops.convert_to_numpy(layer.encode(x))
    found = {}
    for depth in range(1, layer.num_quantizers + 1):
        cut = np.where(np.arange(layer.num_quantizers) < depth, indices, -1)
        decoded = keras.ops.convert_to_numpy(layer.decode(cut))
        found[f"depth {depth}"] = f"{np.mean(np.square(decoded - x)):.5f}"
    return found


def greedy(train: np.ndarray, test: np.ndarray, codes: int, depth: int, seed: int) -> dict[str, float]:
    """Returns the mean squared errors of `test` after 1, 2, ... stages of scikit-learn's k-means."""
    found = {}
    for stage in range(1, depth + 1):
        model = KMeans(codes, n_init=1, random_state=seed).fit(train)
        train = train - model.cluster_centers_[model.labels_]
        test = test - model.cluster_centers_[model.predict(test)]
        found[f"depth {stage}"] = f"{np.mean(np.square(test)):.5f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, test = images.load("fashion_mnist", arguments.data_dir)
    train, test = patches(train, 40_000, arguments.seed), patches(test, 50_000, arguments.seed + 1)
    rows = [{"method": "scikit-learn", **greedy(train, test, arguments.codes, arguments.depth, arguments.seed)}]
    for name, dropout, adapt in (
        ("adapt", False, True),
        ("trained", False, False),
        ("adapt, trained", False, True),
        ("adapt, trained with dropout", True, True),
    ):
        keras.utils.set_random_seed(arguments.seed)
        inner = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=arguments.seed)
        layer = keras_vqvae.ResidualQuantizer(
            inner, arguments.depth, quantizer_dropout=float(dropout), seed=arguments.seed
        )
        model = keras.Sequential([keras.Input((16,)), layer])
        model.compile("sgd", "mse")
        if adapt:
            layer.adapt(train, verbose=0)
        if "trained" in name:
            rng = np.random.default_rng(arguments.seed)
            x = train[rng.integers(len(train), size=4096 * arguments.steps)]
            model.fit(x, x, batch_size=4096, shuffle=False, verbose=0)
        rows.append({"method": name, **errors(layer, test)})
    timing.report("residuals", rows)


if __name__ == "__main__":
    main()
