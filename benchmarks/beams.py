"""Beam search of residual quantization beside FAISS's: error and time, on 4 x 4 patches of Fashion-MNIST.

Codebooks are found on 40,000 patches, by `adapt` or FAISS's own training, and after that by 100 steps of 4,096 patches
of the moving average; errors and the time of encoding are of 50,000 others, the least of three calls.

    KERAS_BACKEND=torch OMP_NUM_THREADS=2 python -m benchmarks.beams --data-dir FOLDER_OF_IDX_FILES
"""

import argparse
import time
from collections.abc import Callable

import faiss
import keras
import numpy as np

import keras_vqvae
from benchmarks import timing
from benchmarks.patches import patches
from examples import images


def least(function: Callable) -> tuple[np.ndarray, str]:
    """What a function returns, and the least of the milliseconds that it takes in three calls, after one more."""
    function()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, f"{1e3 * min(times):.0f}"


def error(decoded: np.ndarray, test: np.ndarray) -> str:
    return f"{np.mean(np.square(decoded - test)):.6f}"


def ours(codes: int, depth: int, width: int, train: np.ndarray, test: np.ndarray, steps: int) -> dict[str, str]:
    keras.utils.set_random_seed(0)
    inner = keras_vqvae.VectorQuantizer(codes, ema_decay=0.99, seed=0)
    layer = keras_vqvae.ResidualQuantizer(inner, depth, beam_width=width)
    inputs = keras.Input((16,))
    quantized, indices = layer(inputs, return_indices=True)
    model, encoder = keras.Model(inputs, quantized), keras.Model(inputs, indices)
    model.compile("sgd", "mse")
    layer.adapt(train, verbose=0)
    encode = lambda: encoder.predict(test, batch_size=len(test), verbose=0)  # noqa: E731
    decode = lambda indices: keras.ops.convert_to_numpy(layer.decode(indices))  # noqa: E731
    indices, milliseconds = least(encode)
    found = {"adapt": error(decode(indices), test), "ms": milliseconds}
    if steps:
        x = train[np.random.default_rng(0).integers(len(train), size=4096 * steps)]
        model.fit(x, x, batch_size=4096, shuffle=False, verbose=0)
        found["trained"] = error(decode(encode()), test)
    return found


def faisss(codes: int, depth: int, width: int, train: np.ndarray, test: np.ndarray) -> dict[str, str]:
    quantizer = faiss.ResidualQuantizer(train.shape[1], depth, int(np.log2(codes)))
    quantizer.max_beam_size = width
    quantizer.train(train)
    indices, milliseconds = least(lambda: quantizer.compute_codes(test))
    return {"FAISS": error(quantizer.decode(indices), test), "FAISS ms": milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--codes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    train, test = images.load("fashion_mnist", arguments.data_dir)
    train, test = patches(train, 40_000, 0), patches(test, 50_000, 1)
    rows = []
    for codes in arguments.codes:
        for depth in arguments.depths:
            for width in arguments.widths:
                size = (codes, depth, width, train, test)
                found = ours(*size, arguments.steps) | faisss(*size)
                rows.append({"K": codes, "depth": depth, "beam": width, **found})
                print(rows[-1], flush=True)
    timing.report("beams", rows)


if __name__ == "__main__":
    main()
