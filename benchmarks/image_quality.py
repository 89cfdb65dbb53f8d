"""Measures the quality of reconstructions and samples: errors, structural similarity and scores of a classifier."""

import pathlib

import keras
import numpy as np
from keras import layers

from examples import images


def train_classifier(path: pathlib.Path, dataset: str, data_dir: str | None, seed: int = 0) -> keras.Model:
    """Returns a small classifier of the images. It is trained once and saved at `path`."""
    if not path.exists():
        keras.utils.set_random_seed(seed)
        train, _ = images.load(dataset, data_dir)
        labels, _ = images.load_labels(dataset, data_dir)
        model = keras.Sequential(
            [
                keras.Input(train.shape[1:]),
                layers.Conv2D(16, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        model.fit(train, labels, batch_size=128, epochs=60 if dataset == "digits" else 4, verbose=0)
        model.save(path)
    return keras.models.load_model(path)


class Judge:
    """Compares images with the test images, using the predictions and the last hidden layer of a classifier."""

    def __init__(self, classifier: keras.Model, test: np.ndarray, labels: np.ndarray):
        self.test, self.labels = test, labels
        self._outputs = keras.Model(classifier.inputs, [classifier.layers[-2].output, classifier.outputs[0]])
        self._features, classes = self._outputs.predict(test, batch_size=500, verbose=0)
        self.accuracy = float(np.mean(classes.argmax(-1) == labels))

    def reconstructions(self, made: np.ndarray) -> dict[str, float]:
        """Returns the errors and scores of reconstructions of the test images."""
        return {
            "squared error": float(np.mean(np.square(made - self.test))),
            "L1": float(np.mean(np.abs(made - self.test))),
            "SSIM": similarity(made, self.test),
            **self.samples(made, self.labels),
        }

    def samples(self, made: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns the Frechet distance between `made` and the test images, and the classifier's accuracy on `made`."""
        features, classes = self._outputs.predict(made, batch_size=500, verbose=0)
        return {
            "Frechet": frechet_distance(features, self._features),
            "accuracy": float(np.mean(classes.argmax(-1) == labels)),
        }


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Mean structural similarity of images in 0..1, with Gaussian windows of sigma 1.5 (Wang et al., 2004)."""
    from scipy import ndimage

    def blurred(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5)

    one, other = one.astype("float64"), other.astype("float64")
    means = blurred(one), blurred(other)
    variances = [blurred(x * x) - mean**2 for x, mean in zip((one, other), means, strict=True)]
    covariance = blurred(one * other) - means[0] * means[1]
    luminance = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
    return float(np.mean(luminance * (2 * covariance + 0.03**2) / (sum(variances) + 0.03**2)))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance between normal distributions fitted to two sets of vectors `[N, D]` (Heusel et al., 2017)."""
    one, other = one.astype("float64"), other.astype("float64")
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # The trace of the matrix square root of `a @ b`, whose eigenvalues are real and not negative.
    root = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    return float(np.square(one.mean(0) - other.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root)
