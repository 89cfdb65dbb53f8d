"""Computes every quantizer's results on one backend: `python worker.py FOLDER`, with `KERAS_BACKEND` set.

`PYTHONPATH` must contain the folder `tests/support`. It reads phases line by line, and prints each one that is done.

Phase `train` starts from equal weights and inputs. It writes the indices, outputs, losses, gradients and state of a
step, and a `.keras` file after another step, or with an optimizer after `fit`. It also trains a `VQGAN`. Phase `load`
writes the indices from the files of another backend.
"""

import pathlib
import sys

import keras
import numpy as np
from gradients import layer_gradients
from helpers import compiled
from keras import ops
from quantizers import DIM, DRAW_OUTPUTS, DRAW_STATE, EVERY, SHAPE

import keras_vqvae

WRITERS = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}
"""For each backend, the one whose files it loads. All of them write and read the same format."""
FITTED = "ema"
"""The quantizer whose file has the state of a fit. One is enough, because `fit` takes longest to compile."""
PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def set_weights(layer: keras.Layer) -> None:
    """Draws the float weights in NumPy, whose draws are equal on every backend."""
    for i, weight in enumerate(layer.weights):
        if len(weight.shape) > 1 and "float" in str(weight.dtype):
            weight.assign(draw(100 + i, *weight.shape))


def step(name: str) -> dict[str, np.ndarray]:
    layer = EVERY[name]()
    layer.build((None, *SHAPE))
    set_weights(layer)
    x = draw(1, 17, *SHAPE)
    # Random numbers differ between backends.
    if name in DRAW_OUTPUTS:
        quantized, indices = layer(x, return_indices=True)
        return {f"{name}/quantized": ops.convert_to_numpy(quantized), f"{name}/indices": ops.convert_to_numpy(indices)}
    by_inputs, by_weights = layer_gradients(layer, x, draw(2, 17, *SHAPE))
    quantized, indices = layer(x, training=True, return_indices=True)
    found = {"quantized": quantized, "indices": indices, "by_inputs": by_inputs}
    found |= {f"by_weight_{i}": gradient for i, gradient in enumerate(by_weights)}
    found |= {f"loss_{i}": loss for i, loss in enumerate(layer.losses)}
    if name not in DRAW_STATE:
        found |= {weight.path.split("/", 1)[1]: weight for weight in layer.weights}
    return {f"{name}/{key}": ops.convert_to_numpy(value) for key, value in found.items()}


def codes_of(model: keras_vqvae.VQVAE) -> np.ndarray:
    # Not `predict`: compiling a program for each model would take longest.
    return ops.convert_to_numpy(model.quantizer.encode(model.encoder(draw(4, 64, *SHAPE))))


def draws(prior: keras_vqvae.Prior) -> np.ndarray:
    return prior.generate(50, np.arange(50) % 3, temperature=3.0, guidance_scale=1.5, top_p=0.9, seed=5, verbose=0)


def game() -> dict[str, np.ndarray]:
    """Trains a `VQGAN` for six steps. Returns its weights and the logs of the last epoch."""
    inputs = keras.Input(SHAPE)
    hidden = keras.layers.Dense(5, "tanh")(inputs)
    judge = keras.Model(inputs, {"logits": keras.layers.Dense(1)(hidden), "features": [hidden]})
    quantizer = keras_vqvae.VectorQuantizer(8, ema_decay=0.9, dead_code_threshold=0)
    model = keras_vqvae.VQGAN(keras.layers.Dense(DIM), quantizer, keras.layers.Dense(DIM), judge)
    model(keras.Input(SHAPE))
    set_weights(model)
    compiled(model, keras.optimizers.SGD(0.01))
    history = model.fit(draw(3, 64, *SHAPE), epochs=3, verbose=0, shuffle=False).history
    found = {name: np.array(values[-1]) for name, values in history.items()}
    found |= {f"{i} {weight.name}": ops.convert_to_numpy(weight) for i, weight in enumerate(model.weights)}
    return {f"VQGAN/{key}": value for key, value in found.items()}


def train(folder: pathlib.Path) -> None:
    backend = keras.backend.backend()
    results = game()
    for name, kind in PRIORS.items():
        prior = kind(8, (3, 2), num_classes=3, index_shape=(2,), num_layers=1, num_heads=2, hidden_dim=8)
        set_weights(prior)
        results[f"{name}/draws"] = draws(prior)
        prior.save(folder / f"{name}-{backend}.keras")
    for name, make in EVERY.items():
        results |= step(name)
        model = keras_vqvae.VQVAE(keras.layers.Dense(DIM), make(), keras.layers.Dense(DIM))
        model(keras.Input(SHAPE))
        set_weights(model)
        if name == FITTED:
            compiled(model, keras.optimizers.Adam(0.01))
            model.fit(draw(3, 64, *SHAPE), epochs=2, verbose=0, shuffle=False)
        else:
            model.quantizer(draw(3, 64, *SHAPE), training=True)
        model.save(folder / f"{name}-{backend}.keras")
        results[f"{name}/codes"] = codes_of(model)
    np.savez(folder / f"train-{backend}.npz", **results)


def load(folder: pathlib.Path) -> None:
    results = {}
    writer = WRITERS[keras.backend.backend()]
    for name in PRIORS:
        results[f"{name}/draws"] = draws(keras.models.load_model(folder / f"{name}-{writer}.keras"))
    for name in EVERY:
        results[f"{name}/codes"] = codes_of(keras.models.load_model(folder / f"{name}-{writer}.keras"))
    np.savez(folder / f"load-{keras.backend.backend()}.npz", **results)


if __name__ == "__main__":
    for line in sys.stdin:
        {"train": train, "load": load}[line.strip()](pathlib.Path(sys.argv[1]))
        print("done", line.strip(), flush=True)
