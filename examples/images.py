"""Images for the examples and the benchmarks: float32 `[samples, height, width, 1]`, scaled to 0..1."""

import gzip
import pathlib

import keras
import numpy as np

DATASETS = ("digits", "fashion_mnist", "mnist")


def load(dataset: str = "digits", data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(train, test)`.

    Args:
        dataset: `"digits"`, 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, or `"fashion_mnist"`
            or `"mnist"`, 70,000 images of 28 x 28 pixels that Keras downloads.
        data_dir: A folder with the four IDX files of the latter two, gzipped or not, in place of the download.
    """
    if dataset not in DATASETS:
        raise ValueError(f"`dataset` must be one of {DATASETS}. Received: dataset={dataset!r}")
    if data_dir is not None:
        train, test = (_read_idx(pathlib.Path(data_dir), f"{part}-images-idx3-ubyte") for part in ("train", "t10k"))
    elif dataset == "digits":
        from sklearn.datasets import load_digits

        images = load_digits().images * (255 / 16)
        train, test = images[:1500], images[1500:]
    else:
        (train, _), (test, _) = getattr(keras.datasets, dataset).load_data()
    return tuple(np.expand_dims(images.astype("float32") / 255, -1) for images in (train, test))


def _read_idx(folder: pathlib.Path, name: str) -> np.ndarray:
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    # A magic number whose last byte is the rank, that many sizes, all big-endian, then the bytes.
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, "u1", offset=4 + 4 * content[3]).reshape(shape)
