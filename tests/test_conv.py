import re

import keras
import numpy as np
import pytest
from helpers import draw, numpy

import keras_vqvae

SHAPES = {1: (8, 2), 2: (8, 4, 2), 3: (4, 8, 4, 2)}


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def small(shape, **keywords):
    keywords = {"embedding_dim": 3, "filters": (4, 6), "num_residual_blocks": 1, **keywords}
    return keras_vqvae.build_conv_encoder(shape, **keywords), keras_vqvae.build_conv_decoder(shape, **keywords)


def correlate(x, kernel, strides):
    """Computes a convolution along one axis with Keras's "same" padding: `[steps, channels]`."""
    steps, width = len(x), len(kernel)
    outputs = -(-steps // strides)
    padding = max((outputs - 1) * strides + width - steps, 0)
    x = np.pad(x, ((padding // 2, padding - padding // 2), (0, 0)))
    return np.stack([np.einsum("wc,wcf->f", x[i * strides : i * strides + width], kernel) for i in range(outputs)])


def correlate_transposed(x, kernel, strides):
    """Computes the transpose of `correlate` as a linear map: `[steps, filters]` -> `[steps strides, channels]`."""
    steps, channels = len(x) * strides, kernel.shape[1]
    basis = np.eye(steps * channels).reshape(-1, steps, channels)
    matrix = np.stack([correlate(unit, kernel, strides).ravel() for unit in basis])
    return (matrix @ x.ravel()).reshape(steps, channels)


def oracle(model, x):
    """Computes the output of a model with one axis for one sample, layer by layer."""
    weights = {variable.path: numpy(variable) for variable in model.variables}
    kernel = lambda name: (weights[f"{name}/kernel"], weights[f"{name}/bias"])  # noqa: E731

    def conv(x, name, strides=1):
        return correlate(x, kernel(name)[0], strides) + kernel(name)[1]

    def upwards(x, name):
        return correlate_transposed(x, kernel(name)[0], 2) + kernel(name)[1]

    def block(x, prefix):
        change = conv(np.maximum(x, 0), f"{prefix}_residual_0_conv_0")
        return np.maximum(x + conv(np.maximum(change, 0), f"{prefix}_residual_0_conv_1"), 0)

    if model.name == "encoder":
        x = conv(np.maximum(conv(x, "encoder_conv_0", 2), 0), "encoder_conv_1", 2)
        return conv(block(x, "encoder"), "encoder_to_embedding")
    x = block(conv(x, "decoder_conv"), "decoder")
    return upwards(np.maximum(upwards(x, "decoder_conv_0"), 0), "decoder_output")


def test_encoder_and_decoder_are_the_papers_network():
    encoder, decoder = small(SHAPES[1])
    x = draw(1, 8, 2)
    vectors = numpy(encoder(x))
    np.testing.assert_allclose(vectors[0], oracle(encoder, x[0]), atol=1e-5)
    np.testing.assert_allclose(numpy(decoder(vectors))[0], oracle(decoder, vectors[0]), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values())
def test_sizes_are_halved_and_doubled(shape):
    encoder, decoder = small(shape)
    assert encoder.output_shape[1:] == (*(size // 4 for size in shape[:-1]), 3)
    assert decoder(encoder.output).shape == (None, *shape)


@pytest.mark.parametrize("shape", [(9, 2), (1, 2), (6, 9, 2), (3, 5, 8, 2)])
def test_sizes_are_padded_and_cropped(shape):
    encoder, decoder = small(shape)
    assert encoder.output_shape[1:] == decoder.input_shape[1:] == (*(-(-size // 4) for size in shape[:-1]), 3)
    free = small((*(None for _ in shape[:-1]), 2))[1]
    free.set_weights(decoder.get_weights())
    vectors = encoder(draw(1, *shape))
    assert decoder.output_shape[1:] == shape
    np.testing.assert_array_equal(numpy(decoder(vectors)), numpy(free(vectors))[tuple(map(slice, (1, *shape)))])


def test_the_papers_network_pads_sizes_that_strides_do_not_divide():
    encoder, decoder = small((9, 2))
    x = draw(1, 9, 2)
    vectors = numpy(encoder(x))
    np.testing.assert_allclose(vectors[0], oracle(encoder, x[0]), atol=1e-5)
    np.testing.assert_allclose(numpy(decoder(vectors))[0], oracle(decoder, vectors[0])[:9], atol=1e-5)


def test_one_model_can_contain_several_encoders_and_decoders():
    (encoder, decoder), (inner_encoder, inner_decoder) = small((16, 2), name="outer"), small((4, 3), name="inner")
    inputs = keras.Input((16, 2))
    assert keras.Model(inputs, inner_encoder(encoder(inputs))).output_shape == (None, 1, 3)
    inputs = keras.Input((1, 3))
    assert keras.Model(inputs, decoder(inner_decoder(inputs))).output_shape == (None, 16, 2)


def test_sounds_can_have_any_length():
    encoder, decoder = small((None, 2))
    assert encoder.output_shape == decoder.input_shape == (None, None, 3)
    assert decoder(encoder(draw(1, 12, 2))).shape == (1, 12, 2)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow's CPU convolutions need channels last")
def test_channels_first_gives_the_same_outputs(channels_first):
    x = draw(2, 2, 8, 3)
    first = small((2, 8, 3))
    keras.config.set_image_data_format("channels_last")
    last = small((8, 3, 2))
    for one, other in zip(first, last, strict=True):
        other.set_weights(one.get_weights())
    vectors = last[0](np.moveaxis(x, 1, -1))
    np.testing.assert_allclose(numpy(first[0](x)), numpy(vectors), atol=1e-5)
    outputs = np.moveaxis(numpy(last[1](vectors)), -1, 1)
    np.testing.assert_allclose(numpy(first[1](vectors)), outputs, atol=1e-5)


def test_a_convolutional_vqvae_is_trained_and_saved(tmp_path):
    encoder, decoder = small(SHAPES[2], num_residual_blocks=0)
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(8, ema_decay=0.9), decoder)
    model.compile(keras.optimizers.Adam(1e-2))
    x = draw(8, *SHAPES[2])
    losses = model.fit(x, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(x, verbose=0), model.encode(x, verbose=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": ()}, "filters=()"),
        ({"filters": (4, 0)}, "filters[1]=0"),
        ({"num_residual_blocks": -1}, "num_residual_blocks=-1"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"causal": 1}, "causal=1"),
    ],
)
def test_wrong_arguments_are_named_in_errors(arguments, message):
    for build in (keras_vqvae.build_conv_encoder, keras_vqvae.build_conv_decoder):
        with pytest.raises(ValueError, match=re.escape(f"Received: {message}")):
            build((8, 1), **arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 28, 1), "Received: input_shape[0]=0"),
        ((8,), "Received: input_shape=(8,)"),
        (8, "Received: input_shape=8"),
        (np.zeros((8, 8, 1)), "Received: input_shape=ndarray"),
        ((4, 4, 4, 4, 1), "Received: input_shape=(4, 4, 4, 4, 1)"),
        ((8, 8, None), "Received: input_shape[2]=None"),
    ],
)
def test_invalid_shapes_are_named_in_errors(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        keras_vqvae.build_conv_encoder(shape)


def test_causal_models_refuse_several_axes_and_channels_first(channels_first):
    for build, name in (
        (keras_vqvae.build_conv_encoder, "input_shape"),
        (keras_vqvae.build_conv_decoder, "output_shape"),
    ):
        with pytest.raises(
            ValueError, match=r"`causal=True` needs sequences with channels last.*image_data_format='channels_first'"
        ):
            build((1, 8), causal=True)
        keras.config.set_image_data_format("channels_last")
        with pytest.raises(ValueError, match=re.escape(f"Received: causal=True, {name}=(8, 8, 1)")):
            build((8, 8, 1), causal=True)
        keras.config.set_image_data_format("channels_first")


def test_a_causal_model_is_the_papers_network_with_padding_at_the_start():
    """With one layer each, `y_t` depends on samples `2 t - 2` to `2 t + 1`, and two samples depend on two vectors."""
    encoder, decoder = small((6, 2), filters=(4,), num_residual_blocks=0, causal=True)
    x = draw(1, 6, 2)
    kernel = lambda model, name: [numpy(weight) for weight in model.get_layer(name).weights]  # noqa: E731
    padded = np.pad(x[0], ((2, 0), (0, 0)))
    weights, bias = kernel(encoder, "encoder_conv_0")
    y = np.stack([np.einsum("wc,wcf->f", padded[2 * t : 2 * t + 4], weights) for t in range(3)]) + bias
    weights, bias = kernel(encoder, "encoder_to_embedding")
    np.testing.assert_allclose(numpy(encoder(x))[0], np.maximum(y, 0) @ weights[0] + bias, atol=1e-5)
    assert {"decoder_conv_pad", "decoder_output_pad"} <= {layer.name for layer in decoder.layers}
    z = draw(1, 3, 3)
    padded = np.pad(z[0], ((2, 0), (0, 0)))
    weights, bias = kernel(decoder, "decoder_conv")
    y = np.stack([np.einsum("wc,wcf->f", padded[t : t + 3], weights) for t in range(3)]) + bias
    y = np.pad(np.maximum(y, 0), ((1, 0), (0, 0)))
    weights, bias = kernel(decoder, "decoder_output")
    expected = np.stack([weights[i % 2] @ y[1 + i // 2] + weights[i % 2 + 2] @ y[i // 2] for i in range(6)]) + bias
    np.testing.assert_allclose(numpy(decoder(z))[0], expected, atol=1e-5)
