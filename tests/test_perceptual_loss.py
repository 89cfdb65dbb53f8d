import copy
import json
import re
import zipfile

import keras
import numpy as np
import pytest
from gradients import gradients
from helpers import assert_same_weights, compiled, draw, numpy, weights
from keras import layers

import keras_vqvae


def classifier(dtype="float32"):
    """Returns 1 x 1 convolutions, which are simple in NumPy, and a normalization that training would change."""
    inputs = keras.Input((4, 3, 2))
    x = layers.Conv2D(5, 1, activation="relu", name="first", dtype=dtype)(inputs)
    x = layers.BatchNormalization(name="normalization", dtype=dtype)(x)
    x = layers.Conv2D(3, 1, name="second", dtype=dtype)(x)
    outputs = layers.Dense(4, name="logits", dtype=dtype)(layers.Flatten()(layers.Dropout(0.5)(x)))
    model = keras.Model(inputs, outputs, name="classifier")
    model.get_layer("normalization").set_weights([draw(5), draw(5, seed=1), draw(5, seed=2), draw(5, seed=3) ** 2 + 1])
    return model


def features(model, x):
    """Computes the features of the two convolutions, `[batch, 4, 3, channels]` each."""
    value = {name: numpy(value).astype("float64") for name, value in weights(model).items()}
    first = np.maximum(x @ value["first/kernel"][0, 0] + value["first/bias"], 0)
    part = {name.rpartition("/")[2]: value[name] for name in value if name.startswith("normalization")}
    x = (first - part["moving_mean"]) / np.sqrt(part["moving_variance"] + 1e-3) * part["gamma"] + part["beta"]
    return first, x @ value["second/kernel"][0, 0] + value["second/bias"]


def oracle(model, y_true, y_pred):
    """Computes the distance of each sample."""
    found = 0
    for pair in zip(features(model, y_true), features(model, y_pred), strict=True):
        a, b = (each / np.maximum(np.linalg.norm(each, axis=-1, keepdims=True), 1e-30) for each in pair)
        found += np.mean(np.sum((a - b) ** 2, axis=-1), axis=(1, 2))
    return found


LAYERS = ["first", "second"]


@pytest.mark.each_backend
def test_the_loss_is_the_distance_between_directions_of_features():
    model, y_true, y_pred = classifier(), draw(3, 4, 3, 2), draw(3, 4, 3, 2, seed=1)
    loss = keras_vqvae.PerceptualLoss(model, LAYERS, reduction=None)
    # Features at or near 0 have no direction, or a norm below 1.
    np.testing.assert_allclose(numpy(loss(y_true, y_pred)), oracle(model, y_true, y_pred), rtol=1e-3)
    np.testing.assert_array_equal(numpy(loss(y_true, y_true)), 0)


def test_without_layer_names_the_features_are_the_outputs():
    model, y_true, y_pred = classifier(), draw(3, 4, 3, 2), draw(3, 4, 3, 2, seed=1)
    cut = keras.Model(model.inputs, [model.get_layer(name).output for name in LAYERS])
    found = [float(keras_vqvae.PerceptualLoss(*each)(y_true, y_pred)) for each in ((model, LAYERS), (cut,))]
    assert found[0] == found[1]
    # For vectors, the last axis contains the channels in either data format.
    a, b = (numpy(model(y)) for y in (y_true, y_pred))
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))
    found = float(keras_vqvae.PerceptualLoss(model)(y_true, y_pred))
    np.testing.assert_allclose(found, np.mean(np.sum((a - b) ** 2, axis=1)), rtol=1e-4)


