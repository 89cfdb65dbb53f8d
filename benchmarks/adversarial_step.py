"""How much longer does a training step of `VQGAN` take than one of `VQVAE`?

KERAS_BACKEND=torch python -m benchmarks.adversarial_step

It uses the networks and the batch size of `benchmarks.adversarial`: 64 images of 28 x 28 pixels. Times are medians of
`train_on_batch` in one run.
"""

import functools

import keras
import numpy as np

import keras_vqvae
from benchmarks import backends, timing
from examples import images

SHAPE = (28, 28, 1)


def make(kind: str) -> keras_vqvae.VQVAE:
    keras.utils.set_random_seed(0)
    encoder, decoder = images.build_autoencoder(SHAPE[0], 32)
    parts = encoder, keras_vqvae.VectorQuantizer(32, ema_decay=0.99), decoder
    judge = keras_vqvae.build_conv_discriminator(SHAPE, (32, 64))
    if kind == "VQGAN, no features":
        judge = keras.Model(judge.input, judge.output["logits"])
    model = keras_vqvae.VQVAE(*parts) if kind == "VQVAE" else keras_vqvae.VQGAN(*parts, judge)
    model.compile(keras.optimizers.Adam(1e-3))
    return model


def main() -> None:
    x = np.random.default_rng(0).random((64, *SHAPE)).astype("float32")
    kinds = ("VQVAE", "VQGAN, no features", "VQGAN")
    times = timing.medians({kind: functools.partial(make(kind).train_on_batch, x) for kind in kinds}, repeats=8)
    rows = [{"model": kind, **time, "ratio": time["ms"] / times["VQVAE"]["ms"]} for kind, time in times.items()]
    timing.report(f"adversarial-step-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
