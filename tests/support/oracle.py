"""Reimplements the papers' formulas in NumPy and float64."""

import itertools
import math

import numpy as np


def distances(vectors, codebook):
    vectors, codebook = np.asarray(vectors, "float64"), np.asarray(codebook, "float64")
    return np.square(vectors[..., None, :] - codebook).sum(-1)


def nearest_code(vectors, codebook):
    return distances(vectors, codebook).argmin(-1)


def assert_nearest(indices, vectors, codebook, rtol=1e-5):
    """Asserts that each index names a nearest code, within the precision of float32 distances."""
    every = distances(vectors, codebook)
    chosen = np.take_along_axis(every, np.asarray(indices)[..., None].astype("int64"), -1)[..., 0]
    scale = np.square(np.asarray(vectors, "float64")).sum(-1) + np.square(np.asarray(codebook, "float64")).sum(-1).max()
    np.testing.assert_array_less(chosen - every.min(-1), rtol * scale + 1e-12)


def one_hot(indices, num_embeddings):
    return np.eye(num_embeddings)[np.asarray(indices).reshape(-1)]


def mean_square(difference, mask=None):
    square = np.square(np.asarray(difference, "float64"))
    if mask is None:
        return square.mean()
    square = square[np.asarray(mask, bool)]
    return square.mean() if square.size else 0.0


def perplexity(indices, num_embeddings):
    shares = one_hot(indices, num_embeddings).mean(0)
    shares = shares[shares > 0]
    return np.exp(-np.sum(shares * np.log(shares)))


class MovingAverage:
    """The codebook of appendix A.1 as in the paper: the ratio of two moving averages, `N` and `m`.

    With `warm_up` the decay is smaller in the first steps.
    """

    def __init__(self, codebook, decay, warm_up=True):
        self.warm_up, self.steps = warm_up, 0
        self.codebook = np.array(codebook, "float64")
        self.decay = decay
        self.counts = np.zeros(len(codebook))
        self.sums = np.zeros_like(self.codebook)

    def update(self, vectors):
        chosen = one_hot(nearest_code(vectors, self.codebook), len(self.codebook))
        decay = self.decay
        if self.warm_up:
            decay = min(decay, max(self.steps / (20 + self.steps), 1 - len(vectors) / (10 * len(self.codebook))))
        self.counts = decay * self.counts + (1 - decay) * chosen.sum(0)
        self.sums = decay * self.sums + (1 - decay) * chosen.T @ np.asarray(vectors, "float64")
        self.steps += 1
        hit = self.counts > 0
        self.codebook[hit] = self.sums[hit] / self.counts[hit, None]


def _areas(line, size):
    """Returns the means of `size` equal parts of a line. An element on a border counts in both parts."""
    borders = np.arange(size + 1) * len(line) / size
    return np.array([line[int(a) : math.ceil(b)].mean() for a, b in itertools.pairwise(borders)])


def _interpolated(line, size, interpolation):
    places = (np.arange(size) + 0.5) * len(line) / size - 0.5
    if interpolation == "nearest":
        return line[np.floor(places + 0.5).astype(int)]
    if interpolation == "linear":
        return np.interp(places, np.arange(len(line)), line)
    # The cubic polynomial through two elements. Its slope at each is 0.75 times the difference of the two neighbors.
    start = np.floor(places).astype(int)
    a, b, c, d = (line[np.clip(start + step, 0, len(line) - 1)] for step in range(-1, 3))
    t, left, right = places - start, 0.75 * (c - a), 0.75 * (d - b)
    return b + left * t + (3 * (c - b) - 2 * left - right) * t**2 + (2 * (b - c) + left + right) * t**3


def resized(x, sizes, interpolation="linear"):
    """Resizes the axes of `[N, *old, D]`: by area means to smaller sizes, by interpolation to larger ones."""
    for axis, size in enumerate(sizes, start=1):
        if size < x.shape[axis]:
            x = np.apply_along_axis(_areas, axis, x, size)
        elif size > x.shape[axis]:
            x = np.apply_along_axis(_interpolated, axis, x, size, interpolation)
    return x
