"""Tests sizes that the strides do not divide: inputs are padded, outputs are cropped."""

import re

import helpers
import keras
import numpy as np
import pytest
from helpers import draw, numpy
from keras import layers

import keras_vqvae

SMALL = {"embedding_dim": 3, "filters": (4, 6), "num_residual_blocks": 1}
SHAPES = {1: (9, 2), 2: (6, 9, 1), 3: (2, 5, 8, 1)}
"""Sample shapes for two halvings. Some of the sizes are divisible by 4."""


def make(sizes, channels=1, **keywords):
    shape = (*sizes, channels)
    parts = (
        keras_vqvae.build_conv_encoder(shape, **SMALL, **keywords),
        keras_vqvae.build_conv_decoder(shape, **SMALL, **keywords),
    )
    return keras_vqvae.VQVAE(parts[0], keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=1), parts[1])


def weights_of(model, other):
    for name in ("encoder", "quantizer", "decoder"):
        getattr(model, name).set_weights(getattr(other, name).get_weights())
    return model


@pytest.mark.parametrize("shape", SHAPES.values())
def test_a_model_for_any_size_equals_a_model_for_that_size(shape):
    """A model for one size crops in its decoder, and a model for any size in `VQVAE`. Both round the grid up."""
    *sizes, channels = shape
    known = make(sizes, channels)
    free = weights_of(make([None] * len(sizes), channels), known)
    x = draw(2, *shape)
    codes = free.encode(x, verbose=0)
    assert codes.shape == (2, *(-(-size // 4) for size in sizes))
    np.testing.assert_array_equal(known.encode(x, verbose=0), codes)
    expected = known.predict(x, verbose=0)
    assert expected.shape == x.shape
    np.testing.assert_allclose(free.predict(x, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(numpy(free(x)), expected, atol=1e-6)
    # Without a size, `decode` returns the decoder's full output, which begins with the cropped one.
    whole = free.decode(codes, verbose=0)
    assert whole.shape == (2, *(-(-size // 4) * 4 for size in sizes), channels)
    np.testing.assert_allclose(whole[tuple(slice(n) for n in x.shape)], expected, atol=1e-6)
    np.testing.assert_array_equal(free.decode(codes, verbose=0, size=sizes), whole[tuple(map(slice, x.shape))])


def test_a_causal_model_is_padded_with_zeros_at_the_end():
    model = make((None,), causal=True)
    x = draw(2, 9, 1)
    padded = np.pad(x, ((0, 0), (0, 3), (0, 0)))
    np.testing.assert_array_equal(model.encode(x, verbose=0), model.encode(padded, verbose=0))
    np.testing.assert_allclose(model.predict(x, verbose=0), model.predict(padded, verbose=0)[:, :9], atol=1e-6)


@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.each_backend(slow=True)), True])
def test_a_model_for_any_size_is_trained(causal):
    """Batches have different sizes, so TensorFlow traces unknown ones."""
    model = helpers.compiled(make((None,), causal=causal), keras.optimizers.Adam(0.01))
    for size in (9, 6):
        x = draw(4, size, 1)
        error = np.square(model.predict(x, verbose=0) - x).mean()
        logs = model.train_on_batch(x, return_dict=True)
        np.testing.assert_allclose(logs["reconstruction_loss"], error, rtol=1e-3)
        assert model.predict(x, verbose=0).shape == x.shape
    error = np.square(model.predict(x, verbose=0) - x).mean()
    logs = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reconstruction_loss"], error, rtol=1e-4)


@pytest.mark.each_backend
def test_sizes_that_are_unknown_in_a_graph_work():
    model = make((None, None))

    def call(x):
        return model(x)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        call = tf.function(call, input_signature=[tf.TensorSpec((None, None, None, 1))], autograph=False)
    # Not on JAX, which compiles each operation outside of a program.
    for sizes in ((5, 6), (8, 3)) if keras.backend.backend() != "jax" else ():
        x = draw(2, *sizes, 1)
        np.testing.assert_allclose(numpy(call(keras.ops.convert_to_tensor(x))), model.predict(x, verbose=0), atol=1e-6)
    inputs = keras.Input((None, None, 1))
    outer = keras.Model(inputs, model(inputs))
    assert outer.output_shape == (None, None, None, 1)
    x = draw(2, 5, 6, 1)
    np.testing.assert_allclose(outer.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


class Doubled(layers.Layer):
    """A layer that doubles the number of steps."""

    def call(self, x):
        return keras.ops.repeat(x, 2, axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] and 2 * shape[1], *shape[2:])


def test_a_decoder_that_upsamples_more_is_not_cropped():
    encoder, decoder = make((None,)).encoder, make((None,)).decoder
    latents = keras.Input((None, 3))
    model = keras_vqvae.VQVAE(
        encoder, keras_vqvae.VectorQuantizer(16), keras.Model(latents, Doubled()(decoder(latents)))
    )
    # Inputs below one stride, of one stride, of one of the doubled decoder's strides, and above.
    for size in (3, 4, 8, 9):
        steps = 2 * -(-size // 4) * 4
        assert model.predict(draw(2, size, 1), verbose=0).shape == (2, steps, 1)
    helpers.compiled(model, "sgd", traced=False)
    model.train_on_batch(draw(2, 8, 1), draw(2, 16, 1))
    with pytest.raises(ValueError, match="`size` must be None"):
        model.decode(model.encode(draw(2, 8, 1), verbose=0), verbose=0, size=8)


def test_only_outputs_at_the_resolution_of_the_input_are_cropped():
    encoder, decoder = make((None,)).encoder, make((None,)).decoder
    latents = keras.Input((None, 3))
    outputs = {
        "wave": decoder(latents),
        "label": layers.Dense(2)(layers.GlobalAveragePooling1D()(latents)),
        "frames": layers.Dense(2)(latents),
    }
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16), keras.Model(latents, outputs))
    x = draw(2, 9, 1)
    shapes = {name: value.shape for name, value in model.predict(x, verbose=0).items()}
    assert shapes == {"wave": (2, 9, 1), "label": (2, 2), "frames": (2, 3, 2)}
    decoded = model.decode(model.encode(x, verbose=0), verbose=0, size=9)
    assert {name: value.shape for name, value in decoded.items()} == shapes


def test_a_decoder_of_fixed_size_is_not_cropped():
    """Its output is meant to be longer than the input, as in `fit(x, y)`."""
    encoder = make((None,)).encoder
    latents = keras.Input((None, 3))
    # More than any size that is tried.
    x = layers.Dense(1200)(layers.GlobalAveragePooling1D()(latents))
    decoder = keras.Model(latents, layers.Reshape((1200, 1))(x))
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16), decoder)
    assert model.predict(draw(2, 9, 1), verbose=0).shape == (2, 1200, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sizes_of_at_most_one_stride_work(size):
    model = make((None,))
    x = draw(2, size, 1)
    assert model.encode(x, verbose=0).shape == (2, 1)
    assert model.predict(x, verbose=0).shape == x.shape
    known = weights_of(make((size,)), model)
    np.testing.assert_allclose(known.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_empty_sequences_are_errors():
    model = make((None,))
    model.compile("sgd")
    for use in (model.encode, model.predict, model.fit, model):
        with pytest.raises(ValueError, match=re.escape("must not be empty along any axis. Received: ")):
            use(np.zeros((2, 0, 1), "float32"))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (13, "at most (12,)"),
        ((9, 9), "must be an integer or a sequence of length 1. Received: size=(9, 9)"),
        (0, "positive integer. Received: size=0"),
    ],
)
def test_impossible_sizes_are_named_in_errors(size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make((None,)).decode(np.zeros((2, 3), "int32"), verbose=0, size=size)


def test_a_model_for_any_size_survives_saving(tmp_path):
    model = make((None,))
    x = draw(2, 9, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
