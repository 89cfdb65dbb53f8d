"""Tests quantizers in various uses of layers that Keras and its backends support."""

import contextlib

import keras
import numpy as np
import pytest
from helpers import assert_same_weights, draw, numpy, weights
from keras import layers
from quantizers import DIM, EVERY, QUANTIZERS

import keras_vqvae

pytestmark = pytest.mark.each_backend

BACKEND = keras.backend.backend()


def around(quantizer):
    return keras.Sequential([keras.Input((3, DIM)), layers.Dense(DIM), quantizer, layers.Dense(2)])


def with_regularizer():
    return keras_vqvae.VectorQuantizer(16, assignment_regularizer=keras_vqvae.AssignmentEntropy(), seed=7)


SCORED = {name: EVERY[name] for name in ("optimizer", "lfq", "ibq", "grouped_residual")} | {"entropy": with_regularizer}


@pytest.mark.parametrize("name", SCORED)
def test_evaluation_of_any_model_includes_the_losses(name):
    quantizer = SCORED[name]()
    model = around(quantizer)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = draw(8, 3, DIM), draw(8, 3, 2)
    # Dead codes must not move.
    quantizer.trainable = False
    quantizer(model.layers[0](x), training=True)
    added = sum(float(numpy(loss)) for loss in quantizer.losses)
    expected = np.square(numpy(model(x)) - y).mean() + added
    history = model.fit(x, y, validation_data=(x, y), batch_size=8, verbose=0).history
    for found in (history["loss"][0], history["val_loss"][0], model.evaluate(x, y, verbose=0)):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(added) > 1e-3


@pytest.mark.parametrize("name", SCORED)
def test_losses_that_are_not_read_are_not_computed(name, monkeypatch):
    quantizer = SCORED[name]()
    model = around(quantizer)

    def compute_losses(*arguments):
        raise AssertionError("computed")

    for each in (quantizer, *quantizer._flatten_layers(include_self=False)):
        monkeypatch.setattr(each, "compute_losses", compute_losses, raising=False)
    x = draw(4, 3, DIM)
    model.predict(x, verbose=0)
    quantizer.encode(x)
    with pytest.raises(AssertionError, match="computed"):
        print(quantizer.losses)


def test_losses_of_a_finished_trace_are_not_returned():
    """The tensors of a finished trace have no values."""
    model = around(EVERY["optimizer"]())
    model.compile("sgd", "mse")
    x, y = draw(8, 3, DIM), draw(8, 3, 2)
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    for loss in model.losses:
        assert np.isfinite(numpy(loss))
    model(x)
    assert len(model.losses) == 2


@pytest.mark.parametrize("name", ["ema", "residual", "grouped_residual", "projected"])
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize:UserWarning")
@pytest.mark.filterwarnings("ignore:.model.quantize.* were skipped:UserWarning")  # Keras 3.16
def test_trap_int8_does_not_change_a_quantizer(name):
    quantizer = EVERY[name]()
    model = around(quantizer)
    before = weights(quantizer)
    x = draw(4, 3, DIM)
    model.quantize("int8")
    assert_same_weights(before, weights(quantizer))
    assert model.layers[0].quantization_mode == "int8"
    assert model.predict(x, verbose=0).shape == (4, 3, 2)


@pytest.mark.parametrize("how", ["training=False", "predict"])
def test_trap_a_resizing_layer_does_not_set_training_for_later_layers(how):
    """Up to Keras 3.15.1, `Resizing` sets `training=True` for the layers after it if the caller sets nothing."""
    quantizer = EVERY["ema"]()
    model = keras.Sequential([keras.Input((4, 4, DIM)), keras.layers.Resizing(4, 4), quantizer])
    before = weights(quantizer)
    x = draw(2, 4, 4, DIM)
    if how == "predict":
        model.predict(x, verbose=0)
    else:
        model(x, training=False)
    assert_same_weights(before, weights(quantizer))


def whole_recomputations():
    """Makes PyTorch rerun whole layers. By default it stops once the gradient can be computed, before state updates."""
    if BACKEND != "torch":
        return contextlib.nullcontext()
    from torch.utils.checkpoint import set_checkpoint_early_stop

    return set_checkpoint_early_stop(False)


@pytest.mark.parametrize("name", ["ema", "residual"])
def test_trap_remat_does_not_learn_twice(name):
    with keras.RematScope("full"):
        quantizer = EVERY[name]()
    model = around(quantizer)
    model.compile("sgd", "mse")
    with whole_recomputations():
        model.train_on_batch(draw(8, 3, DIM), draw(8, 3, 2))
    counts = numpy(quantizer.code_counts)
    np.testing.assert_array_equal(counts.reshape(-1, counts.shape[-1]).sum(-1), 24)


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch runs a layer a second time for its gradient")
def test_trap_a_call_that_is_recomputed_for_its_gradient_is_refused():
    quantizer, after = EVERY["ema"](), layers.Dense(2)

    def whole(x):
        return after(keras.ops.tanh(quantizer(x, training=True)))

    x = keras.ops.convert_to_tensor(draw(8, DIM)).requires_grad_()
    whole(x)
    output = keras.remat(whole)(x)
    with pytest.raises(RuntimeError, match="updated twice"):
        output.sum().backward()


