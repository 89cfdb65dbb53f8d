import csv

import keras
import numpy as np
import oracle
import pytest
from helpers import numpy
from keras import layers, ops

import keras_vqvae


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 4)).astype("float32")


def nested(quantizer, dim=4):
    """A quantizer two models deep, behind a layer that does nothing."""
    inner = keras.Sequential([keras.Input((dim,)), layers.Dense(dim, kernel_initializer="identity"), quantizer])
    model = keras.Sequential([keras.Input((dim,)), keras.Sequential([keras.Input((dim,)), inner])])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def far_codes(num_embeddings, dim=4, alive=2):
    """A codebook of which all but the first codes are out of reach."""
    codes = np.full((num_embeddings, dim), 100.0)
    codes[:alive] = np.random.default_rng(1).normal(size=(alive, dim))
    return lambda shape, dtype: ops.convert_to_tensor(codes, dtype=dtype)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.each_backend), 4])
def test_dead_codes_move_onto_vectors_and_the_others_stay(x, every):
    quantizer = keras_vqvae.VectorQuantizer(16, embeddings_initializer=far_codes(16))
    model = nested(quantizer)
    before = numpy(quantizer.codebook).copy()
    callback = keras_vqvae.ReviveDeadCodes(x, every=every, batch_size=64)
    model.fit(x, x, batch_size=16, epochs=1, verbose=0, callbacks=[callback])
    after = numpy(quantizer.codebook)
    np.testing.assert_array_equal(after[:2], before[:2])
    for code in after[2:]:
        assert (code == x).all(-1).any()
    # What is drawn at one look is all different.
    assert every == 1 or len(np.unique(after, axis=0)) == 16


def test_the_rule_is_that_of_the_moving_average(x):
    """Dead below a tenth of uniform use by the moving counts of four batches, and alive by as much when moved."""
    quantizer = keras_vqvae.VectorQuantizer(8, embeddings_initializer=far_codes(8, alive=5))
    model = nested(quantizer)
    before = numpy(quantizer.codebook).copy()
    expected = np.zeros(8)
    for batch in np.split(x, 4):
        expected = 0.99 * expected + 0.01 * np.bincount(oracle.nearest_code(batch, before), minlength=8)
    model.fit(x, x, batch_size=16, shuffle=False, verbose=0, callbacks=[keras_vqvae.ReviveDeadCodes(x, every=4)])
    moved, just_alive = (numpy(quantizer.codebook) != before).any(-1), 0.1 * expected.mean()
    np.testing.assert_array_equal(moved, expected < just_alive)
    assert 0 < moved.sum() < 8
    np.testing.assert_allclose(numpy(quantizer.ema_counts), np.maximum(expected, just_alive), rtol=1e-5)


def test_a_code_that_falls_out_of_use_dies_in_the_end(x):
    quantizer = keras_vqvae.VectorQuantizer(2, embeddings_initializer=far_codes(2))
    model = nested(quantizer)
    callback = keras_vqvae.ReviveDeadCodes(x, every=50)
    model.fit(x, x, batch_size=1, verbose=0, callbacks=[callback])
    quantizer.codebook.assign(np.stack([np.full(4, 100.0), np.zeros(4)]))
    model.fit(x, x, batch_size=1, verbose=0, callbacks=[callback])
    assert numpy(quantizer.codebook)[0, 0] == 100
    model.fit(x, x, batch_size=1, epochs=5, verbose=0, callbacks=[callback])
    assert (np.abs(numpy(quantizer.codebook)) < 10).all()


@pytest.mark.parametrize("dead", [True, False])
def test_the_model_runs_only_where_a_code_is_dead(x, dead):
    quantizer = keras_vqvae.VectorQuantizer(2, embeddings_initializer=far_codes(2, alive=1 if dead else 2))
    model = nested(quantizer)
    calls = []
    plain = model.call
    model.fit(x, x, batch_size=64, verbose=0)
    callback = keras_vqvae.ReviveDeadCodes(x)
    callback.set_model(model)
    callback.on_epoch_begin(0)
    model.call = lambda *args, **keywords: calls.append(1) or plain(*args, **keywords)
    callback.on_train_batch_end(0)
    assert len(calls) == dead


@pytest.mark.each_backend
@pytest.mark.parametrize(
    ("steps_per_execution", "looks"), [(1, [3, 6, 9, 12, 15]), (2, [4, 6, 10, 12, 16]), (8, [8, 16])]
)
def test_it_looks_every_so_many_steps(x, steps_per_execution, looks):
    if steps_per_execution > 1 and keras.backend.backend() == "torch":
        pytest.skip("Keras runs one step at a time on torch")
    model = nested(keras_vqvae.VectorQuantizer(2))
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    callback = keras_vqvae.ReviveDeadCodes(x, every=3)
    seen = []
    callback._look = lambda: seen.append(callback._steps)
    model.fit(x, x, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    assert seen == looks


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [
        (keras_vqvae.VectorQuantizer, {"trainable": False}),
        (keras_vqvae.VectorQuantizer, {"ema_decay": 0.9, "dead_code_threshold": 0}),
        (keras_vqvae.IndexBackpropagationQuantizer, {}),
    ],
    ids=["frozen", "moving average", "inner product"],
)
def test_codebooks_are_left_alone_that_it_is_not_for(x, kind, keywords):
    quantizer = kind(8, embeddings_initializer=far_codes(8), **keywords)
    model = nested(quantizer)
    model.fit(x, x, batch_size=16, verbose=0, callbacks=[keras_vqvae.ReviveDeadCodes(x, every=1)])
    np.testing.assert_array_equal(numpy(quantizer.codebook)[2:], 100.0)


