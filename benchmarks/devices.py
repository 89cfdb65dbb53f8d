"""Does a step get faster on several devices? Times a layer with an EMA codebook, its batch sharded over JAX's devices.

XLA_FLAGS=--xla_force_host_platform_device_count=4 KERAS_BACKEND=jax python -m benchmarks.devices
"""

import argparse

import keras
import numpy as np

import keras_vqvae
from benchmarks import backends, timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=32768)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=64)
    arguments = parser.parse_args()
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    x = np.random.default_rng(0).normal(size=(arguments.vectors, arguments.dim)).astype("float32")
    layer = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=0)
    found = timing.medians({"step": backends.training_step(layer, x)})["step"]
    devices = len(keras.distribution.list_devices())
    timing.report(
        f"devices-{devices}",
        [{"devices": devices, **vars(arguments), "step ms": found["ms"], "spread": found["spread"]}],
    )


if __name__ == "__main__":
    main()