@pytest.mark.skipif(BACKEND != "torch", reason="`torch.compile` is part of PyTorch")
@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_trap_torch_compile_makes_one_graph_of_a_quantizer(name):
    import torch

    torch.compiler.reset()
    quantizer = QUANTIZERS[name]()
    x = keras.ops.convert_to_tensor(draw(2, 3, DIM))
    quantizer.build(x.shape)
    compilations = []

    def count(graph, inputs):
        compilations.append(graph)
        return graph

    compiled = torch.compile(lambda x: quantizer(x, return_indices=True), fullgraph=True, backend=count)
    with torch.no_grad():
        # This call creates a Keras state that would otherwise cause a second compilation.
        expected = quantizer(x, return_indices=True)
        for _ in range(4):
            quantized, indices = compiled(x)
    np.testing.assert_array_equal(numpy(indices), numpy(expected[1]))
    np.testing.assert_allclose(numpy(quantized), numpy(expected[0]), atol=1e-6)
    assert len(compilations) == 1


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch does not compile the call, so a wrong index raises an error")
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8", "uint32"])
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
def test_compiled_code_clips_indices_outside_the_codebook(dtype):
    """The dtype may be too narrow for the largest index, or lack -1, which means "no code"."""
    quantizer = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(300, seed=7), 2)
    quantizer.build((None, DIM))
    codes = keras.Input((2,), dtype=dtype)
    model = keras.Model(codes, quantizer.decode(codes))
    limits = np.iinfo(dtype if dtype != "int64" or BACKEND != "jax" else "int32")
    outside = np.array([[limits.max, limits.min], [7, limits.max]], dtype)
    inside = np.clip(outside.astype("int64"), -1, 299)
    np.testing.assert_array_equal(model.predict(outside, verbose=0), numpy(quantizer.decode(inside)))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow compiles programs for unknown batch sizes here")
@pytest.mark.parametrize("name", ["ema", "cosine", "bsq", "diveq", "gumbel", "grouped_residual"])
def test_trap_a_program_compiled_for_any_batch_size_accepts_an_empty_batch(name):
    """An empty batch has no maximum."""
    import tensorflow as tf

    quantizer = EVERY[name]()
    quantizer.build((None, 3, DIM))

    @tf.function(input_signature=[tf.TensorSpec((None, 3, DIM))])
    def train(x):
        quantized, indices = quantizer(x, training=True, return_indices=True)
        return quantized, indices, quantizer.losses

    train(tf.constant(draw(2, 3, DIM)))
    before = weights(quantizer)
    quantized, indices, losses = train(tf.zeros((0, 3, DIM)))
    assert quantized.shape == (0, 3, DIM)
    assert indices.shape == (0, 3, *quantizer.index_shape)
    np.testing.assert_array_equal(losses, 0)
    seeds = [path for path in before if "seed" in path]
    assert_same_weights(*({k: v for k, v in w.items() if k not in seeds} for w in (before, weights(quantizer))))


@pytest.mark.parametrize(
    ("make", "received"),
    {
        "distance": (lambda: keras_vqvae.VectorQuantizer(8, distance=["cosine"]), r"distance=\['cosine'\]"),
        "distances": (lambda: keras_vqvae.VectorQuantizer(8, distance=np.array(["cosine", "x"])), "distance=array"),
        "estimator": (lambda: keras_vqvae.VectorQuantizer(8, estimator=["rotation"]), r"estimator=\['rotation'\]"),
        "estimator dict": (lambda: keras_vqvae.VectorQuantizer(8, estimator={"a": 1}), "estimator={'a': 1}"),
        "levels": (lambda: keras_vqvae.FiniteScalarQuantizer(np.array(5)), r"levels=array\(5\)"),
        "many levels": (lambda: keras_vqvae.FiniteScalarQuantizer(range(2, 10**12)), "levels with more"),
        "seed": (lambda: keras_vqvae.VectorQuantizer(8, seed=-1), "seed=-1"),
        "large seed": (lambda: keras_vqvae.GumbelQuantizer(8, seed=2**40), "seed=1099511627776"),
        "seed of noise": (lambda: keras_vqvae.FiniteScalarQuantizer(seed=-1), "seed=-1"),
        "seed of dropout": (lambda: keras_vqvae.ResidualQuantizer(EVERY["ema"](), 2, seed=1.5), "seed=1.5"),
        "seed of draws": (lambda: keras_vqvae.nsvq(np.ones((2, 3)), np.ones((2, 3)), seed=-1), "seed=-1"),
        "seed of k-means": (lambda: keras_vqvae.kmeans(np.ones((3, 2)), 2, seed=-1), "seed=-1"),
        "codes": (lambda: keras_vqvae.VectorQuantizer(10**12), "num_embeddings=1000000000000"),
        "depth": (lambda: keras_vqvae.ResidualQuantizer(EVERY["ema"](), 10**12), "num_quantizers=1000000000000"),
        "groups": (lambda: keras_vqvae.GroupedQuantizer(EVERY["ema"](), 10**12), "num_groups=1000000000000"),
    }.values(),
)
def test_implausible_arguments_are_named_in_errors(make, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        make()
