"""Do the stages of a residual learn? Compares test errors on the digits for three stages of 32 codes, by kind of stage.

KERAS_BACKEND=jax python -m benchmarks.compositions
KERAS_BACKEND=torch python -m benchmarks.compositions --alone

With `--alone`, only a residual of projections is trained, on Gaussian vectors, without networks around it.
"""

import argparse
from collections.abc import Callable

import keras
import numpy as np

import keras_vqvae
from benchmarks import timing
from examples import images

VQ = keras_vqvae.VectorQuantizer
STAGES: dict[str, Callable[[], keras_vqvae.Quantizer]] = {
    "projected VQ": lambda: keras_vqvae.ProjectedQuantizer(VQ(32, seed=0), 4),
    "projected VQ, ema_decay": lambda: keras_vqvae.ProjectedQuantizer(VQ(32, ema_decay=0.99, seed=0), 4),
    "projected FSQ (4, 4, 2)": lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.FiniteScalarQuantizer((4, 4, 2)), 3),
    "plain VQ, ema_decay": lambda: VQ(32, ema_decay=0.99, seed=0),
}


def alone(rate: float, **keywords: object) -> list[float]:
    """Returns the explained variance of held-out vectors after every 300 steps."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8000, 16)) * np.linspace(2, 0.2, 16)).astype("float32")
    quantizer = keras_vqvae.ResidualQuantizer(keras_vqvae.ProjectedQuantizer(VQ(64, seed=0, **keywords), 8), 3)
    model = keras.Sequential([keras.Input((16,)), quantizer])
    quantizer.adapt(x[:7000], seed=0, verbose=0)
    model.compile(keras.optimizers.Adam(rate), "mse")
    batches = x[rng.integers(7000, size=300 * 256 * 4)]
    explained = []
    for part in np.split(batches, 4):
        model.fit(part, part, batch_size=256, shuffle=False, verbose=0)
        explained.append(float(1 - np.square(model.predict(x[7000:], verbose=0) - x[7000:]).mean() / x[7000:].var()))
    return explained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--dim", type=int, default=16, help="dimensions of the encoder's output")
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    if arguments.alone:
        rows = []
        for rate in (1e-3, 3e-3):
            for keywords in ({}, {"ema_decay": 0.99}, {"distance": "direction"}):
                explained = [f"{value:.3f}" for value in alone(rate, **keywords)]
                rows.append({"rate": rate, "stage": str(keywords), "explained": ", ".join(explained)})
        timing.report("compositions_alone", rows)
        return
    train, test = (x.reshape(len(x), -1) for x in images.load("digits"))
    rows = [{"stage": "the mean of the data", "error": f"{((test - train.mean(0)) ** 2).mean():.4f}"}]
    for name, stage in STAGES.items():
        keras.utils.set_random_seed(0)
        encoder, decoder = keras_vqvae.build(64, embedding_dim=arguments.dim)
        model = keras_vqvae.VQVAE(encoder, keras_vqvae.ResidualQuantizer(stage(), 3), decoder)
        model.compile(keras.optimizers.Adam(1e-3), "mse")
        # An epoch has 24 steps: 23 full batches of 64, and a smaller one.
        model.fit(train, batch_size=64, epochs=-(-arguments.steps // 24), verbose=0)
        error = ((model.predict(test, verbose=0) - test) ** 2).mean()
        rows.append({"stage": name, "error": f"{error:.4f}"})
        print(rows[-1], flush=True)
    timing.report("compositions", rows)


if __name__ == "__main__":
    main()
