"""Tests that quantizers compute in float32 within PyTorch's own mixed precision, `torch.autocast`."""

import contextlib

import keras
import numpy as np
import pytest
from helpers import draw, numpy, restore, weights
from keras import layers, ops
from quantizers import DIM, EVERY, SHAPE

import keras_vqvae

if keras.backend.backend() != "torch":
    pytest.skip("autocast is part of PyTorch", allow_module_level=True)
import torch


def autocast(dtype):
    return torch.autocast("cpu", getattr(torch, dtype))


def everything(layer, within):
    """Returns a layer's outputs, losses and gradients as arrays. `within` returns the context to compute in."""
    x, cotangent = ops.convert_to_tensor(draw(32, *SHAPE)).requires_grad_(), ops.convert_to_tensor(draw(32, *SHAPE))
    found = {}
    with within():
        quantized, found["indices"] = layer(x, training=True, return_indices=True)
        found |= {f"loss {i}": loss for i, loss in enumerate(layer.losses)}
        total = (quantized * cotangent).sum() + sum(layer.losses)
        by = [x, *(variable.value for variable in layer.trainable_variables)]
        gradients = torch.autograd.grad(total, by, allow_unused=True)
        found |= {f"gradient {i}": gradient for i, gradient in enumerate(gradients) if gradient is not None}
        found["output"] = quantized
        found["codes"] = layer.decode(layer.encode(x))
        layer(x)
        found |= {f"loss in evaluation {i}": loss for i, loss in enumerate(layer.losses)}
    return {name: value.detach() for name, value in found.items()}, weights(layer)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_results_are_the_same_within_autocast(layer, dtype):
    before = weights(layer)
    expected, state = everything(layer, contextlib.nullcontext)
    restore(layer, before)
    found, again = everything(layer, lambda: autocast(dtype))
    assert found.keys() == expected.keys()
    for name in expected:
        # Outputs too: a layer returns its compute dtype, and the next operation casts it as autocast requires.
        assert found[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(numpy(found[name]), numpy(expected[name]), err_msg=name)
    for path, value in state.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


@pytest.mark.parametrize("name", ["ema", "sim", "residual", "grouped", "projected", "scales"])
def test_adapt_is_the_same_within_autocast(name):
    def adapted(context):
        keras.utils.set_random_seed(0)
        layer = EVERY[name]()
        layer.build((None, *SHAPE))
        for variable in layer.trainable_variables:
            variable.assign(draw(*variable.shape, seed=3))
        with context:
            layer.adapt(draw(64, *SHAPE), seed=1, verbose=0)
        return [numpy(variable) for variable in layer.variables]

    for one, other in zip(adapted(autocast("bfloat16")), adapted(contextlib.nullcontext()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_functions_return_the_same_within_autocast():
    vectors, codebook = draw(500, 64), draw(256, 64, seed=1)

    def results():
        quantized, indices = keras_vqvae.quantize(vectors, codebook)
        cosine = keras_vqvae.nearest_code(vectors, codebook, distance="cosine")
        codes, counts = keras_vqvae.kmeans(vectors, 16, seed=0, verbose=0)
        return quantized, indices, cosine, codes, ops.convert_to_tensor(counts)

    expected = results()
    with autocast("bfloat16"):
        found = results()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(numpy(one), numpy(other))


@pytest.mark.parametrize("inside", ["call", "losses"])
def test_autocast_around_call_or_losses_does_not_change_losses(inside):
    def product(vectors, codebook, valid):
        return ops.mean(ops.matmul(vectors, ops.transpose(codebook)))

    layer = keras_vqvae.VectorQuantizer(16, assignment_regularizer=product, seed=7)
    layer.build((None, DIM))
    x = draw(24, DIM)
    expected = numpy(product(x, layer.codebook, None))
    with autocast("bfloat16") if inside == "call" else contextlib.nullcontext():
        layer(x)
    with autocast("bfloat16") if inside == "losses" else contextlib.nullcontext():
        found = numpy(layer.losses[-1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "residual", "projected"])
def test_torch_compile_of_a_quantizer_works_within_autocast(name):
    torch.compiler.reset()
    layer = EVERY[name]()
    x = ops.convert_to_tensor(draw(2, 3, DIM))
    layer.build(x.shape)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(lambda x: layer(x, return_indices=True), fullgraph=True, backend=count)
    with torch.no_grad():
        expected = layer(x, return_indices=True)
        compiled(x)
        # A program compiled outside of autocast must contain no trace of it.
        assert "autocast" not in graphs[0]
        with autocast("bfloat16"):
            quantized, indices = compiled(x)
    np.testing.assert_array_equal(numpy(indices), numpy(expected[1]))
    np.testing.assert_allclose(numpy(quantized), numpy(expected[0]), atol=1e-6)


def test_a_model_trains_within_autocast():
    """Runs all of `fit`, with its backward pass. Keras layers under autocast compute in bfloat16 and return float32."""
    model = keras.Sequential([keras.Input((DIM,)), layers.Dense(DIM), EVERY["projected"](), layers.Dense(2)])
    model.compile("sgd", "mse")
    dense, quantizer, _ = model.layers
    x = draw(24, DIM)
    with autocast("bfloat16"):
        history = model.fit(x, draw(24, 2), epochs=2, verbose=0).history
        vectors = dense(x)
        quantized = quantizer(vectors)
    assert np.isfinite(history["loss"]).all()
    assert quantized.dtype == vectors.dtype == torch.float32
    assert (numpy(vectors) != numpy(dense(x))).any()
    np.testing.assert_array_equal(numpy(quantized), numpy(quantizer(vectors)))
