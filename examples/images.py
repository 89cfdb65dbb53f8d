"""Loads images, float32 `[samples, height, width, 1]` in 0..1, and builds networks for the examples and benchmarks."""

import functools
import gzip
import pathlib

import keras
import numpy as np

import keras_vqvae

DATASETS = ("digits", "fashion_mnist", "mnist")


def load(dataset: str = "digits", data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(train, test)`.

    Args:
        dataset: `"digits"`, 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, or `"fashion_mnist"`
            or `"mnist"`, 70,000 images of 28 x 28 pixels that Keras downloads.
        data_dir: A folder with the four IDX files of `"fashion_mnist"` or `"mnist"`, gzipped or not, to read instead of
            downloading.
    """
    return tuple(images for images, _ in _load(dataset, data_dir))


def load_labels(dataset: str = "digits", data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes of `(train, test)`, integers `[samples]` from 0 to 9."""
    return tuple(labels for _, labels in _load(dataset, data_dir))


def build_autoencoder(image_size: int, embedding_dim: int) -> tuple[keras.Model, keras.Model]:
    """Returns a convolutional encoder, with a vector for each 2 x 2 or 4 x 4 pixels, and its decoder."""
    sizes = {"filters": (32,) if image_size < 16 else (32, 64), "num_residual_blocks": 1}
    shape = (image_size, image_size, 1)
    return (
        keras_vqvae.build_conv_encoder(shape, embedding_dim, **sizes),
        keras_vqvae.build_conv_decoder(shape, embedding_dim, **sizes),
    )


@functools.cache
def _load(dataset: str, data_dir: str | None) -> list[tuple[np.ndarray, np.ndarray]]:
    if dataset not in DATASETS:
        raise ValueError(f"`dataset` must be one of {DATASETS}. Received: dataset={dataset!r}")
    if data_dir is not None:
        files = [[f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"] for part in ("train", "t10k")]
        parts = [[_read_idx(pathlib.Path(data_dir), file) for file in pair] for pair in files]
    elif dataset == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = digits.images * (255 / 16)
        parts = [(images[:1500], digits.target[:1500]), (images[1500:], digits.target[1500:])]
    else:
        parts = getattr(keras.datasets, dataset).load_data()
    return [(np.expand_dims(images.astype("float32") / 255, -1), labels.astype("int32")) for images, labels in parts]


def _read_idx(folder: pathlib.Path, name: str) -> np.ndarray:
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    # The file has a magic number whose last byte is the rank, the big-endian sizes, and the data.
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, "u1", offset=4 + 4 * content[3]).reshape(shape)
