"""Which codebook initializer should be the default? Compares the error and the codebook usage on test images.

Dead codes move under EMA, and stay where they are in a codebook that the optimizer trains.

KERAS_BACKEND=torch python -m benchmarks.initializers --data-dir FOLDER_OF_IDX_FILES
"""

import argparse

import keras
import numpy as np

import keras_vqvae
from benchmarks import networks
from examples import images


def initializers(num_embeddings: int, dim: int, seed: int) -> dict[str, keras.initializers.Initializer]:
    normal, uniform = keras.initializers.RandomNormal, keras.initializers.RandomUniform
    return {
        "normal(1)": normal(stddev=1.0, seed=seed),
        "normal(1 / sqrt(D))": normal(stddev=dim**-0.5, seed=seed),
        "normal(.05)": normal(stddev=0.05, seed=seed),
        "normal(.01)": normal(stddev=0.01, seed=seed),
        "uniform(1)": uniform(-1.0, 1.0, seed=seed),
        "uniform(.05)": uniform(-0.05, 0.05, seed=seed),
        "uniform(1 / K)": uniform(-1 / num_embeddings, 1 / num_embeddings, seed=seed),
        "zeros": keras.initializers.Zeros(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="fashion_mnist", choices=images.DATASETS)
    parser.add_argument("--num-embeddings", type=int, default=256)
    parser.add_argument("--network", default="conv", choices=["conv", "mlp"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    train, test = images.load(arguments.dataset, arguments.data_dir)
    order = np.random.default_rng(arguments.seed)
    train = train[order.integers(len(train), size=arguments.steps * arguments.batch_size)]
    dim = 32
    if arguments.network == "mlp":
        train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    print(f"{arguments.dataset}, {arguments.network}, K = {arguments.num_embeddings}, {arguments.steps} steps")
    for decay in (None, 0.99):
        for name, initializer in initializers(arguments.num_embeddings, dim, arguments.seed).items():
            keras.utils.set_random_seed(arguments.seed)
            if arguments.network == "mlp":
                encoder, decoder = keras_vqvae.build(train.shape[1], embedding_dim=dim)
            else:
                encoder, decoder = networks.small_autoencoder(train.shape[1], dim)
            quantizer = keras_vqvae.VectorQuantizer(
                arguments.num_embeddings,
                ema_decay=decay,
                dead_code_threshold=0 if decay is None else 0.1,
                embeddings_initializer=initializer,
                seed=arguments.seed,
            )
            model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
            model.compile(keras.optimizers.Adam(arguments.learning_rate), "mse")
            model.fit(train, batch_size=arguments.batch_size, epochs=1, shuffle=False, verbose=0)
            result = model.evaluate(test, batch_size=500, verbose=0, return_dict=True)
            print(
                f"{'optimizer' if decay is None else 'EMA':9} {name:20} "
                f"error {result['reconstruction_loss']:.5f} used {result['codebook_usage']:6.1%} "
                f"perplexity {result['perplexity']:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
