"""Trains on all devices of one or several machines with JAX. If it is stopped, the same command resumes it.

    KERAS_BACKEND=jax python examples/distributed_jax.py

For several machines, run it on each with its own `--process` and the address of the first one:

    KERAS_BACKEND=jax python examples/distributed_jax.py --processes 2 --process 0 --coordinator 10.0.0.1:1234
    KERAS_BACKEND=jax python examples/distributed_jax.py --processes 2 --process 1 --coordinator 10.0.0.1:1234
"""

import argparse
import pathlib
import shutil

import images
import keras
import numpy as np

import keras_vqvae

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--process", type=int, default=0)
parser.add_argument("--coordinator", help="address and port of process 0")
parser.add_argument("--batch-size", type=int, default=100, help="vectors per step, over all devices")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("distributed"))
arguments = parser.parse_args()

# This must run before JAX is initialized.
if arguments.processes > 1:
    keras.distribution.initialize(arguments.coordinator, arguments.processes, arguments.process)
keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
# Equal seeds: each process makes the same weights, and moves dead codes onto the same rows.
keras.utils.set_random_seed(0)

# Each process has its part of every batch. The last, incomplete batch is dropped.
x = images.load("digits")[0].reshape(-1, 64)
x = x[: len(x) // arguments.batch_size * arguments.batch_size]
x = x.reshape(-1, arguments.processes, arguments.batch_size // arguments.processes, 64)[:, arguments.process]
x = x.reshape(-1, 64)

encoder, decoder = keras_vqvae.build(input_size=64, embedding_dim=16)
model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(128, ema_decay=0.99, seed=0), decoder)
model.compile()

# All processes must save at the same time. All resume from the backup of process 0, on a shared disk.
backups = [arguments.output / f"backup-{process}" for process in (0, arguments.process)]
if arguments.process and backups[0].exists():
    shutil.copytree(*backups, dirs_exist_ok=True)
history = model.fit(
    x,
    batch_size=arguments.batch_size // arguments.processes,
    epochs=arguments.epochs,
    shuffle=False,
    verbose=0 if arguments.process else 2,
    callbacks=[keras.callbacks.BackupAndRestore(backups[1])],
)
if not arguments.process and history.history:
    print(f"loss {history.history['loss'][-1]:.6f}, on {len(keras.distribution.list_devices())} devices")
# Every process has all weights, so their files are equal.
arguments.output.mkdir(parents=True, exist_ok=True)
np.savez(
    arguments.output / f"weights-{arguments.process}.npz", *(np.asarray(variable.value) for variable in model.variables)
)
