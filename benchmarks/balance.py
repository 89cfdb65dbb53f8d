"""How much of the variance of embeddings a `VQVAE` explains, at several scales and by either loss.

The rows have length 1 times the scale, as text embeddings do; the means of their 200 clusters explain .64.

KERAS_BACKEND=torch python -m benchmarks.balance --seeds 0 1 2
KERAS_BACKEND=torch python -m benchmarks.balance --scales 1e-3 1 1e3 --normalizations
"""

import argparse

import keras
import numpy as np
from keras import layers

import keras_vqvae
from benchmarks import timing

QUANTIZERS = {
    "VectorQuantizer(1024)": lambda seed: keras_vqvae.VectorQuantizer(1024, seed=seed),
    "residual of 3 x 256, EMA": lambda seed: keras_vqvae.ResidualQuantizer(
        keras_vqvae.VectorQuantizer(256, ema_decay=0.99, seed=seed), 3
    ),
    "projected residual FSQ": lambda seed: keras_vqvae.ProjectedQuantizer(
        keras_vqvae.ResidualQuantizer(keras_vqvae.FiniteScalarQuantizer((8, 5, 5, 5)), 3), 4
    ),
}
SIZE, DIM, TRAINED = 768, 32, 6144


def embeddings(rows: int = 8192) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, SIZE))
    x = centres[rng.integers(0, 200, rows)] + 0.7 * rng.standard_normal((rows, SIZE))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")


def explained(name: str, x: np.ndarray, seed: int, loss: str, normalizations: bool) -> float:
    """1 minus error / variance, on rows that were not trained on."""
    keras.utils.set_random_seed(seed)
    train, test = x[:TRAINED], x[TRAINED:]
    encoder, decoder = keras_vqvae.build(input_size=SIZE, embedding_dim=DIM)
    if normalizations:
        scale = {"axis": None, "mean": float(train.mean()), "variance": float(train.var())}
        first, inverse = layers.Normalization(**scale), layers.Normalization(**scale, invert=True)
        inputs, latents = keras.Input((SIZE,)), keras.Input((DIM,))
        encoder, decoder = keras.Model(inputs, encoder(first(inputs))), keras.Model(latents, inverse(decoder(latents)))
    model = keras_vqvae.VQVAE(encoder, QUANTIZERS[name](seed), decoder)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(train, batch_size=256, epochs=20, verbose=0)
    return 1 - np.square(model.predict(test, verbose=0) - test).mean() / test.var(0).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.03, 0.3, 1, 5, 30])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--losses", nargs="+", default=["normalized_mse", "mse"])
    parser.add_argument("--normalizations", action="store_true", help="around the network")
    arguments = parser.parse_args()
    x = embeddings()
    rows = []
    for name in QUANTIZERS:
        for loss in arguments.losses:
            row = {"quantizer": name, "loss": loss}
            for scale in arguments.scales:
                found = (
                    explained(name, np.float32(scale) * x, seed, loss, arguments.normalizations)
                    for seed in arguments.seeds
                )
                row[f"{scale:g}"] = " / ".join(f"{value:.3f}" for value in found)
            rows.append(row)
            print(row, flush=True)
    timing.report("balance", rows)


if __name__ == "__main__":
    main()
