"""Gives items semantic IDs: the codes of their embeddings by residual k-means, and a digit that makes them unique.

    python examples/semantic_ids.py
    KERAS_BACKEND=torch python examples/semantic_ids.py --embeddings items.npy --labels categories.npy

Items whose IDs begin alike are alike. Without a file the items are the 1,797 images of digits that come with
scikit-learn.
"""

import argparse
import csv
import pathlib

import keras
import numpy as np

import keras_vqvae

ROWS = 1 << 14
"""Items that are read at a time: a file of any size is never whole in memory."""


def load(embeddings: str | None, labels: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings `[N, D]` and, where there are some, labels `[N]`."""
    if embeddings is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.data.astype("float32") / 16, digits.target
    items = np.load(embeddings, mmap_mode="r")
    if items.ndim != 2 or not np.issubdtype(items.dtype, np.floating):
        raise ValueError(
            f"`--embeddings` must be floats of shape [items, dim]. Received: shape {items.shape}, dtype {items.dtype}"
        )
    return items, None if labels is None else np.load(labels)


def encode(layer: keras_vqvae.Quantizer, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes of the finite items, `[n, Q]`, and their numbers, `[n]`."""
    codes, numbers = [], []
    for start in range(0, len(items), ROWS):
        part = np.asarray(items[start : start + ROWS], "float32")
        finite = np.flatnonzero(np.isfinite(part).all(axis=1))
        codes.append(keras.ops.convert_to_numpy(layer.encode(part))[finite])
        numbers.append(start + finite)
    return np.concatenate(codes), np.concatenate(numbers)


def purity(codes: np.ndarray, labels: np.ndarray) -> float:
    """The share of items that have the most frequent label of those with the same codes."""
    groups = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    names, labels = np.unique(labels, return_inverse=True)
    pairs, counts = np.unique(groups * len(names) + labels, return_counts=True)
    most = np.zeros(groups.max() + 1, int)
    np.maximum.at(most, pairs // len(names), counts)
    return most.sum() / len(labels)


def plot(found: dict[str, list[float]], path: pathlib.Path) -> None:
    """How pure the items under a shared prefix are, by its length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, shares in found.items():
        depths = range(1, len(shares) + 1)
        axes.plot(depths, shares, marker="o", label=name)
    axes.set(xlabel="codes that items share", ylabel="items of the most frequent label", ylim=(0, 1.05), xticks=depths)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", help="a .npy file, [items, dim]")
    parser.add_argument("--labels", help="a .npy file, [items]")
    parser.add_argument("--codes", type=int, help="a level; 256, or fewer for fewer than 65,536 items")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=pathlib.Path, default="semantic_ids")
    arguments = parser.parse_args()
    items, labels = load(arguments.embeddings, arguments.labels)
    # About as many codes as each of them has items, so that the first level alone tells no item.
    codes = arguments.codes or min(256, 1 << int(np.log2(len(items)) / 2))

    generator = np.random.default_rng(arguments.seed)
    sample = np.sort(generator.choice(len(items), min(len(items), 256 * codes), replace=False))
    inner = keras_vqvae.VectorQuantizer(codes, ema_decay=0.99, seed=arguments.seed)
    layer = keras_vqvae.ResidualQuantizer(inner, arguments.levels)
    layer.adapt(np.asarray(items[sample], "float32"))

    indices, numbers = encode(layer, items)
    ids = keras_vqvae.append_collision_index(indices)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with open(arguments.output_dir / "ids.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", *(f"code_{level}" for level in range(1, arguments.levels + 1)), "digit"])
        writer.writerows(np.column_stack([numbers, ids]).tolist())

    print(f"{len(ids)} items, {arguments.levels} x {codes} codes")
    if len(ids) < len(items):
        print(f"left out, because they are not finite: {len(items) - len(ids)}")
    shares = [keras_vqvae.unique_fraction(columns) for columns in (indices, ids)]
    print("unique without the digit: {:.1%}, with it: {:.1%}".format(*shares))
    print(f"largest digit: {ids[:, -1].max()}")
    for level, column in enumerate(indices.T, start=1):
        print(f"level {level}: {len(np.unique(column)) / codes:.1%} of the codes used")
    if labels is None:
        return
    found = {"semantic IDs": [], "the same labels at random": []}
    for name, by in zip(found, (labels[numbers], generator.permutation(labels[numbers])), strict=True):
        found[name] = [purity(indices[:, :depth], by) for depth in range(1, arguments.levels + 1)]
    for depth, (share, random) in enumerate(zip(*found.values(), strict=True), start=1):
        print(f"{depth} shared codes: {share:.1%} of the items have the most frequent label; by chance {random:.1%}")
    plot(found, arguments.output_dir / "purity.png")


if __name__ == "__main__":
    main()
