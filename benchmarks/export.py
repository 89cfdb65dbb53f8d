"""Which graphs can be exported in which format? The results are in `docs/reference/export-matrix.md`.

It needs the packages of the extra `export`.

KERAS_BACKEND=torch python -m benchmarks.export
KERAS_BACKEND=jax python -m benchmarks.export --formats onnx --quantizers "nearest code"
"""

import argparse
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

import keras_vqvae
from benchmarks import timing

BACKEND = keras.backend.backend()


def vector(num_embeddings: int = 256, **keywords) -> keras_vqvae.Quantizer:
    return keras_vqvae.VectorQuantizer(num_embeddings, seed=1, **keywords)


# Each entry has a function that makes the quantizer, the size of a vector, and the vectors per sample.
QUANTIZERS = {
    "nearest code": (lambda: vector(ema_decay=0.99), 8, 49),
    "nearest code, 8,192 codes": (lambda: vector(8192), 8, 4096),
    "cosine": (lambda: vector(distance="cosine"), 8, 49),
    "FSQ": (keras_vqvae.FiniteScalarQuantizer, 4, 49),
    "LFQ": (lambda: keras_vqvae.LookupFreeQuantizer(8), 8, 49),
    "BSQ": (lambda: keras_vqvae.BinarySphericalQuantizer(8), 8, 49),
    "SimVQ": (lambda: keras_vqvae.SimVectorQuantizer(256, seed=1), 8, 49),
    "IBQ": (lambda: keras_vqvae.IndexBackpropagationQuantizer(256, seed=1), 8, 49),
    "Gumbel": (lambda: keras_vqvae.GumbelQuantizer(256, seed=1), 8, 49),
    "residual": (lambda: keras_vqvae.ResidualQuantizer(vector(), 3), 8, 49),
    "grouped": (lambda: keras_vqvae.GroupedQuantizer(vector(), 2), 8, 49),
    "projected": (lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.FiniteScalarQuantizer(), 4), 8, 49),
}


def graphs(quantizer: keras_vqvae.Quantizer, positions: int, dim: int) -> dict[str, keras.Model]:
    inputs = keras.Input((positions, dim), name="inputs")
    quantized, indices = quantizer(inputs, return_indices=True)
    codes = keras.Input(indices.shape[1:], dtype="int32", name="codes")
    return {
        "encode": keras.Model(inputs, indices),
        "decode": keras.Model(codes, quantizer.decode(codes)),
        "whole": keras.Model(inputs, quantized),
    }


def saved_model(model: keras.Model, path: pathlib.Path, batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    model.export(path, format="tf_saved_model", verbose=False, **signature(model, batch))
    loaded = tf.saved_model.load(path)
    return lambda x: loaded.serve(x).numpy()


def onnx(model: keras.Model, path: pathlib.Path, batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    model.export(f"{path}.onnx", format="onnx", verbose=False, **signature(model, batch))
    session = onnxruntime.InferenceSession(f"{path}.onnx")
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def litert(model: keras.Model, path: pathlib.Path, batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    if batch is None and BACKEND == "torch":
        raise NotImplementedError("litert-torch fixes the batch size")
    model.export(f"{path}.tflite", format="litert", verbose=False, **signature(model, batch))
    interpreter = Interpreter(f"{path}.tflite")

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return run


def openvino(model: keras.Model, path: pathlib.Path, batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    model.export(f"{path}.xml", format="openvino", verbose=False, **signature(model, batch))
    compiled = openvino.Core().compile_model(f"{path}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: compiled([x])[0]


def pt2(model: keras.Model, path: pathlib.Path, batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    dynamic = {} if batch else {"dynamic_shapes": {0: torch.export.Dim("batch")}}
    model.export(f"{path}.pt2", format="torch", verbose=False, **signature(model, batch), **dynamic)
    program = torch.export.load(f"{path}.pt2").module()
    return lambda x: program(torch.from_numpy(x)).detach().numpy()


def signature(model: keras.Model, batch: int | None) -> dict:
    if batch is None:
        return {}
    tensor = model.inputs[0]
    return {"input_signature": [keras.InputSpec(shape=(batch, *tensor.shape[1:]), dtype=tensor.dtype)]}


FORMATS = {"SavedModel": saved_model, "ONNX": onnx, "LiteRT": litert, "OpenVINO": openvino, ".pt2": pt2}


def cell(model: keras.Model, format: str, x: np.ndarray, folder: pathlib.Path, verbose: bool) -> str:
    """Returns "yes" if the exported graph matches the layer, "batch fixed" if only at one batch size, or an error."""
    why = []
    for batch in (None, 2):
        try:
            run = FORMATS[format](model, folder / f"{format.strip('.')}-{batch}", batch)
            for size in (2, 3, 1) if batch is None else (2,):
                expected, found = ops.convert_to_numpy(model(x[:size])), run(x[:size])
                if found.dtype != expected.dtype:
                    raise ValueError(f"dtype {found.dtype}")
                np.testing.assert_allclose(found, expected, atol=1e-5)
            return "yes" if batch is None else "batch fixed"
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why.append(f"{type(error).__name__}: {' '.join(lines)[:150]}")
            if verbose:
                print(format, batch, error)
    return why[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--verbose", action="store_true", help="print full error messages")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in arguments.quantizers:
        make, dim, positions = QUANTIZERS[name]
        quantizer = make()
        x = np.random.default_rng(0).normal(size=(3, positions, dim)).astype("float32")
        for graph, model in graphs(quantizer, positions, dim).items():
            model(data := ops.convert_to_numpy(quantizer.encode(x)) if graph == "decode" else x)
            rows.append({"backend": BACKEND, "quantizer": name, "graph": graph})
            with tempfile.TemporaryDirectory() as folder:
                for format in arguments.formats:
                    rows[-1][format] = cell(model, format, data, pathlib.Path(folder), arguments.verbose)
                    print(name, graph, format, rows[-1][format], flush=True)
    timing.report(f"export-{BACKEND}", rows)


if __name__ == "__main__":
    main()
