"""Which methods keep their codes in use? Compares error, usage and perplexity with vector-quantize-pytorch's.

KERAS_BACKEND=torch python -m benchmarks.study --data-dir FOLDER_OF_IDX_FILES --codes 1024 --seeds 0 1 2
KERAS_BACKEND=torch python -m benchmarks.study --family --data-dir FOLDER_OF_IDX_FILES
KERAS_BACKEND=torch python -m benchmarks.study --family --codes 16384 65536 --steps 600 --data-dir FOLDER_OF_IDX_FILES
KERAS_BACKEND=torch python -m benchmarks.study --family --codes 16384 65536 --times --data-dir FOLDER_OF_IDX_FILES
KERAS_BACKEND=torch python -m benchmarks.study --residuals --seeds 0 1 2 --data-dir FOLDER_OF_IDX_FILES
KERAS_BACKEND=torch python -m benchmarks.study --thresholds --seeds 0 1 2 --data-dir FOLDER_OF_IDX_FILES
KERAS_BACKEND=torch python -m benchmarks.study --projected --seeds 0 1 2 --data-dir FOLDER_OF_IDX_FILES
python -m benchmarks.study --short

Each run gives one row, saved in `results/study/` when the run ends. Runs with a saved row are skipped.
"""

import argparse
import json
import time

import keras
import numpy as np

from benchmarks import methods, networks, timing
from examples import images

FOLDER = timing.RESULTS / "study"


class Outputs(keras.Model):
    """Returns the reconstructions and the indices of a model."""

    def __init__(self, model: keras.Model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model.autoencode(inputs, training=False)[::2]


def build(name: str, num_embeddings: int, seed: int, train: np.ndarray, loss: str) -> keras.Model:
    keras.utils.set_random_seed(seed)
    encoder, decoder = networks.small_autoencoder(train.shape[1], embedding_dim=32)
    model = methods.ALL[name](encoder, decoder, num_embeddings, seed, train)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def step_times(name: str, num_embeddings: int, train: np.ndarray, loss: str, steps: int = 5) -> dict:
    """Returns the median and the largest time of a training step, after two steps."""
    model = build(name, num_embeddings, 0, train, loss)
    times = []
    for batch in train[: (2 + steps) * 64].reshape(2 + steps, 64, *train.shape[1:]):
        start = time.perf_counter()
        model.train_on_batch(batch, batch)
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms per step": float(np.median(times[2:])), "largest": max(times[2:])}


def run(name: str, num_embeddings: int, seed: int, train: np.ndarray, test: np.ndarray, steps: int, loss: str) -> dict:
    """Trains one model, and evaluates it on the test images."""
    model = build(name, num_embeddings, seed, train, loss)
    batches = train[np.random.default_rng(seed).integers(len(train), size=steps * 64)]
    start = time.perf_counter()
    model.fit(batches, batches, batch_size=64, shuffle=False, verbose=0)
    seconds = time.perf_counter() - start
    # The peer needs memory for each vector and code, so batches are as small as in training.
    outputs, codes = Outputs(model).predict(test, batch_size=64, verbose=0)
    # One row for each 4 x 4 pixels. If a vector has several indices, usage counts their combinations.
    codes = codes.reshape(len(test) * (test.shape[1] // 4) ** 2, -1)
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    fractions = counts / counts.sum()
    return {
        "error": float(np.mean(np.square(outputs - test))),
        "used": len(fractions) / methods.number_of_codes(name, num_embeddings),
        "perplexity": float(np.exp(-np.sum(fractions * np.log(fractions)))),
        "ms per step": 1e3 * seconds / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--methods", nargs="+", default=list(methods.METHODS), metavar="NAME")
    parser.add_argument("--family", action="store_true", help="compare quantizers with the same number of codes")
    parser.add_argument("--residuals", action="store_true", help="compare residual FSQ, by depth")
    parser.add_argument("--projected", action="store_true", help="compare residuals in 8 dimensions, by depth")
    parser.add_argument("--thresholds", action="store_true", help="compare thresholds and lengths of initial codes")
    parser.add_argument("--codes", type=int, nargs="+", default=[1024])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--loss",
        default="mse",
        help="the reconstruction loss, for example normalized_mse, which is the default of `VQVAE`",
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--times", action="store_true", help="time five steps of each method, without further training")
    parser.add_argument("--short", action="store_true", help="30 steps on the digits, 64 codes")
    arguments = parser.parse_args()
    if arguments.family:
        arguments.methods = list(methods.FAMILY)
    if arguments.residuals:
        arguments.methods = list(methods.RESIDUALS)
    if arguments.projected:
        arguments.methods = list(methods.PROJECTED)
    if arguments.thresholds:
        arguments.methods = [*methods.THRESHOLDS, *methods.LENGTHS]
    if arguments.short:
        arguments.dataset, arguments.codes, arguments.seeds, arguments.steps = "digits", [64], [0], 30
    train, test = images.load(arguments.dataset, arguments.data_dir)
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in arguments.seeds:
        for num_embeddings in arguments.codes:
            for name in arguments.methods:
                row = {"method": name, "K": num_embeddings, "seed": seed}
                if arguments.times:
                    print({**row, **step_times(name, num_embeddings, train, arguments.loss)}, flush=True)
                    continue
                file = (
                    FOLDER
                    / f"{arguments.dataset} {arguments.steps} {arguments.loss} {name} {num_embeddings} {seed}.json"
                )
                if not file.exists():
                    found = run(name, num_embeddings, seed, train, test, arguments.steps, arguments.loss)
                    file.write_text(json.dumps({**row, "backend": keras.backend.backend(), **found}))
                rows.append(json.loads(file.read_text()))
                print(rows[-1], flush=True)
    if rows:
        timing.report("study", rows)


if __name__ == "__main__":
    main()