def test_channels_can_come_first(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    inputs = keras.Input((2, 3))
    model = keras.Model(inputs, inputs)
    a, b = draw(2, 2, 3), draw(2, 2, 3, seed=1)
    expected = np.square(a / np.linalg.norm(a, axis=1, keepdims=True) - b / np.linalg.norm(b, axis=1, keepdims=True))
    np.testing.assert_allclose(float(keras_vqvae.PerceptualLoss(model)(a, b)), 2 * expected.mean(), rtol=1e-4)


@pytest.mark.each_backend
def test_gradients_are_finite_for_equal_images_and_zero_features():
    model, y = classifier(), draw(1, 4, 3, 2)
    loss = keras_vqvae.PerceptualLoss(model, LAYERS)
    (found,) = gradients(lambda x: loss(y, x), y)
    # Compiled and eager results differ by rounding.
    np.testing.assert_allclose(found, 0, atol=1e-7)
    model.get_layer("first").set_weights([np.zeros((1, 1, 2, 5)), np.zeros(5)])
    silent = keras_vqvae.PerceptualLoss(model, ["first"])
    (found,) = gradients(lambda x: silent(y, x), draw(1, 4, 3, 2, seed=1))
    np.testing.assert_array_equal(found, 0)
    assert float(silent(y, -y)) == 0


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.each_backend), "mixed_bfloat16"])
def test_fit_trains_the_model_and_not_the_features(tmp_path, dtype):
    frozen, x = classifier(dtype), draw(6, 4, 3, 2)
    loss = keras_vqvae.PerceptualLoss(frozen, LAYERS)
    model = compiled(keras.Sequential([keras.Input((4, 3, 2)), layers.Dense(2)]), keras.optimizers.SGD(0.1), loss)
    assert len(model.weights) == 2
    before = weights(loss.features)
    expected = np.mean(oracle(frozen, x, numpy(model(x))))
    history = model.fit(x, x, batch_size=6, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(history[0], expected, rtol=1e-3 if dtype == "float32" else 0.03)
    assert history[2] < history[0]
    assert_same_weights(before, weights(loss.features))
    model.save(tmp_path / "model.keras")
    # The file contains the classifier's weights, so the classifier itself may be lost or trained further.
    frozen.set_weights([0 * weight for weight in frozen.get_weights()])
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.evaluate(x, x, verbose=0), model.evaluate(x, x, verbose=0), rtol=1e-5)
    assert not loaded.loss.features.trainable_variables
    # Training can be resumed.
    found = [each.fit(x, x, batch_size=6, verbose=0).history["loss"] for each in (model, loaded)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_file_contains_only_the_used_layers_and_wrong_weights_are_errors(tmp_path):
    config = keras.saving.serialize_keras_object(keras_vqvae.PerceptualLoss(classifier(), ["first"]))
    assert "first" in json.dumps(config)
    assert "second" not in json.dumps(config)
    right = config["config"]["weights"]
    for wrong in (right[:1], ["AAAA", "AAAA"], [*right, right[-1]]):
        # A copy, because Keras empties the configurations that it reads.
        changed = copy.deepcopy(config)
        changed["config"]["weights"] = wrong
        with pytest.raises((TypeError, ValueError)):
            keras.saving.deserialize_keras_object(changed)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_code_in_the_features_of_a_file_is_refused(tmp_path):
    frozen = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x, output_shape=(4,))])
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    model.compile(loss=keras_vqvae.PerceptualLoss(frozen))
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert b"Lambda" in file.read("config.json")
    with pytest.raises((TypeError, ValueError), match="safe_mode"):
        keras.saving.load_model(tmp_path / "model.keras")


def test_masked_positions_do_not_count():
    model, y_true, y_pred = classifier(), draw(3, 4, 3, 2), draw(3, 4, 3, 2, seed=1)
    mask = draw(3, 4, 3, seed=2) > 0
    y_pred *= mask[..., None]
    expected = oracle(model, y_true * mask[..., None], y_pred).mean() * mask.size / mask.sum()
    y_true[~mask] = np.nan
    loss = keras_vqvae.PerceptualLoss(model, LAYERS)
    np.testing.assert_allclose(float(loss(y_true, layers.Masking()(y_pred))), expected, rtol=1e-3)


class Subclass(keras.Model):
    def call(self, inputs):
        return inputs


def two_inputs():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, layers.Add()(inputs))


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        (classifier, ["first", "third"], "'first', 'normalization', 'second'"),
        (classifier, ["first", "third"], "Received: layers=['first', 'third']"),
        (classifier, "first", "Received: layers='first'"),
        (classifier, [], "Received: layers=[]"),
        (
            Subclass,
            None,
            "`features` must be a functional model, or a built sequential model, with one input. Received: features=",
        ),
        (two_inputs, None, "a built sequential model, with one input"),
        (
            lambda: keras.Sequential([layers.Dense(2)]),
            None,
            "`features` must be a functional model, or a built sequential model",
        ),
        (lambda: "vgg", None, "Received: features='vgg'"),
    ],
)
def test_wrong_features_are_named_in_errors(model, names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        keras_vqvae.PerceptualLoss(model(), names)


def test_samples_that_do_not_fit_the_features_are_errors():
    loss = keras_vqvae.PerceptualLoss(classifier(), LAYERS)
    message = "for example `keras.layers.Resizing`. Received: features.input_shape=(None, 4, 3, 2), y_pred of shape"
    for shape in ((2, 4, 3, 1), (2, 8, 3, 2), (2, 4, 3)):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            loss(np.zeros(shape), np.zeros(shape))
        assert str(error.value).endswith(f"y_pred of shape {shape}")
