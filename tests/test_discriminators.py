import re

import keras
import numpy as np
import pytest
from helpers import compiled, draw, numpy
from scipy import signal

import keras_vqvae
from keras_vqvae.layers.log_spectrogram import LogSpectrogram

SHAPES = {1: (8, 2), 2: (9, 4, 2), 3: (4, 8, 5, 2)}
SOUND = {"window_sizes": (32, 8), "filters": (3,)}


def conv_judge(*args, **keywords):
    """Returns a discriminator without its features."""
    model = keras_vqvae.build_conv_discriminator(*args, **keywords)
    return keras.Model(model.input, model.output["logits"])


def sound_judge(*args, **keywords):
    model = keras_vqvae.build_spectrogram_discriminator(*args, **keywords)
    return keras.Model(model.input, model.output["logits"])


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("rank", SHAPES)
def test_logits_form_a_grid_of_patches(rank):
    model = conv_judge(SHAPES[rank], filters=(3, 4))
    sizes = tuple(-(-size // 4) for size in SHAPES[rank][:-1])
    assert model.output_shape == (None, *sizes, 1)
    assert numpy(model(draw(2, *SHAPES[rank]))).shape == (2, *sizes, 1)
    anything = conv_judge((*(None,) * rank, 2), filters=(3, 4))
    anything.set_weights(model.get_weights())
    x = draw(2, *SHAPES[rank], seed=1)
    np.testing.assert_allclose(numpy(anything(x)), numpy(model(x)), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_logit_sees_a_patch_of_the_documented_size(count):
    model = conv_judge((256, 1), filters=(2,) * count)
    x = draw(1, 256, 1)
    changed = x + 10 * np.eye(256, dtype="float32")[..., None]
    logits = numpy(model(np.concatenate([x, changed])))[:, 128 // 2**count, 0]
    assert np.sum(np.abs(logits[1:] - logits[0]) > 1e-6) == 5 * 2**count - 2


def test_the_discriminator_matches_its_formula():
    """One convolution along one axis: width 4, stride 2, slope 0.2, then width 3."""
    model = conv_judge((6, 2), filters=(3,))
    x = draw(1, 6, 2)
    weights, bias = (numpy(weight) for weight in model.get_layer("discriminator_conv_0").weights)
    padded = np.pad(x[0], ((1, 1), (0, 0)))
    y = np.stack([np.einsum("wc,wcf->f", padded[2 * t : 2 * t + 4], weights) for t in range(3)]) + bias
    y = np.pad(np.where(y > 0, y, 0.2 * y), ((1, 1), (0, 0)))
    weights, bias = (numpy(weight) for weight in model.get_layer("discriminator_logits").weights)
    expected = np.stack([np.einsum("wc,wcf->f", y[t : t + 3], weights) for t in range(3)]) + bias
    np.testing.assert_allclose(numpy(model(x))[0], expected, atol=1e-5)


def test_features_are_the_hidden_activations(tmp_path):
    model = keras_vqvae.build_conv_discriminator((8, 2), filters=(3, 4))
    x = draw(2, 8, 2)
    features = [numpy(each) for each in model(x)["features"]]
    assert [each.shape for each in features] == [(2, 4, 3), (2, 2, 4)]
    before = numpy(model.get_layer("discriminator_conv_1")(features[0]))
    np.testing.assert_allclose(features[1], np.where(before > 0, before, 0.2 * before), atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")(x)
    for one, other in zip(loaded["features"], features, strict=True):
        np.testing.assert_allclose(numpy(one), other, atol=1e-6)
    assert len(keras_vqvae.build_spectrogram_discriminator((64, 1), **SOUND)(draw(2, 64, 1))["features"]) == 2


def test_kernels_have_norm_1_unless_another_constraint_is_given():
    model = keras_vqvae.build_conv_discriminator((8, 2), filters=(3,))
    for layer in (layer for layer in model.layers if layer.weights):
        norm = np.linalg.svd(numpy(layer.kernel).reshape(-1, layer.kernel.shape[-1]))[1][0]
        np.testing.assert_allclose(norm, 1, rtol=1e-4)
        assert isinstance(layer.kernel_constraint, keras_vqvae.SpectralNorm)
    for constraint in (None, "max_norm"):
        model = keras_vqvae.build_conv_discriminator((8, 2), (3,), kernel_constraint=constraint)
        found = [layer.kernel_constraint for layer in model.layers if layer.weights]
        assert all(isinstance(each, type(keras.constraints.get(constraint))) for each in found)
        sound = keras_vqvae.build_spectrogram_discriminator((64, 1), **SOUND, kernel_constraint=constraint)
        found = [layer.kernel_constraint for layer in sound._flatten_layers() if hasattr(layer, "kernel")]
        assert len(found) == 4
        assert all(isinstance(each, type(keras.constraints.get(constraint))) for each in found)


def test_channels_first_gives_the_same_logits(channels_first):
    model = conv_judge((2, 8, 4), filters=(3,))
    assert model.output_shape == (None, 4, 2, 1)
    weights = model.get_weights()
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels-first convolutions on CPU")
    x, sound = draw(2, 2, 8, 4), draw(2, 2, 64)
    found = numpy(model(x))
    heard = sound_judge((2, 64), **SOUND)
    outputs = [numpy(each) for each in heard(sound)]
    assert [each.shape for each in outputs] == [(2, *each[1:]) for each in heard.output_shape]
    keras.config.set_image_data_format("channels_last")
    last = conv_judge((8, 4, 2), filters=(3,))
    last.set_weights(weights)
    np.testing.assert_allclose(numpy(last(np.moveaxis(x, 1, -1))), found, atol=1e-5)
    last = sound_judge((64, 2), **SOUND)
    last.set_weights(heard.get_weights())
    for a, b in zip(last(np.moveaxis(sound, 1, -1)), outputs, strict=True):
        np.testing.assert_allclose(numpy(a), b, atol=1e-4)


def log_magnitudes(sounds, size):
    """Computes log magnitudes with SciPy, `[batch, steps]` -> `[batch, frames, bins]`."""
    window = signal.get_window("hann", size)
    padded = np.pad(sounds.astype("float64"), ((0, 0), (size // 2, size // 2)), mode="reflect")
    values = signal.stft(padded, window=window, nperseg=size, noverlap=size - size // 4, boundary=None, padded=False)[2]
    power = np.abs(values * window.sum()) ** 2 / np.sum(np.square(window))
    return np.swapaxes(np.log(np.sqrt(power + 1e-6)), 1, 2)


def test_sounds_are_judged_by_their_spectrograms_at_each_resolution():
    model = sound_judge((64, 2), **SOUND)
    sounds = draw(3, 64, 2)
    assert model.output_shape == [(None, 5, 9, 1), (None, 17, 3, 1)]
    for i, (size, found) in enumerate(zip((32, 8), model(sounds), strict=True)):
        image = np.stack([log_magnitudes(sounds[..., c], size) for c in range(2)], axis=-1).astype("float32")
        part = model.get_layer(f"discriminator_{i}")
        np.testing.assert_allclose(numpy(found), numpy(part(image)["logits"]), atol=2e-4)


@pytest.mark.parametrize("steps", [64, pytest.param(None, marks=pytest.mark.each_backend(slow=True))])
def test_discriminators_of_sounds_train_and_are_saved(tmp_path, steps):
    model = sound_judge((steps, 1), **SOUND)
    assert steps or model.output_shape == [(None, None, 9, 1), (None, None, 3, 1)]
    x = draw(4, 64, 1)
    x[0] = 0
    y = [np.ones(np.shape(each), "float32") for each in model(x)]
    compiled(model, keras.optimizers.Adam(1e-2), ["hinge", "hinge"])
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(loaded(x), model(x), strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), atol=1e-5)
    assert loaded.evaluate(x, y, verbose=0)[0] < losses[2]


def test_half_precision_gives_nearly_the_same_logits():
    sounds = draw(2, 64, 1)
    model = sound_judge((64, 1), **SOUND)
    keras.config.set_dtype_policy("mixed_float16")
    half = sound_judge((64, 1), **SOUND)
    half.set_weights(model.get_weights())
    for a, b in zip(half(sounds), model(sounds), strict=True):
        assert keras.backend.standardize_dtype(a.dtype) == "float16"
        np.testing.assert_allclose(numpy(a).astype("float32"), numpy(b), atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": ()}, "`filters` must have at least one entry"),
        ({"input_shape": (8,)}, "`input_shape` must be the shape of one sample"),
        ({"input_shape": (0, 1)}, "Received: input_shape[0]=0"),
        ({"input_shape": (8, None)}, "Received: input_shape[1]=None"),
    ],
)
def test_wrong_arguments_are_named_in_errors(arguments, message):
    arguments = {"input_shape": (64, 1), "filters": (3,), **arguments}
    for build in (keras_vqvae.build_conv_discriminator, keras_vqvae.build_spectrogram_discriminator):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_sizes": (30,)}, "`window_sizes` must be one or more multiples of 4. Received: window_sizes=(30,)"),
        ({"input_shape": (64, 64, 1)}, "the number of steps, and the channels. Received: input_shape=(64, 64, 1)"),
        ({"input_shape": (31, 1)}, "as the largest window, 32: give longer sounds, or smaller `window_sizes`"),
    ],
)
def test_wrong_arguments_for_sounds_are_named_in_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        keras_vqvae.build_spectrogram_discriminator(**{"input_shape": (64, 1), **SOUND, **arguments})
    with pytest.raises(ValueError, match=re.escape("Received: input_shape of shape (None, 31, 1), of 31 steps")):
        LogSpectrogram(32).compute_output_shape((None, 31, 1))
