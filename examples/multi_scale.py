"""Draws how images grow over the scales of a `MultiScaleQuantizer`.

    python examples/multi_scale.py
    KERAS_BACKEND=torch python examples/multi_scale.py --dataset fashion_mnist --epochs 5

A row an image: what the coarsest grid of codes alone decodes to, then with each finer one, and the image itself.
"""

import argparse
import math
import pathlib

import images
import keras
import numpy as np
from digits import build_autoencoder

import keras_vqvae


def grow(model: keras_vqvae.VQVAE, x: np.ndarray, cells: list[int]) -> list[np.ndarray]:
    """The reconstructions of `x` by the codes of the first scales alone, for each number of them."""
    codes = model.encode(x, verbose=0)
    ends = np.cumsum(cells)
    return [model.decode(np.where(np.arange(ends[-1]) < end, codes, -1), verbose=0) for end in ends]


def plot(stages: list[np.ndarray], names: list[str], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    rows, columns = len(stages[0]), len(stages)
    figure = Figure(figsize=(1.1 * columns, 1.1 * rows + 0.3), layout="constrained")
    for row, line in enumerate(np.atleast_2d(figure.subplots(rows, columns))):
        for axes, stage, name in zip(line, stages, names, strict=True):
            axes.imshow(stage[row, ..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(name, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=images.DATASETS)
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=pathlib.Path, default="multi_scale")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    encoder, decoder = build_autoencoder(train.shape[1], embedding_dim=16)
    size = encoder.output_shape[1]
    scales = sorted({1, 2, 3, 4, 5, size} & set(range(size + 1)))
    inner = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=arguments.seed)
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.MultiScaleQuantizer(inner, scales, convolution=True), decoder)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(train, epochs=arguments.epochs, batch_size=64, verbose=2)

    cells = [scale**2 for scale in scales]
    for number, stage in zip(scales, grow(model, test, cells), strict=True):
        used = sum(cells[: scales.index(number) + 1])
        bits = used * math.log2(arguments.codes)
        print(f"up to {number} x {number}: {used} codes, {bits:.0f} bits, error {np.mean(np.square(stage - test)):.4f}")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    stages = [*grow(model, test[:8], cells), test[:8]]
    plot(stages, [*(f"{scale} x {scale}" for scale in scales), "image"], arguments.output_dir / "scales.png")


if __name__ == "__main__":
    main()
