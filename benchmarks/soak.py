"""Does memory grow over long runs? Reads the resident memory during training, calls of a layer, and sampling.

KERAS_BACKEND=torch python -m benchmarks.soak
"""

import argparse
import gc
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

import keras_vqvae
from benchmarks import memory, timing

READINGS = 25
"""Number of memory readings per run. The first fifth is warm-up."""


class Reader(keras.callbacks.Callback):
    """Reads the memory every `every` steps."""

    def __init__(self, every: int):
        super().__init__()
        self.every, self.steps, self.readings = every, 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps % self.every == 0:
            self.readings.append((self.steps, resident()))


def resident() -> float:
    gc.collect()
    return memory.status("VmRSS") * 1024


def fit(steps: int, quantizing: bool = True) -> list[tuple[int, float]]:
    """Trains a functional model with validation, metrics and a callback. An epoch has 100 steps."""
    x = np.random.default_rng(0).normal(size=(3200, 16, 8)).astype("float32")
    inputs = keras.Input((16, 8))
    vectors = keras.layers.Dense(8)(inputs)
    if quantizing:
        vectors = keras_vqvae.VectorQuantizer(64, ema_decay=0.99, seed=0)(vectors)
    model = keras.Model(inputs, keras.layers.Dense(8)(vectors))
    model.compile("adam", "mse", metrics=["mae"])
    reader = Reader(steps // READINGS)
    callbacks = [keras_vqvae.CodebookMonitor(), reader] if quantizing else [reader]
    epochs = steps // 100
    model.fit(x, x, batch_size=32, epochs=epochs, validation_data=(x[:64], x[:64]), verbose=0, callbacks=callbacks)
    return reader.readings


def repeated(count: int, call: Callable[[int], object]) -> list[tuple[int, float]]:
    readings = []
    for i in range(1, count + 1):
        call(i)
        if i % (count // READINGS) == 0:
            readings.append((i, resident()))
    return readings


def calls(count: int, training: bool, read: bool) -> list[tuple[int, float]]:
    """Calls a layer eagerly in a loop, without `fit`."""
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(256, 8)).astype("float32"))
    layer = keras_vqvae.VectorQuantizer(64, ema_decay=0.99, seed=0)

    def call(i: int) -> None:
        layer(x, training=training)
        if read:
            float(layer.losses[0])

    return repeated(count, call)


def draws(count: int) -> list[tuple[int, float]]:
    prior = keras_vqvae.AutoregressivePrior(16, (8,), num_layers=1, hidden_dim=16)
    prior.compile("adam")
    return repeated(count, lambda i: prior.generate(4, seed=i, verbose=0))


RUNS = {
    "`fit`, steps": lambda counts: fit(counts.steps),
    "`fit` without the quantizer, steps": lambda counts: fit(counts.steps, quantizing=False),
    "calls in training, losses never read": lambda counts: calls(counts.calls, training=True, read=False),
    "calls in training, losses read": lambda counts: calls(counts.calls, training=True, read=True),
    "calls in inference, losses never read": lambda counts: calls(counts.calls, training=False, read=False),
    "calls in inference, losses read": lambda counts: calls(counts.calls, training=False, read=True),
    "`generate` of 4 samples": lambda counts: draws(counts.draws),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", default="", help="only the runs whose name contains this")
    arguments = parser.parse_args()
    # Exclude objects made by imports from the garbage collection of each reading.
    gc.freeze()
    rows = []
    for what in (name for name in RUNS if arguments.only in name):
        readings = RUNS[what](arguments)
        at, kilobytes = np.array(readings[len(readings) // 5 :]).T
        slope = np.polyfit(at, kilobytes, 1)[0]
        rows.append({"backend": keras.backend.backend(), "what": what, "count": int(at[-1])})
        rows[-1] |= {"MB at the end": round(kilobytes[-1] / 1024), "growth, kB": round(kilobytes[-1] - kilobytes[0])}
        rows[-1] |= {"kB per 1,000": round(1000 * slope)}
        print(rows[-1], flush=True)
    timing.report(f"soak-{keras.backend.backend()}", rows)


if __name__ == "__main__":
    main()
