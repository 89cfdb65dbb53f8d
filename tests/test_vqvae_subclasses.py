"""Tests what a subclass of `VQVAE` adds or overrides, and decoders with several outputs."""

import helpers
import keras
import numpy as np
import oracle
import pytest
from helpers import numpy
from keras import layers, ops

import keras_vqvae


@pytest.fixture
def x(rng):
    return rng.normal(size=(20, 8)).astype("float32")


@pytest.fixture
def labels():
    return np.arange(20) % 3


def parts(known=True, **keywords):
    """Returns an encoder, which knows its input shape if `known`, a quantizer and a decoder."""
    encoder = keras.Sequential([keras.Input((8,)), layers.Dense(3)]) if known else layers.Dense(3)
    return encoder, keras_vqvae.VectorQuantizer(16, seed=1, **keywords), layers.Dense(8)


def cross_entropy(labels, logits):
    return ops.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


@keras.saving.register_keras_serializable(package="tests")
class HeadInCall(keras_vqvae.VQVAE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = keras.Sequential([layers.Dense(4), layers.Dense(3)])
        self.batches = self.add_weight(shape=(), initializer="zeros", trainable=False, name="batches")
        self.norm = keras.metrics.Mean(name="norm")

    def call(self, inputs, training=None):
        image, latents, _ = self.autoencode(inputs, training=training)
        if training:
            self.batches.assign_add(1.0)
        return {"image": image, "label": self.head(latents)}

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.norm.update_state(ops.sum(ops.square(y_pred["image"]), axis=-1))
        return super().compute_metrics(x, y, y_pred, sample_weight)


LOSSES = {"image": "mse", "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


@keras.saving.register_keras_serializable(package="tests")
class HeadInLoss(keras_vqvae.VQVAE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = layers.Dense(3)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        assert tuple(y_pred.shape[1:]) == (8,)
        return super().compute_loss(x, x, y_pred, sample_weight, training) + cross_entropy(y, self.head(y_pred))


@keras.saving.register_keras_serializable(package="tests")
class HeadInBuild(HeadInLoss):
    def build(self, input_shape):
        super().build(input_shape)
        self.head.build((None, 8))


@keras.saving.register_keras_serializable(package="tests")
class HeadInBoth(HeadInCall):
    def build(self, input_shape):
        super().build(input_shape)
        self.head.build((None, 3))


def assert_same_head(model, other):
    values, others = model.head.get_weights(), other.head.get_weights()
    assert len(values) == len(others) > 0
    for value, found in zip(values, others, strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("known", [pytest.param(True, marks=pytest.mark.each_backend(slow=True)), False])
def test_layers_added_by_a_subclass_are_trained_and_saved(x, labels, tmp_path, known):
    model = HeadInCall(*parts(known, ema_decay=0.9))
    model.compile(keras.optimizers.SGD(0.1), LOSSES)
    targets = {"image": x, "label": labels}
    history = model.fit(x, targets, batch_size=10, epochs=30, verbose=0).history
    assert history["label_loss"][-1] < 0.9 * history["label_loss"][0]
    assert {"norm", "perplexity", "codebook_usage", "quantizer_loss", "reconstruction_loss"} <= history.keys()
    assert float(model.batches) == 60
    predicted = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_head(model, loaded)
    assert float(loaded.batches) == 60
    for name, value in loaded.predict(x, verbose=0).items():
        np.testing.assert_allclose(value, predicted[name], atol=1e-6)
    np.testing.assert_array_equal(loaded.encode(x, verbose=0), model.encode(x, verbose=0))
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    # A weights file can be loaded into a model that never ran, if the encoder knows its input shape.
    model.save_weights(tmp_path / "model.weights.h5")
    other = HeadInCall(*parts(known, ema_decay=0.9))
    if not known:
        other.build((None, 8))
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_head(model, other)


@pytest.mark.parametrize("known", [True, False])
def test_a_subclass_can_build_its_own_layers(x, labels, tmp_path, known):
    model = HeadInBoth(*parts(known, ema_decay=0.9))
    if not known:
        model.build((None, 8))
    helpers.compiled(model, "sgd", LOSSES, traced=False)
    model.fit(x, {"image": x, "label": labels}, verbose=0)
    model.save(tmp_path / "model.keras")
    assert_same_head(model, keras.models.load_model(tmp_path / "model.keras"))


@pytest.mark.parametrize("known", [True, False])
def test_a_head_used_only_in_the_loss_survives_saving(x, labels, tmp_path, known):
    model = HeadInLoss(*parts(known))
    model.compile("adam")
    model.fit(x, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_head(model, loaded)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    loaded.fit(x, labels, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other = HeadInBuild(*parts(known))
    if not known:
        other.build((None, 8))
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_head(model, other)


@pytest.mark.each_backend
def test_autoencode_returns_the_latents_and_indices_of_the_step(x, labels):
    model = HeadInCall(*parts(ema_decay=0.9, commitment_weight=0.0))
    image, latents, indices = model.autoencode(x)
    np.testing.assert_array_equal(numpy(indices), model.encode(x, verbose=0))
    np.testing.assert_array_equal(numpy(latents), numpy(model.quantizer.decode(indices)))
    np.testing.assert_array_equal(numpy(image), numpy(model.decoder(latents)))
    # Only the head's loss reaches the head, and the encoder through the latents.
    weights = {"image": 0.0, "label": 1.0}
    helpers.compiled(model, keras.optimizers.SGD(0.1), LOSSES, loss_weights=weights, traced=False)
    before = helpers.weights(model)
    model.train_on_batch(x, {"image": x, "label": labels})
    moved = {path for path, value in helpers.weights(model).items() if (value != before[path]).any()}
    trained = [*model.encoder.trainable_weights, *model.head.trainable_weights]
    assert moved & {weight.path for weight in model.trainable_weights} == {weight.path for weight in trained}


class OwnLoss(keras_vqvae.VQVAE):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.abs(y_pred - x)) + sum(self.losses)


class OwnCall(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        return self.decoder(self.encoder(inputs))


class Smooth(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        y = super().call(inputs, training=training)
        self.add_loss(ops.mean(ops.abs(y[:, 1:] - y[:, :-1])))
        return y


def test_a_custom_compute_loss_is_used_and_logged(x):
    model = helpers.compiled(OwnLoss(*parts()), "sgd", traced=False)
    expected = np.abs(model.predict(x, verbose=0) - x).mean()
    logs = model.evaluate(x, batch_size=20, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected + logs["quantizer_loss"], rtol=1e-5)
    # This loss does not report a reconstruction.
    of_codes = ["bits_per_index", "bits_per_sample", "codebook_usage", "perplexity"]
    of_quantizer = ["quantizer_loss", "commitment_loss", "codebook_loss"]
    assert sorted(logs) == sorted(["loss", *of_quantizer, *of_codes])
    assert logs["perplexity"] == pytest.approx(oracle.perplexity(model.encode(x, verbose=0), 16), rel=1e-5)
    assert sorted(model.fit(x, verbose=0).history) == sorted(logs)


@pytest.mark.each_backend
def test_a_call_without_the_quantizer_has_no_logs_of_it(x):
    model = helpers.compiled(OwnCall(*parts(ema_decay=0.9)), "sgd", traced=False)
    history = model.fit(x, verbose=0, validation_data=(x, x)).history
    logs = {"loss", "reconstruction_loss", "explained_variance"}
    assert set(history) == logs | {f"val_{name}" for name in logs}
    assert set(model.train_on_batch(x, return_dict=True)) == logs


def test_a_loss_added_in_call_counts(x):
    model = helpers.compiled(Smooth(*parts()), "sgd", "mse", traced=False)
    y = model.predict(x, verbose=0)
    logs = model.evaluate(x, batch_size=20, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reconstruction_loss"], oracle.mean_square(y - x), rtol=1e-4)
    expected = logs["reconstruction_loss"] + logs["quantizer_loss"] + np.abs(np.diff(y)).mean()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


class Pairs(keras_vqvae.VQVAE):
    """A model with an input that its encoder does not get."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shift = layers.Dense(8)

    def call(self, inputs, training=None):
        x, condition = inputs
        return super().call(x, training=training) + self.shift(condition)


def test_a_model_can_have_more_inputs_than_its_encoder(x):
    model = Pairs(*parts())
    model.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")
    model.fit((x, x[:, :2]), x, verbose=0)
    assert model.predict((x, x[:, :2]), verbose=0).shape == (20, 8)
    assert model.shift.kernel.shape == (2, 8)
    assert model.encode(x, verbose=0).shape == (20,)


def outputs_of(kind):
    z = keras.Input((3,))
    image, label = layers.Dense(8, name="image")(z), layers.Dense(3, name="label")(z)
    return keras.Model(z, {"image": image, "label": label} if kind == "dict" else [image, label])


@pytest.mark.parametrize("kind", [pytest.param("dict", marks=pytest.mark.each_backend), "list"])
def test_decoders_can_have_several_outputs(x, labels, kind):
    encoder, quantizer, _ = parts(ema_decay=0.9)
    model = keras_vqvae.VQVAE(encoder, quantizer, outputs_of(kind))
    loss, y = (LOSSES, {"image": x, "label": labels}) if kind == "dict" else (list(LOSSES.values()), [x, labels])
    helpers.compiled(model, "sgd", loss, traced=False)
    codes = model.encode(x, verbose=0)
    decoded, predicted = (keras.tree.flatten(f) for f in (model.decode(codes, verbose=0), model.predict(x, verbose=0)))
    for one, other in zip(decoded, predicted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    logs = model.evaluate(x, y, batch_size=20, verbose=0, return_dict=True)
    image, logits = predicted
    shifted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = oracle.mean_square(image - x) - np.log(shifted[np.arange(20), labels]).mean()
    np.testing.assert_allclose(logs["reconstruction_loss"], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="`y` must be given.*Received: y=None"):
        model.evaluate(x, verbose=0)


def test_a_model_of_several_outputs_is_trained_and_saved(x, labels, tmp_path):
    encoder, quantizer, _ = parts(ema_decay=0.9)
    model = keras_vqvae.VQVAE(encoder, quantizer, outputs_of("dict"))
    helpers.compiled(model, keras.optimizers.SGD(0.1), LOSSES)
    history = model.fit(x, {"image": x, "label": labels}, batch_size=10, epochs=40, verbose=0).history
    assert history["reconstruction_loss"][-1] < 0.9 * history["reconstruction_loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(*(keras.tree.flatten(m.predict(x, verbose=0)) for m in (model, loaded)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
