"""Should residual codes be one sequence? Compares this with a prior that has a separate Transformer over them.

KERAS_BACKEND=torch python -m benchmarks.depth --data-dir FOLDER_OF_IDX_FILES

The second prior is `AutoregressivePrior`, which follows RQ-Transformer (Lee et al., 2022, section 3.2). The table has
the nats per code of test images, the number of parameters, and the time per step.
"""

import argparse
import math
import time

import keras
import numpy as np
from keras import ops

import keras_vqvae
from benchmarks import prior, timing
from examples import images
from keras_vqvae.models.transformer import CodeTransformer
from keras_vqvae.types import Tensor

BATCH_SIZE = 32


class OneSequence(CodeTransformer):
    """A causal Transformer over all codes in one sequence, with the stages of each position in order."""

    def call(self, codes: Tensor, labels: Tensor, training: bool | None = None) -> Tensor:
        before = ops.concatenate([ops.full_like(codes[:, :1], self.num_embeddings), codes[:, :-1]], axis=1)
        positions = ops.arange(self.length)
        x = self.locate(self.embed(before, (positions - 1) % self.num_codebooks), positions, labels)
        for block in self.blocks:
            x = block(x, causal=True, training=training)
        return self.logits(x)


class OneSequencePrior(keras_vqvae.AutoregressivePrior):
    transformer_class = OneSequence


def train_codes(arguments: argparse.Namespace) -> list[np.ndarray]:
    """Returns the codes of training and of test images, each `[samples, positions, stages]`."""
    train, test = images.load(arguments.dataset, arguments.data_dir)
    train = train[: arguments.train]
    stage = keras_vqvae.VectorQuantizer(arguments.codes, ema_decay=0.99, seed=0)
    quantizer = keras_vqvae.ResidualQuantizer(stage, arguments.stages, seed=0)
    model = prior.train_autoencoder(train, quantizer, arguments.epochs)
    return [
        model.encode(part, batch_size=500, verbose=0).reshape(len(part), -1, arguments.stages) for part in (train, test)
    ]


def fit(name: str, model: keras.Model, train: np.ndarray, test: np.ndarray, epochs: int) -> dict:
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * math.ceil(len(train) / BATCH_SIZE))
    model.compile(keras.optimizers.AdamW(rate))
    start = time.perf_counter()
    model.fit(train, batch_size=BATCH_SIZE, epochs=epochs, verbose=2)
    step = 1e3 * (time.perf_counter() - start) / (epochs * len(train) / BATCH_SIZE)
    nats = model.evaluate(test, batch_size=500, verbose=0, return_dict=True)["loss"]
    row = {"prior": name, "nats": nats, "bits per image": nats * train[0].size / math.log(2)}
    return {**row, "parameters": model.count_params(), "ms per step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--train", type=int, default=20_000, help="images to train on")
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--prior-epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = train_codes(arguments)
    _, positions, stages = train.shape
    sizes = {"num_layers": arguments.layers, "hidden_dim": arguments.width, "dropout": 0.0, "seed": 0}
    rows = []
    for name, prior_class in (
        ("one sequence", OneSequencePrior),
        ("a Transformer over the stages", keras_vqvae.AutoregressivePrior),
    ):
        new = prior_class(arguments.codes, (positions, stages), index_shape=(stages,), **sizes)
        rows.append(fit(name, new, train, test, arguments.prior_epochs))
    timing.report("depth", rows)


if __name__ == "__main__":
    main()
