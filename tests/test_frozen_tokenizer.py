"""Tests that a tokenizer stays frozen within a model that is trained."""

import helpers
import keras
import numpy as np
import pytest
from helpers import numpy
from keras import layers

import keras_vqvae


class Drifting(layers.Layer):
    """A layer that breaks every rule: it updates its state and adds a loss even if `training` is `False`."""

    def build(self, input_shape):
        super().build(input_shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs


@pytest.fixture
def x(rng):
    return rng.normal(size=(20, 8)).astype("float32")


def make(*more, **keywords):
    encoder = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.1), activity_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.5, seed=1),
            *more,
            layers.Dense(3),
        ]
    )
    keywords = {"seed": 1, **keywords}
    return keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, **keywords), layers.Dense(8))


def classifier(tokenizer, sizes=(8,)):
    inputs = keras.Input(sizes)
    return keras.Model(inputs, layers.Dense(2)(layers.Embedding(16, 4)(tokenizer(inputs))))


class Subclassed(keras.Model):
    """A subclassed model, whose layers after the tokenizer must get `training` from Keras, too."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.embedding = tokenizer, layers.Embedding(16, 4, embeddings_initializer="ones")
        self.dropout = layers.Dropout(0.5, seed=0)

    def call(self, inputs):
        return self.dropout(self.embedding(self.tokenizer(inputs)))


@pytest.mark.each_backend
def test_training_around_a_tokenizer_does_not_change_it(x):
    model = make(Drifting(), ema_decay=0.9)
    before = helpers.weights(model)
    codes = model.encode(x, verbose=0)
    outer = classifier(model.tokenizer)
    # Weight decay moves every trainable weight, even one without a gradient.
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    own = outer.layers[-1].get_weights()
    helpers.compiled(outer, optimizer, "mse").fit(x, x[:, :2], epochs=2, verbose=0)
    assert (outer.layers[-1].get_weights()[0] != own[0]).any()
    helpers.assert_same_weights(before, helpers.weights(model))
    np.testing.assert_array_equal(model.encode(x, verbose=0), codes)
    for training in (False, True):
        np.testing.assert_array_equal(numpy(model.tokenizer(x, training=training)), codes)
        outer(x, training=training)
        assert outer.losses == []
    helpers.assert_same_weights(before, helpers.weights(model))
    assert len(outer.trainable_weights) == len(outer.trainable_variables) == 3


def test_the_tokenizer_follows_further_training_of_its_model(x):
    model = make(ema_decay=0.9)
    tokenizer, outer = model.tokenizer, classifier(model.tokenizer)
    helpers.compiled(outer, "sgd", "mse", traced=False).fit(x, x[:, :2], verbose=0)
    codes, old = tokenizer.predict(x, verbose=0), outer.predict(x, verbose=0)
    before = helpers.weights(model.encoder)
    helpers.compiled(model, keras.optimizers.SGD(0.5), traced=False).fit(x, epochs=3, verbose=0)
    trained = [weight.path for weight in model.encoder.trainable_weights]
    assert all((helpers.weights(model.encoder)[path] != before[path]).any() for path in trained)
    new = tokenizer.predict(x, verbose=0)
    np.testing.assert_array_equal(new, model.encode(x, verbose=0))
    assert (new != codes).any()
    assert (outer.predict(x, verbose=0) != old).any()


def test_layers_after_the_tokenizer_get_the_training_argument(x):
    outer = Subclassed(make().tokenizer)
    assert (numpy(outer(x, training=True)) == 0).any()
    assert (numpy(outer(x, training=False)) == 1).all()


@pytest.mark.each_backend
def test_a_model_of_tokenizer_and_detokenizer_is_trained(x):
    """The detokenizer and its codebook are trained. On JAX, both halves could donate the same arrays."""
    model = make()
    inputs = keras.Input((8,))
    outer = keras.Model(inputs, model.detokenizer(model.tokenizer(inputs)))
    before = numpy(model.quantizer.codebook).copy()
    helpers.compiled(outer, keras.optimizers.SGD(0.1), "mse", traced=False).fit(x, x, verbose=0)
    assert (numpy(model.quantizer.codebook) != before).any()
    np.testing.assert_allclose(outer.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.each_backend
def test_a_model_that_contains_a_tokenizer_is_saved(x, tmp_path):
    model = make(ema_decay=0.9)
    helpers.compiled(model, "sgd", traced=False).fit(x, verbose=0)
    outer = helpers.compiled(classifier(model.tokenizer), "sgd", "mse", traced=False)
    outer.fit(x, x[:, :2], verbose=0)
    expected = outer.predict(x, verbose=0)
    outer.save(tmp_path / "outer.keras")
    loaded = keras.models.load_model(tmp_path / "outer.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
    # The tokenizer is still frozen.
    frozen = loaded.layers[1].layers[1]
    before = [numpy(variable) for variable in frozen.variables]
    loaded.fit(x, x[:, :2], verbose=0)
    for value, variable in zip(before, frozen.variables, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)
    outer.save_weights(tmp_path / "outer.weights.h5")
    other = classifier(make(ema_decay=0.9, seed=5).tokenizer)
    other.load_weights(tmp_path / "outer.weights.h5")
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, atol=1e-6)


def test_encoder_and_quantizer_keep_their_own_dtype_policies():
    made, x = make(), helpers.draw(500, 8)
    expected = made.encode(x, batch_size=500, verbose=0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras_vqvae.VQVAE(made.encoder, made.quantizer, made.decoder)
    inputs = keras.Input((8,), dtype="float32")
    outer = keras.Model(inputs, model.tokenizer(layers.Activation("linear", dtype="float32")(inputs)))
    for tokenizer in (model.tokenizer, outer):
        np.testing.assert_array_equal(tokenizer.predict(x, batch_size=500, verbose=0), expected)


# Keras warns about functional models.
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_masks_pass_through_the_tokenizer(rng):
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    x[:, 3:] = 0
    encoder = keras.Sequential([keras.Input((5, 3)), layers.Masking(), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), layers.Dense(3))
    inputs = keras.Input((5, 3))
    outer = keras.Model(inputs, layers.ReLU()(model.tokenizer(inputs)))
    assert (numpy(model.tokenizer(x))[:, 3:] == -1).all()
    mask = getattr(outer(x), "_keras_mask", None)
    np.testing.assert_array_equal(numpy(mask), np.arange(5)[None].repeat(4, 0) < 3)
    # An encoder that averages over the steps passes on no mask.
    encoder = keras.Sequential([keras.Input((5, 3)), layers.GlobalAveragePooling1D(), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), layers.Dense(3))
    outer = keras.Model(inputs, layers.ReLU()(model.tokenizer(layers.Masking()(inputs))))
    assert getattr(outer(x), "_keras_mask", None) is None
    np.testing.assert_array_equal(
        numpy(outer(x)), numpy(model.quantizer.encode(encoder(x[:, :3].mean(1, keepdims=True))))
    )


def test_a_frozen_quantizer_keeps_its_losses(x):
    encoder = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    quantizer = keras_vqvae.VectorQuantizer(16, seed=1, trainable=False)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, quantizer(encoder(inputs)))
    vectors = numpy(encoder(x))
    codes = numpy(quantizer.decode(quantizer.encode(vectors)))
    model(x, training=True)
    losses = [numpy(loss) for loss in model.losses]
    np.testing.assert_allclose(sum(losses), 1.25 * np.square(vectors - codes).mean(), rtol=1e-5)
