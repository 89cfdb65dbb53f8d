"""Compares our beam search for residual quantization with FAISS's: error and time on 4 x 4 patches of Fashion-MNIST.

Codebooks are found on 40,000 patches, with `adapt` or FAISS's own training. Ours are then trained for 100 EMA steps of
4,096 patches. Errors and encoding times are measured on 50,000 other patches.

    KERAS_BACKEND=torch OMP_NUM_THREADS=2 python -m benchmarks.beams --data-dir FOLDER_OF_IDX_FILES
"""

import argparse

import faiss
import keras
import numpy as np

import keras_vqvae
from benchmarks import timing
from benchmarks.patches import patches
from examples import images


def error(decoded: np.ndarray, test: np.ndarray) -> str:
    return f"{np.mean(np.square(decoded - test)):.6f}"


def compare(codes: int, depth: int, width: int, train: np.ndarray, test: np.ndarray, steps: int) -> dict[str, str]:
    """Returns the errors and the median encoding times of our quantizer and FAISS's, for one size."""
    keras.utils.set_random_seed(0)
    inner = keras_vqvae.VectorQuantizer(codes, ema_decay=0.99, seed=0)
    layer = keras_vqvae.ResidualQuantizer(inner, depth, beam_width=width)
    inputs = keras.Input((test.shape[1],))
    quantized, indices = layer(inputs, return_indices=True)
    model, encoder = keras.Model(inputs, quantized), keras.Model(inputs, indices)
    model.compile("sgd", "mse")
    layer.adapt(train, verbose=0)
    theirs = faiss.ResidualQuantizer(train.shape[1], depth, int(np.log2(codes)))
    theirs.max_beam_size = width
    theirs.train(train)

    def ours_of_test() -> np.ndarray:
        return encoder.predict(test, batch_size=len(test), verbose=0)

    def our_error() -> str:
        return error(keras.ops.convert_to_numpy(layer.decode(ours_of_test())), test)

    found = {"adapt": our_error()}
    times = timing.medians({"ours": ours_of_test, "FAISS": lambda: theirs.compute_codes(test)})
    if steps:
        x = train[np.random.default_rng(0).integers(len(train), size=4096 * steps)]
        model.fit(x, x, batch_size=4096, shuffle=False, verbose=0)
        found["trained"] = our_error()
    found["FAISS"] = error(theirs.decode(theirs.compute_codes(test)), test)
    return found | {f"{name} {what}": f"{value:.0f}" for name, time in times.items() for what, value in time.items()}


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
                found = compare(codes, depth, width, train, test, arguments.steps)
                rows.append({"K": codes, "depth": depth, "beam": width, **found})
                print(rows[-1], flush=True)
    timing.report("beams", rows)


if __name__ == "__main__":
    main()
