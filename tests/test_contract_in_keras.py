"""Tests what every quantizer in `quantizers.py` promises within Keras models, one test for each promise."""

import json

import keras
import numpy as np
import pytest
from helpers import draw, numpy
from keras import layers
from quantizers import DIM, FOR_THE_BASE, SHAPE

import keras_vqvae

pytestmark = pytest.mark.each_backend


@pytest.mark.each_backend("ema", "gumbel", "composed_sim")
def test_sequential_functional_and_subclassed_models_agree(make, name):
    quantizer = make()
    sequential = keras.Sequential([keras.Input(SHAPE), quantizer])
    inputs = keras.Input(SHAPE)
    functional = keras.Model(inputs, quantizer(inputs, return_indices=True))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer

        def call(self, inputs):
            return self.quantizer(inputs, return_indices=True)

    x = draw(12, *SHAPE)
    subclassed = Subclassed()
    expected = functional(x[:4])
    np.testing.assert_array_equal(numpy(sequential(x[:4])), numpy(expected[0]))
    for one, other in zip(subclassed(x[:4]), expected, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    # Batches of 8 and 4 make the batch size unknown.
    quantized, indices = functional.predict(x, batch_size=8, verbose=0)
    np.testing.assert_allclose(quantized[:4], numpy(expected[0]), atol=1e-6)
    assert indices.dtype == "int32"
    np.testing.assert_array_equal(indices[:4], numpy(quantizer.encode(x[:4])))
    np.testing.assert_array_equal(indices[4:], numpy(quantizer.encode(x[4:])))
    if name in FOR_THE_BASE:
        for one, other in zip(subclassed.predict(x, batch_size=8, verbose=0), (quantized, indices), strict=True):
            np.testing.assert_array_equal(one, other)


def test_trap_indices_are_returned_after_a_first_call_without_them(make):
    """Keras 3.15 assumes that all calls of a layer have as many outputs as the first."""
    inputs = keras.Input(SHAPE)
    quantizer = make()
    keras.Model(inputs, quantizer(inputs))
    codes = keras.Model(inputs, quantizer(inputs, return_indices=True)[1])
    x = draw(4, *SHAPE)
    np.testing.assert_array_equal(numpy(codes(x)), numpy(quantizer.encode(x)))


def test_symbolic_outputs_have_the_right_shapes_and_dtypes(layer):
    x = keras.KerasTensor((None, *SHAPE))
    quantized, indices = layer(x, return_indices=True)
    assert quantized.shape == (None, *SHAPE)
    assert quantized.dtype == "float32"
    assert indices.shape == (None, *layer.encode(draw(4, *SHAPE)).shape[1:])
    assert indices.dtype == "int32"
    assert layer.compute_output_shape((None, *SHAPE)) == (None, *SHAPE)


def test_saving_keeps_weights_encoding_and_decoding(make, tmp_path):
    inputs = keras.Input(SHAPE)
    quantizer = make()
    quantized, indices = quantizer(inputs, return_indices=True)
    codes = keras.Input(indices.shape[1:], dtype="int32")
    model = keras.Model([inputs, codes], [quantized, indices, quantizer.decode(codes)])
    x = draw(4, *SHAPE)
    quantizer(x, training=True)
    data = [x, numpy(quantizer.encode(x))[::-1].copy()]
    expected = model(data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded(data), expected, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    for one, other in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def test_a_detokenizer_is_a_functional_model_of_the_same_layer(make, name, tmp_path):
    quantizer = make()
    size = SHAPE[0] if name == "scales" else None
    tokenizer_input = keras.Input((size, DIM))
    tokenizer = keras.Model(tokenizer_input, quantizer(tokenizer_input, return_indices=True)[1])
    axes = len(tokenizer.output_shape) - 1 - len(quantizer.index_shape)
    codes = keras.Input((*(None,) * axes, *quantizer.index_shape), dtype="int32")
    detokenizer = keras.Model(codes, quantizer.decode(codes))
    assert detokenizer.output_shape == (None, size, DIM)
    assert [weight.path for weight in detokenizer.weights] == [weight.path for weight in quantizer.weights]
    detokenizer.save(tmp_path / "detokenizer.keras")
    loaded = keras.models.load_model(tmp_path / "detokenizer.keras")
    for shape in ((4, *SHAPE), (2, 6, DIM)) if name in FOR_THE_BASE else ((4, *SHAPE),):
        indices = tokenizer(draw(*shape))
        expected = numpy(quantizer.decode(indices))
        np.testing.assert_array_equal(numpy(detokenizer(indices)), expected)
        np.testing.assert_array_equal(numpy(loaded(indices)), expected)


def test_the_config_survives_a_round_trip(make):
    layer = make(name="mine", dtype="mixed_bfloat16")
    config = layer.get_config()
    json.dumps(config)  # Only numbers and names.
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert again.name == "mine"
    assert again.compute_dtype == "bfloat16"
    again.build((None, *SHAPE))
    codes = keras.Input((SHAPE[0], *again.index_shape), dtype="int32")
    if not again.quantizes_grids:
        assert again.decode(codes).dtype == "bfloat16"


@pytest.mark.parametrize("shape", [(), (DIM,), (3, None)])
def test_building_for_shapes_without_vectors_is_an_error(make, shape):
    with pytest.raises(ValueError, match=r"rank 2 or more.*Received: input_shape"):
        make().build(shape)


@pytest.mark.parametrize("shape", [(), (DIM,)])
def test_inputs_without_vectors_are_errors(make, shape):
    with pytest.raises(ValueError, match=r"rank 2 or more.*Received: input_shape"):
        make()(np.zeros(shape, "float32"))


def test_inputs_with_another_last_axis_are_errors(layer):
    with pytest.raises(ValueError, match=rf"Received: .*input_shape=\(.*3, {DIM + 1}\)"):
        layer(draw(3, 3, DIM + 1))


def test_symbolic_inputs_with_another_last_axis_are_errors(layer):
    with pytest.raises(ValueError, match=rf"Received: .*input_shape=\(.*3, {DIM + 1}\)"):
        layer(keras.KerasTensor((None, 3, DIM + 1)))


def test_indices_of_another_shape_are_errors(layer):
    if not layer.index_shape:
        pytest.skip("a vector has one index")
    for shape in [(3, *(size + 1 for size in layer.index_shape)), layer.index_shape[1:]]:
        for indices in (np.zeros(shape, "int32"), keras.KerasTensor(shape, dtype="int32")):
            with pytest.raises(ValueError, match="shape that ends in.*Received: indices of shape"):
                layer.decode(indices)


def test_trap_keras_reserves_the_name_quantize(layer):
    assert type(layer).quantize is keras.Layer.quantize
    assert isinstance(layer, keras_vqvae.Quantizer)


def test_trap_the_default_compute_mask_masks_the_first_output_only(layer):
    masked = layers.Masking()(draw(4, *SHAPE))
    outputs = layer(masked, return_indices=True)
    seen = []

    class Spy(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None):
            seen.append(mask)
            return inputs

    for output in outputs:
        Spy()(output)
    sizes = [None if mask is None else tuple(mask.shape) for mask in seen]
    # Indices of several resolutions have no mask.
    assert sizes == [(4, 3), None if layer.quantizes_grids else (4, 3)]