def test_what_is_masked_or_not_finite_is_never_drawn(rng):
    x = rng.normal(size=(32, 6, 4)).astype("float32")
    x[:, 3:] = 50.0
    x[rng.random(32) < 0.3, 1] = np.nan
    quantizer = keras_vqvae.VectorQuantizer(64, embeddings_initializer=far_codes(64))
    model = keras.Sequential([keras.Input((6, 4)), layers.Masking(50.0), quantizer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, x, verbose=0, callbacks=[keras_vqvae.ReviveDeadCodes(x)])
    revived = numpy(quantizer.codebook)[2:]
    assert np.isfinite(revived).all()
    assert (np.abs(revived) < 10).all()


def test_equal_seeds_revive_equally(x):
    def train(seed):
        quantizer = keras_vqvae.VectorQuantizer(8, embeddings_initializer=far_codes(8))
        callback = keras_vqvae.ReviveDeadCodes(x, every=2, batch_size=16, seed=seed)
        nested(quantizer).fit(x, x, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
        return numpy(quantizer.codebook)

    np.testing.assert_array_equal(train(1), train(1))
    assert (train(1) != train(2)).any()


def test_all_forms_of_inputs_are_drawn_from(rng):
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other")
    quantizer = keras_vqvae.VectorQuantizer(8, embeddings_initializer=far_codes(8))
    model = keras.Model({"one": one, "other": other}, quantizer(one + other))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = {name: rng.normal(size=(32, 4)).astype("float32") for name in ("one", "other")}
    model.fit(x, x["one"], verbose=0, callbacks=[keras_vqvae.ReviveDeadCodes(x)])
    for code in numpy(quantizer.codebook)[2:]:
        assert np.isclose(code, x["one"] + x["other"], atol=1e-6).all(-1).any()


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("threshold", -1.0), ("batch_size", 0), ("seed", None)])
def test_wrong_arguments_are_named(x, name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        keras_vqvae.ReviveDeadCodes(x, **{name: value})


@pytest.mark.each_backend
def test_the_monitor_reports_training_and_validation(x, tmp_path):
    quantizer = keras_vqvae.VectorQuantizer(16, seed=2)
    model = nested(quantizer)
    # An evaluation before, whose compiled form counts nothing.
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
        # The codebook stands still, so every epoch is the same.
        np.testing.assert_allclose(history[prefix + "perplexity"], [oracle.perplexity(indices, 16)] * 3, rtol=1e-5)
        np.testing.assert_allclose(history[prefix + "codebook_usage"], [len(np.unique(indices)) / 16] * 3)
    assert numpy(quantizer.code_counts).sum() == 3 * len(train)
    with (tmp_path / "log.csv").open() as file:
        assert {"perplexity", "val_codebook_usage"} <= set(next(csv.DictReader(file)))
    # Left behind, evaluation counts nothing again.
    model.evaluate(x, x, verbose=0)
    assert numpy(quantizer.code_counts).sum() == 3 * len(train)


@pytest.mark.parametrize("stages", [1, pytest.param(3, marks=pytest.mark.each_backend)])
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


def test_the_monitor_names_several_quantizers(x):
    inputs = keras.Input((4,))
    top = keras_vqvae.VectorQuantizer(8, name="top")(inputs)
    outputs = keras_vqvae.VectorQuantizer(4, name="bottom")(inputs - top)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    history = model.fit(x, x, verbose=0, callbacks=[keras_vqvae.CodebookMonitor()]).history
    assert {name for name in history if name != "loss"} == {
        f"{name}_{log}" for name in ("top", "bottom") for log in ("perplexity", "codebook_usage")
    }


def test_the_monitor_sees_an_evaluation_alone(x):
    model = nested(keras_vqvae.VectorQuantizer(16, seed=2))
    monitor = keras_vqvae.CodebookMonitor()
    model.evaluate(x, x, verbose=0, callbacks=[monitor])
    assert numpy(monitor.model.layers[0].layers[0].layers[1].code_counts).sum() == 0
    assert monitor.validation["val_perplexity"] > 1


@pytest.mark.each_backend
def test_trap_a_model_that_builds_itself_in_fit_can_be_monitored(x):
    model = keras.Sequential([layers.Dense(4), keras_vqvae.VectorQuantizer(8)])
    model.compile("sgd", "mse")
    callbacks = [keras_vqvae.CodebookMonitor(), keras_vqvae.ReviveDeadCodes(x)]
    history = model.fit(x, x, epochs=2, verbose=0, callbacks=callbacks).history
    assert len(history["perplexity"]) == 2
