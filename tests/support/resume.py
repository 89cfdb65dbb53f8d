"""Kills training at random steps and checks that each of Keras's checkpoints resumes it to the same result.

This is not part of `make test`, which stops one run once and does not kill it.

KERAS_BACKEND=torch python tests/support/resume.py --kills 20
XLA_FLAGS=--xla_force_host_platform_device_count=4 KERAS_BACKEND=jax python tests/support/resume.py --layout codebook
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np
from helpers import compiled, set_layout

import keras_vqvae

WAYS = ("backup", "model", "orbax")
BATCH, STEPS, EPOCHS = 16, 8, 3
EVERY = 3
"""Steps between two checkpoints. `BackupAndRestore` ignores it and resumes at the start of an epoch."""


def make_model() -> keras.Model:
    """Makes a model with dead-code revival, residuals with dropout, noise, and sampled codes."""
    quantizers = [
        keras_vqvae.VectorQuantizer(64, ema_decay=0.9),
        keras_vqvae.VectorQuantizer(64, estimator="nsvq"),
        keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(16, ema_decay=0.9), 3, quantizer_dropout=0.5),
        keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2), noise=0.5),
        keras_vqvae.GumbelQuantizer(16),
    ]
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    parts = [quantizer(keras.layers.Dense(4)(hidden)) for quantizer in quantizers]
    model = keras.Model(inputs, keras.layers.Dense(8)(keras.layers.Concatenate()(parts)))
    return compiled(model, "adam", "mse")


def make_callback(way: str, folder: pathlib.Path) -> keras.callbacks.Callback:
    path = str(folder.absolute() / way)
    if way == "backup":
        return keras.callbacks.BackupAndRestore(path)
    if way == "model":
        return keras.callbacks.ModelCheckpoint(f"{path}.keras", save_freq=EVERY)
    return keras.callbacks.OrbaxCheckpoint(path, save_freq=EVERY)


def saved(way: str, folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the path of the last checkpoint, or None."""
    path = folder / (f"{way}.keras" if way == "model" else way)
    # Orbax writes to a temporary name until the checkpoint is complete.
    there = path.exists() and (way != "orbax" or any(child.name.isdigit() for child in path.iterdir()))
    return path if there else None


def train(
    folder: pathlib.Path, way: str | None = None, step: int = -1, stop: Callable[[list], None] | None = None
) -> list[np.ndarray]:
    """Trains to the end, from the start or from a checkpoint of kind `way`, and returns all variables.

    Without `way` it writes checkpoints of every kind. It calls `stop` before step number `step`.
    """
    path = saved(way, folder) if way else None
    # A resumed run must take its random state from the checkpoint, so it gets another seed.
    keras.utils.set_random_seed(int(path is not None))
    callbacks = [make_callback(each, folder) for each in ([way] if way else WAYS)]
    x = np.random.default_rng(0).normal(size=(BATCH * STEPS, 8)).astype("float32")
    epochs = EPOCHS
    if path and way != "backup":
        model = keras.saving.load_model(path)
        # The checkpoint is from within an epoch: train on the data that are left.
        x, epochs = np.tile(x, (EPOCHS, 1))[int(model.optimizer.iterations) * BATCH :], 1
    else:
        model = make_model()

    def look(batch, logs=None):
        # Read the step through the callback, which on JAX updates the variables first.
        if int(looking.model.optimizer.iterations) == step:
            stop(callbacks)

    looking = keras.callbacks.LambdaCallback(on_train_batch_begin=look)
    callbacks.append(looking)
    if len(x):
        model.fit(x, x, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables + model.optimizer.variables]


def in_process(folder: pathlib.Path, layout: str, step: int | None) -> None:
    """Starts a process that is killed before `step`, or that resumes from each kind of checkpoint if `step` is None."""
    options = ["--layout", layout, "--folder", folder, *([] if step is None else ["--step", step])]
    process = subprocess.run([sys.executable, __file__, *map(str, options)], capture_output=True, text=True)
    assert process.returncode == (0 if step is None else -signal.SIGKILL), process.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=["none", "data", "codebook"], default="none")
    parser.add_argument("--folder", type=pathlib.Path, help="folder of one run (used by the script itself)")
    parser.add_argument("--step", type=int, help="step before which that run is killed")
    arguments = parser.parse_args()
    set_layout(arguments.layout)
    if arguments.folder and arguments.step is not None:
        train(arguments.folder, step=arguments.step, stop=lambda callbacks: os.kill(os.getpid(), signal.SIGKILL))
        return
    if arguments.folder:
        for way in WAYS:
            np.savez(arguments.folder / f"{way}.npz", *train(arguments.folder, way))
        return
    with tempfile.TemporaryDirectory() as name:
        unbroken = train(pathlib.Path(name), "backup")
    equal = dict.fromkeys(WAYS, 0)
    most = dict.fromkeys(WAYS, 0.0)
    steps = np.random.default_rng(arguments.seed).integers(STEPS * EPOCHS, size=arguments.kills)
    for kills, step in enumerate(steps, 1):
        with tempfile.TemporaryDirectory() as name:
            for each in (int(step), None):
                in_process(pathlib.Path(name), arguments.layout, each)
            for way in WAYS:
                with np.load(pathlib.Path(name, f"{way}.npz")) as file:
                    pairs = list(zip(unbroken, file.values(), strict=True))
                equal[way] += all(np.array_equal(*pair) for pair in pairs)
                most[way] = max(most[way], *(np.abs(one.astype("float64") - other).max() for one, other in pairs))
        print(f"{kills} kills, the last before step {step}", flush=True)
        for way in WAYS:
            print(f"  {way}: {equal[way]} equal to the last bit, largest difference {most[way]:.1e}", flush=True)


if __name__ == "__main__":
    main()
