"""Tests that `preprocessing` applies to both the encoder's input and the target."""

import keras
import numpy as np
import pytest
from helpers import compiled, draw, numpy
from keras import layers

import keras_vqvae


def parts(size=4):
    encoder = keras.Sequential([keras.Input((size, size, 1)), layers.Conv2D(3, 2, strides=2)])
    decoder = keras.Sequential([keras.Input((size // 2, size // 2, 3)), layers.Conv2DTranspose(1, 2, strides=2)])
    return encoder, keras_vqvae.VectorQuantizer(16, seed=1, dead_code_threshold=0), decoder


class Noted(layers.Layer):
    """A layer that flips every second call in training, and records its outputs."""

    calls = 0
    noted = ()

    def call(self, inputs, training=None):
        if isinstance(inputs, keras.KerasTensor):
            return inputs
        outputs = 3.0 * keras.ops.flip(inputs, axis=2) if training else 2.0 * inputs
        self.noted = (*self.noted, numpy(outputs))
        return outputs


def test_preprocessed_data_are_input_and_target():
    preprocessing = Noted()
    model = keras_vqvae.VQVAE(*parts(), preprocessing=preprocessing)
    model.compile(keras.optimizers.SGD(0.0), loss="mse", metrics=["mae"], run_eagerly=True)
    x = 0.3 * draw(12, 4, 4, 1)
    plain = keras_vqvae.VQVAE(*(model.encoder, model.quantizer, model.decoder))
    for training, seen in ((True, 3.0 * x[:, :, ::-1]), (False, 2.0 * x)):
        step = model.train_on_batch if training else model.test_on_batch
        y_pred = plain.predict(seen, verbose=0)
        logs = step(x, return_dict=True)
        np.testing.assert_allclose(logs["reconstruction_loss"], np.square(y_pred - seen).mean(), rtol=1e-4)
        np.testing.assert_allclose(logs["mae"], np.abs(y_pred - seen).mean(), rtol=1e-4)
        np.testing.assert_allclose(
            logs["explained_variance"], 1 - np.square(y_pred - seen).mean() / seen.var(0).mean(), rtol=1e-3
        )
    np.testing.assert_allclose(model.predict(x, verbose=0), plain.predict(2.0 * x, verbose=0), rtol=1e-5)
    np.testing.assert_array_equal(model.encode(x, verbose=0), plain.encode(2.0 * x, verbose=0))
    # Explicit targets are not preprocessed.
    logs = model.test_on_batch(x, x, return_dict=True)
    np.testing.assert_allclose(
        logs["reconstruction_loss"], np.square(plain.predict(2.0 * x, verbose=0) - x).mean(), rtol=1e-4
    )


@pytest.mark.each_backend(slow=True)
def test_random_flips_act_only_in_training(tmp_path):
    """This decoder sees no positions, so it reconstructs flipped and unflipped images equally well."""
    x = np.zeros((16, 4, 4, 1), "float32")
    x[:, :, :2] = 10 * draw(16, 4, 2, 1)
    flip = layers.RandomFlip("horizontal", seed=1)
    model = keras_vqvae.VQVAE(
        *parts(), preprocessing=keras.Sequential([keras.Input((4, 4, 1)), layers.Rescaling(0.1), flip])
    )
    compiled(model, keras.optimizers.SGD(0.0))
    history = model.fit(x, batch_size=16, epochs=4, verbose=0, validation_data=(x,)).history
    # Validation data are scaled but not flipped.
    expected = np.square(model.predict(x, verbose=0) - 0.1 * x).mean()
    np.testing.assert_allclose(history["val_reconstruction_loss"], [expected] * 4, rtol=1e-4)
    assert len(set(history["reconstruction_loss"])) > 1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    np.testing.assert_array_equal(loaded.encode(x, verbose=0), model.encode(x, verbose=0))
    assert loaded.preprocessing.layers[0].scale == 0.1


def test_integer_images_are_rescaled_by_model_and_tokenizer():
    x = np.random.default_rng(0).integers(0, 255, (12, 4, 4, 1)).astype("uint8")
    model = keras_vqvae.VQVAE(*parts(), preprocessing=layers.Rescaling(1 / 255))
    assert model.built
    compiled(model, "sgd", traced=False)
    model.fit(x, verbose=0)
    assert 0 < model.evaluate(x, verbose=0, return_dict=True)["reconstruction_loss"] < 2
    codes = model.tokenizer.predict(x, verbose=0)
    np.testing.assert_array_equal(codes, model.encode(x.astype("float32"), verbose=0))


def test_a_model_whose_preprocessing_changes_the_shape_is_built_by_the_first_batch():
    model = keras_vqvae.VQVAE(*parts(), preprocessing=layers.Resizing(4, 4))
    assert not model.built
    compiled(model, "sgd", traced=False) if model.built else model.compile("sgd")
    model.fit(draw(8, 9, 7, 1), verbose=0)
    assert model.tokenizer.input_shape == (None, 9, 7, 1)
    assert model.predict(draw(2, 9, 7, 1), verbose=0).shape == (2, 4, 4, 1)


@pytest.mark.each_backend
def test_a_call_without_training_does_not_augment():
    flip = keras.Sequential([keras.Input((4, 4, 1)), layers.RandomFlip("horizontal", seed=1)])
    model = keras_vqvae.VQVAE(*parts(), preprocessing=flip)
    x = draw(8, 4, 4, 1)
    for _ in range(3):
        np.testing.assert_allclose(numpy(model(x)), model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)


class TwoViews(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        self.autoencode(-inputs, training=training)
        return self.autoencode(inputs, training=training)[0]


class NoView(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        return self.decoder(self.quantizer(self.encoder(self.preprocessing(inputs)), training=training))


@pytest.mark.parametrize("kind", [TwoViews, NoView])
def test_targets_must_be_given_if_they_are_ambiguous(kind):
    model = kind(*parts(), preprocessing=layers.Rescaling(2.0))
    model.compile("sgd", "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    x = draw(8, 4, 4, 1)
    with pytest.raises(
        ValueError, match="`y` must be given, because the model has `preprocessing`, .* Received: y=None, [02] calls"
    ):
        model.fit(x, verbose=0)
    model.fit(x, 2 * x, verbose=0)


def test_random_layers_within_the_encoder_are_refused():
    encoder = keras.Sequential([keras.Input((4, 4, 1)), layers.RandomFlip(), layers.Conv2D(3, 2, strides=2)])
    model = keras_vqvae.VQVAE(encoder, *parts()[1:])
    model.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")
    x = draw(8, 4, 4, 1)
    with pytest.raises(ValueError, match=r"`y` must be given.*`preprocessing`.* Received: y=None, layers RandomFlip"):
        model.fit(x, verbose=0)
    # With targets the model is a denoising autoencoder.
    model.fit(x, x, verbose=0)


def test_streams_of_models_with_preprocessing_are_refused():
    sizes = {"embedding_dim": 3, "filters": (4,), "num_residual_blocks": 1, "causal": True}
    encoder, decoder = (
        keras_vqvae.build_conv_encoder((None, 1), **sizes),
        keras_vqvae.build_conv_decoder((None, 1), **sizes),
    )
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16), decoder, layers.Rescaling(0.1))
    x = 10 * draw(1, 30, 1)
    with pytest.raises(ValueError, match="preprocess the chunks yourself"):
        model.encode_stream([x])
    plain = keras_vqvae.VQVAE(model.encoder, model.quantizer, model.decoder)
    streamed = np.concatenate(list(plain.encode_stream(np.split(0.1 * x, [7, 18], axis=1))), axis=1)
    np.testing.assert_array_equal(streamed, model.encode(x, verbose=0))


def test_a_custom_training_loop_has_preprocessed_targets():
    x = draw(8, 4, 4, 1)
    for preprocessing, refused in ((layers.Rescaling(0.1), False), (layers.RandomFlip(), True)):
        model = keras_vqvae.VQVAE(*parts(), preprocessing=preprocessing)
        model.compile("sgd", "mse")
        y_pred = model(x)
        if refused:
            with pytest.raises(ValueError, match="`y` must be given, because random layers"):
                model.compute_loss(x, None, y_pred)
        else:
            loss = numpy(model.compute_loss(x, None, y_pred) - sum(model.losses))
            np.testing.assert_allclose(loss, np.square(numpy(y_pred) - 0.1 * x).mean(), rtol=1e-4)


def test_errors_for_wrong_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="`preprocessing` must be a Keras layer or model. Received: preprocessing=3"):
        keras_vqvae.VQVAE(*parts(), preprocessing=3)
    model = keras_vqvae.VQVAE(*parts(), preprocessing=layers.Rescaling(0.1))
    model.compile("sgd")
    x = draw(8, 4, 4, 1)
    with pytest.raises(ValueError, match="`y` must be given if `sample_weight` is"):
        model.fit(x, sample_weight=np.ones(8), verbose=0)
