"""Does the codebook learn? Trains a layer with `fit` on 4 x 4 patches of Fashion-MNIST, without networks around it.

Vector quantization is the only source of error, so the target is the error of k-means (scikit-learn) on equal patches.

    KERAS_BACKEND=jax python -m benchmarks.patches --data-dir FOLDER_OF_IDX_FILES
"""

import argparse
import time

import keras
import numpy as np
from sklearn import cluster

import keras_vqvae
from examples import images

INITIALIZERS = {
    "default": {},
    "normal(1)": {"embeddings_initializer": lambda seed: keras.initializers.RandomNormal(stddev=1.0, seed=seed)},
}


def patches(data: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns `count` random 4 x 4 patches, `[count, 16]`."""
    rng = np.random.default_rng(seed)
    image = rng.integers(len(data), size=count)
    top, left = rng.integers(25, size=(2, count))
    window = np.arange(4)
    rows, columns = (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None, :]
    return data[image[:, None, None], rows, columns, 0].reshape(count, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--num-embeddings", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    train, test = images.load("fashion_mnist", arguments.data_dir)
    train = patches(train, 100 * arguments.batch_size, seed=arguments.seed)
    test = patches(test, 50_000, seed=arguments.seed + 1)
    reference = cluster.KMeans(arguments.num_embeddings, n_init=1, random_state=arguments.seed).fit(train)
    print(f"k-means error {-reference.score(test) / test.size:.5f}", flush=True)
    for name, keywords in INITIALIZERS.items():
        keywords = {key: make(arguments.seed) for key, make in keywords.items()}
        keras.utils.set_random_seed(arguments.seed)
        quantizer = keras_vqvae.VectorQuantizer(
            arguments.num_embeddings, ema_decay=0.99, seed=arguments.seed, **keywords
        )
        identity = keras.layers.Identity
        model = keras_vqvae.VQVAE(identity(), quantizer, identity())
        model.compile(loss="mse")
        start = time.perf_counter()
        history = model.fit(train, batch_size=arguments.batch_size, epochs=arguments.steps // 100, verbose=0).history
        seconds = time.perf_counter() - start
        result = model.evaluate(test, batch_size=arguments.batch_size, verbose=0, return_dict=True)
        print(
            f"{keras.backend.backend():10} {name:10} error {result['reconstruction_loss']:.5f} "
            f"used {result['codebook_usage']:.1%} (last epoch of training {history['codebook_usage'][-1]:.1%}) "
            f"perplexity {result['perplexity']:.0f} ({seconds:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
