"""Do the parts of a residual learn? Three stages of 32 codes on the digits, test error by kind of stage.

KERAS_BACKEND=jax python -m benchmarks.compositions
"""

import argparse
from collections.abc import Callable

import keras

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--dim", type=int, default=16, help="of the encoder's output")
    arguments = parser.parse_args()
    train, test = (x.reshape(len(x), -1) for x in images.load("digits"))
    rows = [{"stage": "the mean of the data", "error": f"{((test - train.mean(0)) ** 2).mean():.4f}"}]
    for name, stage in STAGES.items():
        keras.utils.set_random_seed(0)
        encoder, decoder = keras_vqvae.build(64, embedding_dim=arguments.dim)
        model = keras_vqvae.VQVAE(encoder, keras_vqvae.ResidualQuantizer(stage(), 3), decoder)
        model.compile(keras.optimizers.Adam(1e-3))
        # 23 batches of 64 an epoch.
        model.fit(train, batch_size=64, epochs=-(-arguments.steps // 24), verbose=0)
        error = ((model.predict(test, verbose=0) - test) ** 2).mean()
        rows.append({"stage": name, "error": f"{error:.4f}"})
        print(rows[-1], flush=True)
    timing.report("compositions", rows)


if __name__ == "__main__":
    main()
