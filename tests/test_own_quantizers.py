"""Tests user-defined quantizers and functions that are not registered for saving."""

import keras
import numpy as np
import pytest
from helpers import draw, numpy
from keras import layers, ops
from quantizers import DIM

import keras_vqvae


class Signs(keras_vqvae.Quantizer):
    """A quantizer with a code for each quadrant, and without its own configuration."""

    def __init__(self, dim=DIM, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.num_embeddings = 2**dim

    def assign(self, vectors):
        places = 2 ** ops.arange(self.dim, dtype="int32")
        return ops.sum(ops.cast(vectors > 0, "int32") * places, axis=-1)

    def lookup(self, indices):
        places = 2 ** ops.arange(self.dim, dtype="int32")
        return ops.cast(2 * (ops.expand_dims(indices, -1) // places % 2) - 1, "float32")


class Vector(keras_vqvae.VectorQuantizer):
    pass


class Residual(keras_vqvae.ResidualQuantizer):
    pass


class Ones(keras.initializers.Initializer):
    """An initializer with an argument but no configuration."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, shape, dtype=None):
        return self.scale * ops.ones(shape, dtype)


def copied(z_e, z_q):
    return keras_vqvae.straight_through(z_e, z_q)


WRAPPERS = {
    "residual": lambda inner: keras_vqvae.ResidualQuantizer(inner, 2),
    "grouped": lambda inner: keras_vqvae.GroupedQuantizer(inner, 1),
    "projected": lambda inner: keras_vqvae.ProjectedQuantizer(inner, DIM),
    "own": lambda inner: Residual(inner, 2),
}


def innermost(layer):
    while hasattr(layer, "template"):
        layer = layer.quantizers[-1] if hasattr(layer, "quantizers") else layer.quantizer
    return layer


def built(layer):
    keras.utils.set_random_seed(0)
    layer.build((None, DIM))
    return layer


@pytest.mark.parametrize("outside", WRAPPERS)
@pytest.mark.parametrize("inside", WRAPPERS)
def test_a_wrapped_subclass_behaves_like_its_wrapped_base_class(outside, inside):
    def made(kind):
        keras.utils.set_random_seed(0)
        return built(WRAPPERS[outside](WRAPPERS[inside](kind(16, ema_decay=0.9, seed=7))))

    layer, expected = made(Vector), made(keras_vqvae.VectorQuantizer)
    assert type(innermost(layer)) is Vector
    for one, other in zip(layer.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    x = draw(12, DIM)
    np.testing.assert_array_equal(numpy(layer.encode(x)), numpy(expected.encode(x)))


def test_a_quantizer_without_get_config_can_be_wrapped():
    layer = keras_vqvae.MultiScaleQuantizer(WRAPPERS["residual"](WRAPPERS["projected"](Signs(DIM))), (1, 3))
    x = draw(4, 3, DIM)
    _, indices = layer(x, training=True, return_indices=True)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(layer(x)))
    assert type(innermost(layer)) is Signs


def test_wrappers_pass_functions_on_unchanged():
    """The functions include some that Keras cannot save or load."""
    functions = {
        "estimator": copied,
        "embeddings_initializer": Ones(3.0),
        "embeddings_regularizer": lambda codebook: ops.sum(codebook),
        "embeddings_constraint": lambda codebook: ops.clip(codebook, -9.0, 9.0),
        "assignment_regularizer": lambda vectors, codebook, valid: ops.mean(codebook),
    }
    layer = built(WRAPPERS["grouped"](WRAPPERS["residual"](keras_vqvae.VectorQuantizer(8, **functions))))
    for quantizer in layer.quantizers[0].quantizers:
        for name, function in functions.items():
            assert getattr(quantizer, name) is function
        np.testing.assert_array_equal(numpy(quantizer.codebook), 3)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("initializer", ["uniform", "of a seed", "default"])
def test_copies_start_with_different_codes(seed, initializer):
    keywords = {
        "uniform": {"embeddings_initializer": keras.initializers.RandomUniform()},
        "of a seed": {"embeddings_initializer": keras.initializers.RandomUniform(seed=5)},
        "default": {},
    }[initializer]
    layer = built(WRAPPERS["grouped"](WRAPPERS["residual"](Vector(8, seed=seed, **keywords))))
    first, second = (numpy(quantizer.codebook) for quantizer in layer.quantizers[0].quantizers)
    assert (first != second).all()


def test_a_resized_layer_keeps_the_functions_of_the_old_one():
    def regularizer(vectors, codebook, valid):
        return ops.mean(codebook)

    layer = built(keras_vqvae.VectorQuantizer(8, assignment_regularizer=regularizer, embeddings_initializer=Ones(3.0)))
    larger, _ = layer.resize(12)
    assert larger.assignment_regularizer is regularizer
    np.testing.assert_array_equal(numpy(larger.codebook), 3)


class Forgetful(keras_vqvae.VectorQuantizer):
    def __init__(self, num_embeddings, strength=0.5, **kwargs):
        super().__init__(num_embeddings, **kwargs)


class Closed(keras_vqvae.VectorQuantizer):
    def __init__(self):
        super().__init__(8)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: Forgetful(8, strength=0.1), r"not return \['strength'\]"), (Closed, r"not take \[.*'num_embeddings'")],
)
def test_a_config_that_cannot_recreate_the_quantizer_is_an_error(wrapper, make, message):
    with pytest.raises(ValueError, match=f"`quantizer`.*{message}.*Received: quantizer="):
        WRAPPERS[wrapper](make())


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: WRAPPERS["residual"](WRAPPERS["projected"](Signs())), Signs),
        (lambda: WRAPPERS["residual"](keras_vqvae.VectorQuantizer(8, estimator=copied)), copied),
    ],
)
def test_saving_warns_about_unregistered_objects(make, own, tmp_path):
    model = keras.Sequential([keras.Input((DIM,)), layers.Dense(DIM), make()])
    with pytest.warns(
        UserWarning, match=f"`{own.__name__}` is not registered.* Put `@keras.saving.register_keras_serializable"
    ):
        model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match=own.__name__):
        keras.saving.load_model(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={own.__name__: own})
    x = draw(12, DIM)
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))
    # A registered class is saved without a warning.
    with keras.saving.custom_object_scope({own.__name__: own}):
        model.save(tmp_path / "model.keras")
