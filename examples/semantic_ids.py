"""Gives items semantic IDs: the residual codes of their embeddings, and a collision index that makes them unique.

    python examples/semantic_ids.py
    KERAS_BACKEND=torch python examples/semantic_ids.py --embeddings items.npy --labels categories.npy --reassign

Items whose IDs share a prefix are similar. The codes come from residual k-means or, with `--epochs`, from a trained
`VQVAE`. With `--reassign`, colliding items get other last codes, with the least increase of the error. The default
items are the 1,797 images of digits that come with scikit-learn.
"""

import argparse
import csv
import pathlib
from collections.abc import Iterator

import keras
import numpy as np

import keras_vqvae

ROWS = 1 << 14
"""Number of items read at a time. A file is never loaded as a whole, so it can have any size."""


def load(embeddings: str | None, labels: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns embeddings `[N, D]` and labels `[N]` or `None`."""
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


def chunks(items: np.ndarray, row_indices: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Reads the items in increasing `row_indices`, part by part. Yields the slice of `row_indices` and its items."""
    for start in range(0, len(row_indices), ROWS):
        part = slice(start, start + ROWS)
        yield part, np.asarray(items[row_indices[part]], "float32")


def survey(items: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the row indices of the finite items, their mean `[D]`, and their mean squared distance from it."""
    row_indices, total, squares = [], np.zeros(items.shape[1]), 0.0
    for part, rows in chunks(items, np.arange(len(items))):
        finite = np.isfinite(rows).all(axis=1)
        row_indices.append(part.start + np.flatnonzero(finite))
        total += rows[finite].sum(axis=0, dtype="float64")
        squares += np.square(rows[finite], dtype="float64").sum()
    row_indices = np.concatenate(row_indices)
    mean = total / len(row_indices)
    return row_indices, mean, squares / len(row_indices) - np.square(mean).sum()


class Batches(keras.utils.PyDataset):
    """The items in the rows `row_indices` as batches for `fit`, in a new order in each epoch."""

    def __init__(self, items: np.ndarray, row_indices: np.ndarray, generator: np.random.Generator, size: int = 256):
        super().__init__()
        self.items, self.row_indices, self.generator, self.size = items, row_indices.copy(), generator, size
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.row_indices) // self.size)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.sort(self.row_indices[i * self.size : (i + 1) * self.size])
        x = np.asarray(self.items[rows], "float32")
        return x, x

    def on_epoch_end(self) -> None:
        self.generator.shuffle(self.row_indices)


def build(
    residual: keras_vqvae.Quantizer, latent_dim: int | None, mean: np.ndarray, variance: float
) -> keras_vqvae.VQVAE:
    """Returns a `VQVAE` with the quantizer. Without `latent_dim`, its encoder and decoder are the identity."""
    dim = len(mean)
    if latent_dim is None:
        return keras_vqvae.VQVAE(
            keras.Sequential([keras.Input((dim,)), keras.layers.Identity()]), residual, keras.layers.Identity()
        )
    encoder, decoder = keras_vqvae.build(dim, latent_dim)
    # Normalize to mean 0 and variance 1, so that items can have any scale.
    scale = {"mean": mean, "variance": np.full(dim, variance / dim)}
    inputs, latents = keras.Input((dim,)), keras.Input((latent_dim,))
    return keras_vqvae.VQVAE(
        keras.Model(inputs, encoder(keras.layers.Normalization(**scale)(inputs))),
        residual,
        keras.Model(latents, keras.layers.Normalization(**scale, invert=True)(decoder(latents))),
    )


def encode(model: keras_vqvae.VQVAE, items: np.ndarray, row_indices: np.ndarray) -> np.ndarray:
    """Returns the codes of items, `[N, Q]`."""
    parts = chunks(items, row_indices)
    return np.concatenate([model.encode(rows, batch_size=1024, verbose=0) for _, rows in parts])


def explained_variance(
    model: keras_vqvae.VQVAE, items: np.ndarray, row_indices: np.ndarray, codes: np.ndarray, variance: float
) -> np.ndarray:
    """Returns the fraction of the variance that the first 1, 2, ..., Q codes explain, `[Q]`."""
    errors = np.zeros(codes.shape[1])
    for part, rows in chunks(items, row_indices):
        for stage in range(len(errors)):
            first = np.where(np.arange(len(errors)) <= stage, codes[part], -1)
            errors[stage] += np.square(rows - model.decode(first, batch_size=1024, verbose=0), dtype="float64").sum()
    return 1 - errors / len(row_indices) / variance


def reassign(model: keras_vqvae.VQVAE, items: np.ndarray, row_indices: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Changes last codes so that fewer items collide, with the least total increase of the error for each prefix.

    If a prefix has more items than there are last codes, its items keep their codes.
    """
    from scipy.optimize import linear_sum_assignment

    codes, last = codes.copy(), keras.ops.convert_to_numpy(model.quantizer.quantizers[-1].codebook)
    prefixes, items_of = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)[1:]
    different = np.bincount(prefixes.reshape(-1)[np.unique(codes, axis=0, return_index=True)[1]])
    chosen = (different < items_of) & (items_of <= len(last))
    order = np.argsort(prefixes.reshape(-1), kind="stable")
    groups = [group for group, kept in zip(np.split(order, np.cumsum(items_of)[:-1]), chosen, strict=True) if kept]
    while groups:
        # Process prefixes with about `ROWS` items together.
        count = 1 + np.searchsorted(np.cumsum([len(group) for group in groups[:ROWS]]), ROWS)
        some, groups = groups[:count], groups[count:]
        members = np.sort(np.concatenate(some))
        latents = model.encoder.predict(np.asarray(items[row_indices[members]], "float32"), batch_size=1024, verbose=0)
        first = keras.ops.convert_to_numpy(model.quantizer.decode(codes[members, :-1]))
        rest = latents - first
        costs = np.square(last).sum(axis=1) - 2 * rest @ last.T
        for group in some:
            rows, columns = linear_sum_assignment(costs[np.searchsorted(members, group)])
            codes[group[rows], -1] = columns
    return codes


def shared(codes: np.ndarray) -> int:
    """Returns the number of items that collide with another item."""
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def purity(codes: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of items that have the most frequent label of the items with the same codes."""
    groups = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    names, labels = np.unique(labels, return_inverse=True)
    pairs, counts = np.unique(groups * len(names) + labels, return_counts=True)
    most = np.zeros(groups.max() + 1, int)
    np.maximum.at(most, pairs // len(names), counts)
    return most.sum() / len(labels)


def plot(found: dict[str, list[float]], path: pathlib.Path) -> None:
    """Plots the purity of the labels among items that share a prefix, by the length of the prefix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, fractions in found.items():
        depths = range(1, len(fractions) + 1)
        axes.plot(depths, fractions, marker="o", label=name)
    axes.set(
        xlabel="number of shared codes",
        ylabel="fraction of items with the most frequent label",
        ylim=(0, 1.05),
        xticks=depths,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", help="a .npy file, [items, dim]")
    parser.add_argument("--labels", help="a .npy file, [items]")
    parser.add_argument("--codes", type=int, help="codes per stage; by default 256, and fewer for small files")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="epochs of a `VQVAE`; 0 for k-means")
    parser.add_argument("--latent-dim", type=int, default=32, help="dimensions of the latents")
    parser.add_argument("--reassign", action="store_true", help="change the last codes of colliding items")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="semantic_ids", help="folder of ids.csv, purity.png")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    items, labels = load(arguments.embeddings, arguments.labels)
    row_indices, mean, variance = survey(items)
    # Use at most about sqrt(items) codes, so that the first stage does not identify items.
    num_codes = arguments.codes or min(256, 1 << int(np.log2(len(items)) / 2))

    generator = np.random.default_rng(arguments.seed)
    inner = keras_vqvae.VectorQuantizer(num_codes, ema_decay=0.99, seed=arguments.seed)
    residual = keras_vqvae.ResidualQuantizer(inner, arguments.stages)
    model = build(residual, arguments.latent_dim if arguments.epochs else None, mean, variance)
    if arguments.epochs:
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(Batches(items, row_indices, generator), epochs=arguments.epochs, verbose=2)
    else:
        sample = np.sort(generator.choice(row_indices, min(len(row_indices), 256 * num_codes), replace=False))
        residual.adapt(np.asarray(items[sample], "float32"))

    codes = encode(model, items, row_indices)
    print(f"{len(codes)} items, {arguments.stages} x {num_codes} codes")
    if len(codes) < len(items):
        print(f"items left out because they are not finite: {len(items) - len(codes)}")
    explained = explained_variance(model, items, row_indices, codes, variance)
    for stage, column in enumerate(codes.T):
        used = len(np.unique(column)) / num_codes
        print(
            f"stage {stage + 1}: {used:.1%} of the codes used, {explained[stage]:.1%} of the variance explained so far"
        )
    print(f"items that share their codes: {shared(codes)}")
    if arguments.reassign:
        codes = reassign(model, items, row_indices, codes)
        explained = explained_variance(model, items, row_indices, codes, variance)
        print(f"after the reassignment: {shared(codes)}, {explained[-1]:.1%} of the variance explained")

    ids = keras_vqvae.append_collision_index(codes)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with open(arguments.output / "ids.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", *(f"code_{stage}" for stage in range(1, arguments.stages + 1)), "collision_index"])
        for start in range(0, len(ids), ROWS):
            writer.writerows(np.column_stack([row_indices, ids])[start : start + ROWS].tolist())
    fractions = [keras_vqvae.unique_fraction(columns) for columns in (codes, ids)]
    print("unique without the collision index: {:.1%}, with it: {:.1%}".format(*fractions))
    print(f"largest collision index: {ids[:, -1].max()}")
    if labels is None:
        return
    found = {"semantic IDs": [], "shuffled labels": []}
    for name, by in zip(found, (labels[row_indices], generator.permutation(labels[row_indices])), strict=True):
        found[name] = [purity(codes[:, :depth], by) for depth in range(1, arguments.stages + 1)]
    for depth, (fraction, random) in enumerate(zip(*found.values(), strict=True), start=1):
        print(f"{depth} shared codes: {fraction:.1%} of the items have the most frequent label; by chance {random:.1%}")
    plot(found, arguments.output / "purity.png")


if __name__ == "__main__":
    main()
