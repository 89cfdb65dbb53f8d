"""Trains on handwritten digits, exports tokenizer and detokenizer to ONNX, and runs both without Keras.

    python examples/export.py
    python examples/export.py --run PIXELS.npy

The first command runs the second one in another process, which needs only NumPy and onnxruntime. The first one needs
TensorFlow and tf2onnx, or PyTorch and onnxscript. On JAX, Keras can export ONNX files only for a fixed batch size.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np


def train_and_export(folder: pathlib.Path, epochs: int) -> np.ndarray:
    """Writes `tokenizer.onnx` and `detokenizer.onnx`, and returns the test digits, `[297, 64]`."""
    import keras
    from sklearn.datasets import load_digits

    import keras_vqvae

    keras.utils.set_random_seed(0)
    x = load_digits().data.astype("float32") / 16
    encoder, decoder = keras_vqvae.build(input_size=64, embedding_dim=16)
    quantizer = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(64, ema_decay=0.99), num_quantizers=4)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile("adam")
    model.fit(x[:1500], epochs=epochs, batch_size=50, verbose=0)
    for name in ("tokenizer", "detokenizer"):
        getattr(model, name).export(folder / f"{name}.onnx", format="onnx", verbose=False)
    print(f"mean squared error in Keras: {np.square(model.predict(x[1500:], verbose=0) - x[1500:]).mean():.5f}")
    return x[1500:]


def run(pixels: np.ndarray, folder: pathlib.Path) -> None:
    """Runs pixels -> codes -> pixels with the exported files."""
    import onnxruntime

    tokenizer, detokenizer = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("tokenizer", "detokenizer")
    )
    (codes,) = tokenizer.run(None, {tokenizer.get_inputs()[0].name: pixels})
    (reconstructions,) = detokenizer.run(None, {detokenizer.get_inputs()[0].name: codes})
    assert "keras" not in sys.modules
    print(f"{len(pixels)} digits, {codes.shape[1]} {codes.dtype} codes each: {codes[0].tolist()}, ...")
    print(f"mean squared error in onnxruntime: {np.square(reconstructions - pixels).mean():.5f}")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--run",
    metavar="PIXELS",
    type=pathlib.Path,
    help="run the exported files on pixels in a .npy file, without training",
)
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("export"), help="folder of the exported files")
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()

if arguments.run:
    run(np.load(arguments.run), arguments.output)
else:
    arguments.output.mkdir(parents=True, exist_ok=True)
    pixels = arguments.output / "pixels.npy"
    np.save(pixels, train_and_export(arguments.output, arguments.epochs))
    subprocess.run([sys.executable, __file__, "--output", arguments.output, "--run", pixels], check=True)
