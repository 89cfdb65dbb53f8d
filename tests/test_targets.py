"""Tests that targets are refused only if a loss would broadcast them by mistake."""

import helpers
import keras
import numpy as np
import pytest
from keras import layers, losses, ops

import keras_vqvae
from keras_vqvae.models.targets import check_targets

LABELS = np.arange(6) % 3
REFUSED = r"`y` must have the shape of the reconstruction.*ds.map\(lambda x, y: x\).*Received: y of shape"


@pytest.fixture
def x(rng):
    return rng.random(size=(6, 4, 4, 1)).astype("float32")


@pytest.fixture
def model():
    encoder = keras.Sequential([keras.Input((4, 4, 1)), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), layers.Dense(1))
    return helpers.compiled(model, "sgd")


def test_class_labels_as_targets_are_refused_by_every_method(model, x):
    uses = (
        lambda: model.fit(x, LABELS, verbose=0),
        lambda: model.fit(helpers.Batches(3, x, LABELS.astype("float32")), verbose=0),
        lambda: model.evaluate(x, LABELS[:, None], verbose=0),
        lambda: model.train_on_batch(x, LABELS),
        lambda: model.fit(x, verbose=0, validation_data=(x, LABELS)),
    )
    for use in uses:
        with pytest.raises(ValueError, match=REFUSED):
            use()
    model.fit(helpers.Batches(3, x), verbose=0, validation_data=helpers.Batches(3, x, x))


def test_inputs_unlike_the_reconstruction_are_refused_as_targets(x):
    encoder = keras.Sequential([keras.Input((4, 4, 1)), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), layers.Dense(2))
    model.compile()
    with pytest.raises(ValueError, match="`x` must have the shape of the reconstruction.*Received: x of shape"):
        model.fit(x, verbose=0)


def mean_and_variance(y, y_pred):
    mean, log_variance = ops.split(y_pred, 2, axis=-1)
    return ops.square(y - mean) * ops.exp(-log_variance) + log_variance


def absolute(y, y_pred):
    return ops.abs(y - y_pred)


SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)
IMAGE, FLAT, CLASSES, LOGITS = (6, 4, 4, 1), (6, 4, 4), (6,), (6, 4, 4, 9)


@pytest.mark.parametrize(
    ("loss", "y", "y_pred", "dtype"),
    [
        ("mse", IMAGE, IMAGE, "float32"),
        # Keras drops an axis of size 1.
        ("mse", FLAT, IMAGE, "float32"),
        ("mse", (6,), (6, 1), "float32"),
        ("mse", (6, 1), (6,), "float32"),
        ("mse", (None, 4, 4, 1), (None, 4, None, 1), "float32"),
        ("sparse_categorical_crossentropy", FLAT, LOGITS, "int32"),
        (losses.sparse_categorical_crossentropy, IMAGE, LOGITS, "int32"),
        (SPARSE, FLAT, LOGITS, "int32"),
        (SPARSE, CLASSES, (6, 3), "float32"),
        ("crossentropy", FLAT, LOGITS, "int32"),
        (None, CLASSES, IMAGE, "int32"),
        # A user's loss may expect other data or classes. If nothing broadcasts, the loss itself fails on wrong shapes.
        (mean_and_variance, IMAGE, (6, 4, 4, 2), "float32"),
        (absolute, FLAT, LOGITS, "int32"),
        # Classes, although they would broadcast.
        (absolute, (4, 4, 4), (4, 4, 4, 4), "int32"),
        (absolute, (6, 5), IMAGE[:3], "float32"),
    ],
)
def test_targets_that_the_loss_does_not_broadcast_are_accepted(loss, y, y_pred, dtype):
    check_targets(loss, keras.KerasTensor(IMAGE), keras.KerasTensor(y, dtype), keras.KerasTensor(y_pred))


@pytest.mark.parametrize(
    ("loss", "y", "y_pred", "dtype"),
    [
        ("mse", CLASSES, IMAGE, "int32"),
        ("mae", (None,), (None, 4, 4, 1), "float32"),
        (losses.MeanSquaredError(), (6, 1), (6, 8), "int32"),
        (losses.huber, IMAGE, (6, 4, 4, 3), "float32"),
        ("binary_crossentropy", CLASSES, IMAGE, "int32"),
        ("crossentropy", CLASSES, IMAGE, "int32"),
        (["mae", "mse"], CLASSES, IMAGE, "int32"),
        (absolute, CLASSES, IMAGE, "float32"),
        (absolute, CLASSES, IMAGE, "int32"),
        (absolute, (4, 4, 4), (4, 4, 4, 4), "float32"),
    ],
)
def test_targets_that_the_loss_would_broadcast_are_refused(loss, y, y_pred, dtype):
    with pytest.raises(ValueError, match=REFUSED):
        check_targets(loss, keras.KerasTensor(IMAGE), keras.KerasTensor(y, dtype), keras.KerasTensor(y_pred))


@pytest.mark.parametrize(
    "loss",
    [{"image": "mse", "label": SPARSE}, ["mse", SPARSE], {"image": "mse"}, {"image": ["mae", "mse"], "label": None}],
)
def test_targets_of_each_of_several_outputs_are_checked(loss):
    x = keras.KerasTensor(IMAGE)
    y_pred = {"image": keras.KerasTensor(IMAGE), "label": keras.KerasTensor((6, 3))}
    labels = keras.KerasTensor(CLASSES, "int32")
    check_targets(loss, x, {"image": x, "label": labels}, y_pred)
    with pytest.raises(ValueError, match=REFUSED):
        check_targets(loss, x, {"image": labels, "label": labels}, y_pred)
    with pytest.raises(ValueError, match="`y` must be given"):
        check_targets(loss, x, None, y_pred)
    if not isinstance(loss, dict):
        check_targets(loss, x, (x, labels), list(y_pred.values()))
        with pytest.raises(ValueError, match=REFUSED):
            check_targets(loss, x, [labels, labels], list(y_pred.values()))
