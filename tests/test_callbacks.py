import csv

import keras
import numpy as np
import oracle
import pytest
from helpers import numpy
from keras import layers

import keras_vqvae


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 4)).astype("float32")


def nested(quantizer, dim=4):
    """Returns a model with the quantizer two models deep, after a layer that does nothing."""
    inner = keras.Sequential([keras.Input((dim,)), layers.Dense(dim, kernel_initializer="identity"), quantizer])
    model = keras.Sequential([keras.Input((dim,)), keras.Sequential([keras.Input((dim,)), inner])])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


@pytest.mark.each_backend
def test_the_monitor_reports_training_and_validation(x, tmp_path):
    quantizer = keras_vqvae.VectorQuantizer(16, dead_code_threshold=0, seed=2)
    model = nested(quantizer)
    # Evaluate first: this compiles an evaluation that counts nothing.
    model.evaluate(x, x, verbose=0)
    train, test = x[:40], x[40:]
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = model.fit(
        train, train, 8, epochs=3, verbose=0, validation_data=(test, test),
        callbacks=[keras_vqvae.CodebookMonitor(), logger],
    ).history  # fmt: skip
    codebook = numpy(quantizer.codebook)
    for prefix, part in (("", train), ("val_", test)):
        indices = oracle.nearest_code(part, codebook)
        # The codebook does not change, so every epoch has the same result.
        np.testing.assert_allclose(history[prefix + "perplexity"], [oracle.perplexity(indices, 16)] * 3, rtol=1e-5)
        np.testing.assert_allclose(history[prefix + "codebook_usage"], [len(np.unique(indices)) / 16] * 3)
    assert numpy(quantizer.code_counts).sum() == 3 * len(train)
    with (tmp_path / "log.csv").open() as file:
        assert {"perplexity", "val_codebook_usage"} <= set(next(csv.DictReader(file)))
    # After training, evaluation counts nothing again.
    model.evaluate(x, x, verbose=0)
    assert numpy(quantizer.code_counts).sum() == 3 * len(train)


@pytest.mark.parametrize("stages", [1, pytest.param(3, marks=pytest.mark.each_backend(slow=True))])
def test_the_monitor_agrees_with_the_models_own_metrics(x, stages):
    encoder, decoder = keras_vqvae.build(4, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
    quantizer = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(16, ema_decay=0.9), stages)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile()
    own = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: own.append(dict(logs)))
    monitored = model.fit(
        x, batch_size=8, epochs=2, verbose=0, validation_split=0.5, callbacks=[spy, keras_vqvae.CodebookMonitor()]
    ).history
    for epoch, logs in enumerate(own):
        for name, value in logs.items():
            np.testing.assert_allclose(monitored[name][epoch], value, rtol=1e-5, err_msg=name)
        assert ("min_perplexity" in logs) == (stages > 1)


def test_the_monitor_names_the_logs_of_several_quantizers(x):
    inputs = keras.Input((4,))
    top = keras_vqvae.VectorQuantizer(8, name="top")(inputs)
    outputs = keras_vqvae.VectorQuantizer(4, name="bottom")(inputs - top)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    history = model.fit(x, x, verbose=0, callbacks=[keras_vqvae.CodebookMonitor()]).history
    assert {name for name in history if name != "loss"} == {
        f"{name}_{log}" for name in ("top", "bottom") for log in ("perplexity", "codebook_usage", "bits_per_index")
    }


def test_a_single_codebook_is_reported_once(x):
    model = nested(keras_vqvae.VectorQuantizer(16))
    callbacks = [keras_vqvae.CodebookMonitor(per_codebook=True)]
    history = model.fit(x, x, verbose=0, callbacks=callbacks).history
    assert set(history) == {"loss", "perplexity", "codebook_usage", "bits_per_index"}


def test_the_monitor_works_in_evaluate_without_fit(x):
    model = nested(keras_vqvae.VectorQuantizer(16, seed=2))
    monitor = keras_vqvae.CodebookMonitor()
    model.evaluate(x, x, verbose=0, callbacks=[monitor])
    assert numpy(monitor.model.layers[0].layers[0].layers[1].code_counts).sum() == 0
    assert monitor.validation["val_perplexity"] > 1


@pytest.mark.each_backend
def test_trap_a_model_that_builds_itself_in_fit_can_be_monitored(x):
    model = keras.Sequential([layers.Dense(4), keras_vqvae.VectorQuantizer(8)])
    model.compile("sgd", "mse")
    callbacks = [keras_vqvae.CodebookMonitor()]
    history = model.fit(x, x, epochs=2, verbose=0, callbacks=callbacks).history
    assert len(history["perplexity"]) == 2
