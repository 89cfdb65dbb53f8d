"""Tests that the commitment loss starts only when the reconstruction explains some variance of the data."""

import keras
import numpy as np
import pytest
from helpers import compiled, draw, numpy
from keras import layers, ops

import keras_vqvae


def make(loss="normalized_mse", **keywords):
    keras.utils.set_random_seed(0)
    encoder, decoder = keras_vqvae.build(8, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
    quantizer = keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=1, **keywords)
    return compiled(keras_vqvae.VQVAE(encoder, quantizer, decoder), keras.optimizers.SGD(0.0), loss, traced=False)


def commitment_counted(model, y, y_pred, training=True):
    """Returns the fraction of the commitment loss that a step with these targets and outputs includes."""
    found = []
    with model._recording([]):
        model(ops.convert_to_tensor(y), training=training)
        commitment = numpy(model._step.passes[0].losses["commitment_loss"])
        for passes in (model._step.passes, []):
            model._step.passes = passes
            loss = model.compute_loss(ops.convert_to_tensor(y), None, ops.convert_to_tensor(y_pred), training=training)
            found.append(float(numpy(loss)))
    # Without a recorded pass the commitment loss is not known, so the second loss includes it in full.
    return 1 - (found[1] - found[0]) / commitment


@pytest.mark.parametrize(
    ("explained", "counted"),
    [
        (-0.5, 0.0),
        (0.0, 0.0),
        pytest.param(0.025, 0.25, marks=pytest.mark.each_backend),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.5, 1.0),
        (1.0, 1.0),
    ],
)
def test_commitment_grows_until_a_tenth_of_the_variance_is_explained(explained, counted):
    y = draw(20, 8)
    error = draw(20, 8, seed=1)
    error *= np.sqrt((1 - explained) * y.var(0).mean() / np.square(error).mean())
    assert commitment_counted(make(), y, y + error) == pytest.approx(counted, abs=2e-3)


def test_commitment_counts_in_full_in_evaluation_and_with_another_loss():
    y = draw(20, 8)
    assert commitment_counted(make(), y, 0 * y, training=False) == pytest.approx(1, abs=1e-3)
    assert commitment_counted(make("mse"), y, 0 * y) == pytest.approx(1, abs=1e-3)
    assert commitment_counted(make(), 0 * y, 0 * y) == pytest.approx(1, abs=1e-3)


def test_batches_of_one_sample_use_the_variance_of_earlier_batches():
    model, y = make(), draw(20, 8)
    for each in y:
        model.train_on_batch(each[None])
    error = np.square(model.predict(y[:1], verbose=0) - y[:1]).mean()
    model.reset_metrics()
    logs = model.train_on_batch(y[:1], return_dict=True)
    explained = 1 - error / np.concatenate([y, y[:1]]).var(0).mean()
    expected = np.clip(explained / 0.1, 0, 1) * logs["commitment_loss"]
    weight = 8 / 3 / 8 / np.concatenate([y, y[:1]]).var(0).mean()
    assert logs["loss"] == pytest.approx(weight * error + expected, rel=1e-4)


@pytest.mark.each_backend
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_an_encoder_that_the_decoder_ignores_does_not_change(ema_decay):
    """A new decoder passes back almost no gradient. Until it does, the commitment loss must not shrink the vectors."""
    encoder, _ = keras_vqvae.build(8, embedding_dim=3, encoder_sizes=(6,))
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(8, kernel_initializer="zeros", trainable=False)])
    quantizer = keras_vqvae.VectorQuantizer(16, ema_decay=ema_decay, seed=0)
    model = compiled(keras_vqvae.VQVAE(encoder, quantizer, decoder), keras.optimizers.SGD(0.1))
    before, x = encoder.get_weights(), draw(24, 8)
    logs = model.train_on_batch(x, return_dict=True)
    assert logs["commitment_loss"] > 0
    assert logs["explained_variance"] < 0
    for weight, old in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_the_reduced_commitment_passes_no_gradient_to_the_decoder():
    x = draw(24, 8)
    encoder = keras.Sequential([keras.Input((8,)), layers.Dense(8, kernel_initializer="identity", trainable=False)])
    decoder = keras.Sequential([keras.Input((8,)), layers.Dense(8, kernel_initializer="identity")])
    quantizer = keras_vqvae.VectorQuantizer(4, ema_decay=0.9, seed=0)
    model = compiled(keras_vqvae.VQVAE(encoder, quantizer, decoder), keras.optimizers.SGD(1.0))
    model(x)
    quantizer.set_codebook(x[:4])
    decoder.layers[-1].kernel.assign(0.1 * np.eye(8))
    output = model.predict(x, verbose=0)
    explained = 1 - np.square(output - x).mean() / x.var(0).mean()
    assert 0.01 < explained < 0.09
    logs = model.train_on_batch(x, return_dict=True)
    assert logs["commitment_loss"] > 0.1
    gradient = 2 / 8 / x.var(0).mean() * (output - x).mean(0) / 8
    np.testing.assert_allclose(numpy(decoder.layers[-1].bias), -gradient, rtol=1e-3, atol=1e-6)
