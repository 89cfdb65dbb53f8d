"""Tests the start of the moving average, in which codes forget early positions of the vectors."""

import keras
import numpy as np
import oracle
import pytest
from helpers import built, draw, numpy
from sklearn.cluster import KMeans

import keras_vqvae


def vector(num_embeddings, **keywords):
    return keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.7, seed=1, **keywords)


@pytest.mark.parametrize("size", [5, 20, 200])
def test_codes_follow_the_papers_moving_average_with_a_growing_decay(size):
    """With few vectors per code, the decay starts as for ten per code. It reaches `ema_decay` after 47 steps."""
    layer = built(vector(4, dead_code_threshold=0), 2)
    expected = oracle.MovingAverage(numpy(layer.codebook), 0.7)
    for step in range(55):
        x = draw(size, 2, seed=step)
        layer(x, training=True)
        expected.update(x)
        if step == 9:
            # A saved layer continues where it was.
            saved, layer = layer, built(vector(4, dead_code_threshold=0), 2)
            layer.set_weights(saved.get_weights())
        if step == 19:
            # A batch without valid vectors does not count as a step.
            layer(np.full((3, 2), np.nan, "float32"), training=True)
    np.testing.assert_allclose(numpy(layer.codebook), expected.codebook, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(numpy(layer.ema_counts), expected.counts, rtol=1e-4)


def test_training_continues_from_the_counts_of_adapt():
    x = draw(1000, 4)
    layer = vector(8, dead_code_threshold=0)
    counts = layer.adapt(x, verbose=0) * 8 / 1000
    batch = x[:100]
    chosen = np.bincount(numpy(layer.encode(batch)), minlength=8)
    layer(batch, training=True)
    np.testing.assert_allclose(numpy(layer.ema_counts), 0.7 * counts + 0.3 * chosen, rtol=1e-5)


def test_stages_of_a_residual_end_near_greedy_k_means():
    """The error was 45% larger when the last stage averaged over all residuals since the start of training."""
    x = draw(1024, 8) * 0.8 ** np.arange(8, dtype="float32")
    inner = keras_vqvae.VectorQuantizer(16, ema_decay=0.99, seed=1)
    identity = keras.layers.Dense(8, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((8,)), identity, keras_vqvae.ResidualQuantizer(inner, 4)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    # `train_on_batch`, because `fit` with epochs of one batch takes several times as long.
    for _ in range(200):
        model.train_on_batch(x, x)
    rest = x
    for seed in range(4):
        means = KMeans(16, n_init=1, random_state=seed).fit(rest)
        rest = rest - means.cluster_centers_[means.labels_]
    assert oracle.mean_square(model.predict(x, verbose=0) - x) < 1.1 * oracle.mean_square(rest)
