import re

import keras
import numpy as np
import pytest
from gradients import gradients
from helpers import compiled, draw, numpy
from keras import layers
from scipy import signal

import keras_vqvae

SMALL = {"window_sizes": (32, 8)}


def magnitudes(sounds, size, floor):
    """Computes magnitudes of `[batch, steps]` with SciPy, divided by the window's norm."""
    window = signal.get_window("hann", size)
    padded = np.pad(np.asarray(sounds, "float64"), ((0, 0), (size // 2, size // 2)), mode="reflect")
    values = signal.stft(padded, window=window, nperseg=size, noverlap=size - size // 4, boundary=None, padded=False)[2]
    values = values * window.sum() / np.sqrt(np.square(window).sum())
    return np.sqrt(np.abs(values) ** 2 + floor**2)


def oracle(y_true, y_pred, window_sizes=(32, 8), log_weight=1.0, floor=1e-3):
    """Computes the distance of each sound of `[batch, steps]`."""
    found = []
    for size in window_sizes:
        a, b = (magnitudes(sounds, size, floor) for sounds in (y_true, y_pred))
        found.append(np.mean(np.abs(a - b) + log_weight * np.abs(np.log(a) - np.log(b)), axis=(1, 2)))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, marks=pytest.mark.each_backend),
        {"window_sizes": (20,)},
        {"log_weight": 0.0},
        {"log_weight": 3.0},
        {"floor": 0.5},
    ],
)
def test_the_loss_is_the_distance_of_scipys_spectrograms(arguments):
    y_true, y_pred = draw(3, 50), draw(3, 50, seed=1)
    loss = keras_vqvae.SpectralLoss(**{**SMALL, **arguments}, reduction=None)
    np.testing.assert_allclose(numpy(loss(y_true, y_pred)), oracle(y_true, y_pred, **{**SMALL, **arguments}), rtol=2e-4)


def test_white_noise_has_magnitude_1_at_every_resolution():
    for size in (16, 64, 256):
        noise = magnitudes(draw(8, 4096), size, 1e-3)
        np.testing.assert_allclose(np.mean(noise[:, 1:-1] ** 2), 1, rtol=0.03)
        found = numpy(keras_vqvae.ops.spectrogram.magnitudes(draw(8, 4096), size, 1e-3))
        np.testing.assert_allclose(found, np.swapaxes(noise, 1, 2), rtol=1e-3, atol=1e-4)


def test_floor_and_log_weight_scale_with_the_data():
    """If both are scaled with the data, the loss of quiet sounds is that of loud ones in the same units."""
    y_true, y_pred = draw(3, 50), draw(3, 50, seed=1)
    quiet = keras_vqvae.SpectralLoss(**SMALL, floor=1e-2 / 64, log_weight=1 / 64)(y_true / 64, y_pred / 64)
    loud = keras_vqvae.SpectralLoss(**SMALL, floor=1e-2)(y_true, y_pred)
    assert float(quiet) == pytest.approx(float(loud) / 64, rel=1e-5)


def test_channels_are_compared_one_by_one_first_or_last(monkeypatch):
    y_true, y_pred = draw(2, 40, 3), draw(2, 40, 3, seed=1)
    expected = np.mean([oracle(y_true[..., i], y_pred[..., i]) for i in range(3)], axis=0)
    loss = keras_vqvae.SpectralLoss(**SMALL, reduction=None)
    np.testing.assert_allclose(numpy(loss(y_true, y_pred)), expected, rtol=2e-4)
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    np.testing.assert_allclose(numpy(loss(*(np.swapaxes(y, 1, 2) for y in (y_true, y_pred)))), expected, rtol=2e-4)


def test_default_windows_and_a_last_axis_of_size_1_work():
    y_true, y_pred = draw(2, 2048), draw(2, 2048, seed=1)
    loss = keras_vqvae.SpectralLoss()
    expected = oracle(y_true, y_pred, window_sizes=(1024, 256, 64)).mean()
    np.testing.assert_allclose(float(loss(y_true, y_pred)), expected, rtol=1e-4)
    # As in Keras's losses, one of the two may have a last axis of size 1.
    np.testing.assert_allclose(float(loss(y_true[..., None], y_pred)), expected, rtol=1e-4)
    np.testing.assert_allclose(float(loss(y_true, y_pred[..., None])), expected, rtol=1e-4)


@pytest.mark.each_backend
def test_gradients_match_differences_and_are_finite_for_silent_and_equal_sounds():
    loss = keras_vqvae.SpectralLoss(**SMALL)
    y_true, y_pred = draw(1, 36), draw(1, 36, seed=1)
    (found,) = gradients(lambda y: loss(y_true, y), y_pred)
    direction, step = draw(1, 36, seed=2), 1e-5
    ahead, behind = (oracle(y_true, y_pred.astype("float64") + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose(np.sum(found * direction), (ahead - behind)[0] / (2 * step), rtol=1e-3)
    silence = np.zeros_like(y_true)
    pairs = [(silence, silence), (y_true, silence), (silence, y_true), (y_true, y_true)]
    targets, outputs = (np.concatenate(sounds) for sounds in zip(*pairs, strict=True))
    (found,) = gradients(lambda y: loss(targets, y), outputs)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], 0)


def test_half_precision_is_compared_in_float32():
    y_true, y_pred = draw(2, 64, dtype="float16"), draw(2, 64, seed=1, dtype="float16")
    value = keras_vqvae.SpectralLoss(**SMALL)(300 * y_true, 300 * y_pred)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(float(value), oracle(300 * y_true, 300 * y_pred).mean(), rtol=1e-3)


def test_masked_steps_are_silent_and_the_mean_is_over_the_valid_ones():
    y_true, y_pred = draw(3, 40, 1), draw(3, 40, 1, seed=1)
    mask = np.arange(40) < np.array([[40], [16], [0]])
    each, scale = oracle(y_true[..., 0] * mask, y_pred[..., 0] * mask), mask.size / mask.sum()
    assert each[2] == 0
    y_true[~mask] = np.nan
    weight = np.array([1.0, 2.0, 3.0], "float32")
    output = layers.Masking()(y_pred * mask[..., None])
    loss, total = (keras_vqvae.SpectralLoss(**SMALL, reduction=name) for name in ("mean", "sum"))
    np.testing.assert_allclose(float(loss(y_true, output)), each.mean() * scale, rtol=2e-4)
    np.testing.assert_allclose(float(loss(y_true, output, weight)), np.mean(each * weight) * scale, rtol=2e-4)
    np.testing.assert_allclose(float(total(y_true, output)), each.sum(), rtol=2e-4)
    assert float(loss(y_true, layers.Masking()(0 * y_pred))) == 0
    # Within a model, whose tensors are traced.
    model = keras.Sequential([keras.Input((40, 1)), layers.Masking()])
    model.compile(loss=loss)
    value = model.evaluate(y_pred * mask[..., None], y_true, batch_size=3, verbose=0)
    np.testing.assert_allclose(value, each.mean() * scale, rtol=2e-4)


def model_of(loss, steps=64, dtype="float32", **keywords):
    inputs = keras.Input((steps, 1))
    x = layers.Conv1D(1, 3, padding="same", dtype=dtype, kernel_initializer="ones")(inputs)
    return compiled(keras.Model(inputs, x), keras.optimizers.SGD(0.01), loss, **keywords)


@pytest.mark.each_backend
@pytest.mark.parametrize(("steps", "dtype"), [(None, "float32"), (64, "mixed_bfloat16")])
def test_fit_lowers_the_spectral_loss(steps, dtype):
    x, weight = draw(6, 64, 1), np.arange(1.0, 7.0)[:, None]
    loss = keras_vqvae.LossSum([keras.losses.MeanSquaredError(), keras_vqvae.SpectralLoss(**SMALL)], [1.0, 0.5])
    model = model_of(loss, steps, dtype)
    outputs = numpy(model(x)).astype("float32")
    each = np.mean((x - outputs) ** 2, axis=(1, 2)) + 0.5 * oracle(x[..., 0], outputs[..., 0])
    history = model.fit(x, x, sample_weight=weight, batch_size=6, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(history[0], np.mean(each * weight[:, 0]), rtol=1e-3 if dtype == "float32" else 2e-2)
    assert history[1] < history[0]


@pytest.mark.each_backend
def test_a_compiled_model_is_saved_with_its_loss(tmp_path):
    spectral = keras_vqvae.SpectralLoss(window_sizes=(16, 8), log_weight=0.3, floor=0.01, name="spectra")
    loss = keras_vqvae.LossSum([keras.losses.MeanAbsoluteError(), spectral], weights=[2.0, 0.1])
    model = model_of(loss, traced=False)
    x = draw(4, 64, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    copy = loaded.loss.losses[1]
    assert copy.get_config() == spectral.get_config()
    assert loaded.loss.weights == (2.0, 0.1)
    np.testing.assert_allclose(loaded.evaluate(x, x, verbose=0), model.evaluate(x, x, verbose=0), rtol=1e-6)


def test_a_loss_sum_adds_the_reduced_losses():
    y_true, y_pred, weight = draw(4, 40), draw(4, 40, seed=1), np.array([0.0, 1.0, 2.0, 3.0], "float32")
    loss = keras_vqvae.LossSum([keras.losses.MeanSquaredError(reduction="sum"), keras_vqvae.SpectralLoss(**SMALL)])
    square = np.sum(np.mean((y_true - y_pred) ** 2, axis=1) * weight)
    expected = square + np.mean(oracle(y_true, y_pred) * weight)
    np.testing.assert_allclose(float(loss(y_true, y_pred, weight)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_sizes": ()}, "`window_sizes` must be one or more multiples of 4. Received: window_sizes=()"),
        ({"window_sizes": (30,)}, "multiples of 4. Received: window_sizes=(30,)"),
        ({"window_sizes": 64}, "Received: window_sizes=64"),
        ({"log_weight": -1}, "Received: log_weight=-1"),
        ({"floor": 0}, "Received: floor=0"),
        ({"reduction": "least"}, "Received: reduction=least"),
    ],
)
def test_wrong_arguments_are_named_in_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        keras_vqvae.SpectralLoss(**arguments)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ("mse", None, "Received: losses='mse'"),
        (["mse"], None, "use `keras.losses.MeanSquaredError()` instead of 'mse'. Received: losses=['mse']"),
        (["normalized_mse"], None, "`keras.losses.MeanSquaredError()` with the weight in the documentation"),
        ([], None, "Received: losses=[]"),
        ([keras.losses.MeanSquaredError()], [1, 2], "for each of the 1 losses. Received: weights=[1, 2]"),
        ([keras.losses.MeanSquaredError()], [-1], "Received: weights=-1"),
    ],
)
def test_wrong_loss_sums_are_named_in_errors(losses, weights, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        keras_vqvae.LossSum(losses, weights)


def test_short_sounds_and_wrong_shapes_are_errors():
    loss = keras_vqvae.SpectralLoss()
    message = "as the largest window, 1024: give longer sounds, or smaller `window_sizes`. Received: y_pred of shape"
    with pytest.raises(ValueError, match=re.escape(message + " (2, 1000, 1), of 1000 steps")):
        loss(draw(2, 1000, 1), draw(2, 1000, 1))
    with pytest.raises(
        ValueError, match=re.escape("must be sounds of shape [batch, steps] or [batch, steps, channels]")
    ):
        loss(draw(2, 8, 8, 1), draw(2, 8, 8, 1))
    with pytest.raises(ValueError, match=re.escape("Received: y_true of shape (2, 1024, 1), y_pred of shape (2, 1025")):
        loss(draw(2, 1024, 1), draw(2, 1025, 1))
    with pytest.raises(ValueError, match=re.escape("Received: sample_weight of shape (2, 1024)")):
        loss(draw(2, 1024), draw(2, 1024), np.ones((2, 1024)))
