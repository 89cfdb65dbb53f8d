import keras
import numpy as np
import pytest
from keras import ops

import keras_vqvae


def names(model):
    return [layer.name for layer in model.layers]


def test_layer_names_and_sizes_are_as_documented():
    encoder, decoder = keras_vqvae.build(784)
    assert names(encoder) == [
        *("input", "encoder_dense_0", "encoder_act_0", "encoder_dense_1", "encoder_act_1", "encoder_to_embedding")
    ]
    assert names(decoder) == [
        *("quantized", "decoder_dense_0", "decoder_act_0", "decoder_dense_1", "decoder_act_1", "decoder_output")
    ]
    assert [layer.units for layer in encoder.layers if hasattr(layer, "units")] == [256, 128, 64]
    assert [layer.units for layer in decoder.layers if hasattr(layer, "units")] == [128, 256, 784]
    assert encoder.output_shape == (None, 64)
    assert decoder.output_shape == (None, 784)


def test_the_encoder_matches_its_formula(rng):
    encoder = keras_vqvae.build_encoder(5, embedding_dim=3, encoder_sizes=(4,), activation="tanh")
    x = rng.normal(size=(2, 5)).astype("float32")
    w, b, v, c = (ops.convert_to_numpy(variable) for variable in encoder.variables)
    np.testing.assert_allclose(ops.convert_to_numpy(encoder(x)), np.tanh(x @ w + b) @ v + c, atol=1e-5)


def test_empty_sizes_make_linear_networks():
    encoder, decoder = keras_vqvae.build(10, encoder_sizes=(), decoder_sizes=[])
    assert names(encoder) == ["input", "encoder_to_embedding"]
    assert names(decoder) == ["quantized", "decoder_output"]


def test_the_decoders_output_size_overrides_its_input_size():
    assert keras_vqvae.build_decoder(input_size=10).output_shape == (None, 10)
    assert keras_vqvae.build_decoder(output_size=12).output_shape == (None, 12)
    assert keras_vqvae.build_decoder(input_size=10, output_size=12).output_shape == (None, 12)
    with pytest.raises(ValueError, match="`input_size` must be a positive integer. Received: input_size=0"):
        keras_vqvae.build_decoder(input_size=0)
    with pytest.raises(ValueError, match="Received: input_size=None, output_size=None"):
        keras_vqvae.build_decoder()


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
@pytest.mark.parametrize("name", ["input_size", "embedding_dim", "num_embeddings"])
def test_wrong_sizes_are_named_in_errors(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
        keras_vqvae.build(**{"input_size": 10, name: value})


@pytest.mark.parametrize("value", [8, None, "12", (8, 0), (8, 2.5), (-1,)])
@pytest.mark.parametrize("name", ["encoder_sizes", "decoder_sizes"])
def test_wrong_lists_of_sizes_are_named_in_errors(name, value):
    entry = r"(\[[01]\])?"
    with pytest.raises(ValueError, match=f"`{name}{entry}`.*Received: {name}{entry}="):
        keras_vqvae.build(10, **{name: value})


def test_an_unknown_activation_is_an_error():
    with pytest.raises(ValueError, match="nonsense"):
        keras_vqvae.build(10, activation="nonsense")


def test_an_activation_can_be_a_function():
    encoder = keras_vqvae.build_encoder(4, activation=keras.activations.gelu)
    assert encoder(np.zeros((1, 4))).shape == (1, 64)
