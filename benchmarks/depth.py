"""Codes with several levels: a prior over all of them in one sequence, or with a head that goes through the levels.

KERAS_BACKEND=torch python -m benchmarks.depth --data-dir FOLDER_OF_IDX_FILES

The second is RQ-Transformer's (Lee et al., 2022, section 3.2): one Transformer over the places, whose inputs are sums
of the levels' embeddings, and a small one over the levels of each place. Nats a code of test images, beside parameters
and the time of a step.
"""

import argparse
import math
import time

import keras
import numpy as np
from keras import layers, ops

import keras_vqvae
from benchmarks import prior, timing
from examples import images
from keras_vqvae.arguments import Tensor
from keras_vqvae.models.transformer import TransformerBlock

BATCH_SIZE = 32
HEADS = 4


class DepthPrior(keras.Model):
    """From codes `[batch, places, levels]` to their logits `[batch, places, levels, K]`."""

    def __init__(self, num_embeddings: int, places: int, levels: int, num_layers: int, depth_layers: int, width: int):
        super().__init__()
        self.num_embeddings, self.levels, self.width = num_embeddings, levels, width
        self.codes = layers.Embedding(levels * num_embeddings, width)
        self.places, self.depths = layers.Embedding(places, width), layers.Embedding(levels, width)
        self.place_blocks = [TransformerBlock(width, HEADS, 0.0, name=f"place_{i}") for i in range(num_layers)]
        self.depth_blocks = [TransformerBlock(width, HEADS, 0.0, name=f"depth_{i}") for i in range(depth_layers)]
        self.norm = layers.LayerNormalization()
        self.heads = [layers.Dense(num_embeddings, name=f"head_{i}") for i in range(levels)]

    def call(self, codes: Tensor) -> Tensor:
        vectors = self.codes(codes + self.num_embeddings * ops.arange(self.levels))
        # What is known at a place is the places before it: `[batch, places, levels, H]` -> `[batch, places, H]`
        x = ops.pad(ops.sum(vectors, axis=2)[:, :-1], ((0, 0), (1, 0), (0, 0)))
        x = x + self.places(ops.arange(x.shape[1]))
        for block in self.place_blocks:
            x = block(x, causal=True)
        # At a level the levels before it, summed; at the first what the places say.
        before = ops.cumsum(vectors, axis=2)[:, :, :-1]
        x = ops.concatenate([ops.expand_dims(x, 2), before], axis=2)
        x = ops.reshape(x, (-1, self.levels, self.width)) + self.depths(ops.arange(self.levels))
        for block in self.depth_blocks:
            x = block(x, causal=True)
        x = ops.reshape(self.norm(x), (-1, *codes.shape[1:], self.width))
        return ops.stack([head(x[:, :, level]) for level, head in enumerate(self.heads)], axis=2)


def train_codes(arguments: argparse.Namespace) -> list[np.ndarray]:
    """Codes `[samples, places, levels]` of images to train on and to test."""
    train, test = images.load(arguments.dataset, arguments.data_dir)
    train = train[: arguments.train]
    level = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=0)
    quantizer = keras_vqvae.ResidualQuantizer(level, arguments.levels, seed=0)
    model = prior.train_autoencoder(train, quantizer, arguments.epochs)
    return [
        model.encode(part, batch_size=500, verbose=0).reshape(len(part), -1, arguments.levels) for part in (train, test)
    ]


def fit(
    name: str, model: keras.Model, loss: keras.Loss | None, train: np.ndarray, test: np.ndarray, epochs: int
) -> tuple[dict, float]:
    """Returns a row, and the seconds that training took."""
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * math.ceil(len(train) / BATCH_SIZE))
    model.compile(keras.optimizers.AdamW(rate), loss=loss)
    # A prior's targets are its inputs.
    data, test_data = ((part,) if loss is None else (part, part) for part in (train, test))
    start = time.perf_counter()
    model.fit(*data, batch_size=BATCH_SIZE, epochs=epochs, verbose=2)
    seconds = time.perf_counter() - start
    nats = model.evaluate(*test_data, batch_size=500, verbose=0, return_dict=True)["loss"]
    bits = nats * train[0].size / math.log(2)
    step = 1e3 * seconds / (epochs * len(train) / BATCH_SIZE)
    row = {"prior": name, "epochs": epochs, "nats": nats, "bits an image": bits}
    return {**row, "parameters": model.count_params(), "ms a step": step}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--train", type=int, default=20_000, help="images to train on")
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--prior-epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--depth-layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = train_codes(arguments)
    _, places, levels = train.shape
    sizes = {"num_layers": arguments.layers, "num_heads": HEADS, "hidden_dim": arguments.width, "dropout": 0.0}
    flat = keras_vqvae.AutoregressivePrior(arguments.codes, (places, levels), index_shape=(levels,), seed=0, **sizes)
    row, seconds = fit("one sequence", flat, None, train, test, arguments.prior_epochs)
    rows, epochs = [row], arguments.prior_epochs
    for name in ("a head over the levels, as many epochs", "a head over the levels, as long"):
        deep = DepthPrior(arguments.codes, places, levels, arguments.layers, arguments.depth_layers, arguments.width)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        row, own_seconds = fit(name, deep, loss, train, test, epochs)
        rows.append(row)
        epochs = max(1, round(epochs * seconds / own_seconds))
    timing.report("depth", rows)


if __name__ == "__main__":
    main()
