"""Draws images from the first scales of a `MultiScaleQuantizer`, from coarse to fine.

    python examples/multi_scale.py
    KERAS_BACKEND=torch python examples/multi_scale.py --dataset fashion_mnist --epochs 5

Each column shows an image. Below it are the reconstructions from the coarsest grid, then with each finer grid added.
"""

import argparse
import math
import pathlib

import images
import keras
import numpy as np

import keras_vqvae
from keras_vqvae import plotting


def grow(model: keras_vqvae.VQVAE, x: np.ndarray, cells: list[int]) -> list[np.ndarray]:
    """Returns the reconstructions of `x` from the first 1, 2, ... scales."""
    codes = model.encode(x, verbose=0)
    ends = np.cumsum(cells)
    return [model.decode(np.where(np.arange(ends[-1]) < end, codes, -1), verbose=0) for end in ends]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=images.DATASETS)
    parser.add_argument("--data-dir", help="folder of IDX files to read instead of downloading")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="multi_scale", help="folder of scales.png")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    encoder, decoder = images.build_autoencoder(train.shape[1], embedding_dim=16)
    size = encoder.output_shape[1]
    scales = sorted({1, 2, 3, 4, 5, size} & set(range(size + 1)))
    inner = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=arguments.seed)
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.MultiScaleQuantizer(inner, scales, convolution=True), decoder)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(train, epochs=arguments.epochs, batch_size=64, verbose=2)

    cells = [scale**2 for scale in scales]
    stages = dict(zip((f"{scale} x {scale}" for scale in scales), grow(model, test, cells), strict=True))
    for (name, stage), used in zip(stages.items(), np.cumsum(cells), strict=True):
        bits = used * math.log2(arguments.codes)
        print(f"up to {name}: {used} codes, {bits:.0f} bits, error {np.mean(np.square(stage - test)):.4f}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    plotting.plot_reconstructions(test, stages, max_images=8).savefig(arguments.output / "scales.png")


if __name__ == "__main__":
    main()
