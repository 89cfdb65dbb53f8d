"""Do the backends train alike? Trains on each from the same weights and batches, and compares every epoch.

python -m benchmarks.agreement --dataset digits
python -m benchmarks.agreement --dataset fashion_mnist --data-dir FOLDER_OF_IDX_FILES
"""

import argparse
import json
import os
import subprocess
import sys

BACKENDS = ("jax", "tensorflow", "torch")
COLUMNS = {"val_reconstruction_loss": "error", "val_perplexity": "perplexity", "val_codebook_usage": "usage"}


def train(arguments: argparse.Namespace) -> dict[str, list[float]]:
    import keras
    import numpy as np

    import keras_vqvae
    from benchmarks import networks
    from examples import images

    rng = np.random.default_rng(arguments.seed)
    train, test = images.load(arguments.dataset, arguments.data_dir)
    train, test = train[: arguments.samples], test[: arguments.samples]
    keras.utils.set_random_seed(arguments.seed)
    encoder, decoder = networks.small_autoencoder(train.shape[1])
    quantizer = keras_vqvae.VectorQuantizer(
        arguments.num_embeddings, ema_decay=0.99 if arguments.owner == "ema" else None, seed=arguments.seed
    )
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.build((None, *train.shape[1:]))
    # Initialize with NumPy, because the backends draw different numbers for the same seed.
    for weight in (*encoder.weights, *decoder.weights):
        if len(weight.shape) > 1:
            weight.assign(rng.normal(size=weight.shape) / np.prod(weight.shape[:-1]) ** 0.5)
    codes = rng.normal(size=quantizer.codebook.shape)
    quantizer.set_codebook(codes / codes.shape[1] ** 0.5)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    train = train[rng.permutation(len(train))]
    history = model.fit(
        train, batch_size=64, epochs=arguments.epochs, shuffle=False, validation_data=(test,), verbose=0
    ).history
    return {column: history[name] for name, column in COLUMNS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--num-embeddings", type=int, default=128)
    parser.add_argument("--owner", default="ema", choices=["ema", "optimizer"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(train(arguments)))
        return
    found = {}
    for backend in BACKENDS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.agreement", *sys.argv[1:], "--worker"],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        found[backend] = json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments.dataset}, codebook of {arguments.num_embeddings} owned by {arguments.owner}, test images\n")
    print("| epoch |", " | ".join(f"{column} {backend}" for column in COLUMNS.values() for backend in BACKENDS), "|")
    print("| --- " * (1 + len(COLUMNS) * len(BACKENDS)) + "|")
    formats = {"error": "{:.5f}", "perplexity": "{:.1f}", "usage": "{:.1%}"}
    for epoch in range(arguments.epochs):
        cells = [formats[c].format(found[b][c][epoch]) for c in COLUMNS.values() for b in BACKENDS]
        print(f"| {epoch + 1} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
