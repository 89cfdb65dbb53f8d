"""Tests priors over the codes of a model, which take their sizes and shapes from it."""

import keras
import numpy as np
import pytest
from helpers import draw

import keras_vqvae

PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}
SIZES = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8}


def code(size=16):
    return keras_vqvae.VectorQuantizer(size)


QUANTIZERS = {
    "one": (lambda: code(), (16,), (4, 4), ()),
    "bits": (lambda: keras_vqvae.LookupFreeQuantizer(num_bits=6), (64,), (4, 4), ()),
    "stages": (
        lambda: keras_vqvae.ResidualQuantizer([code(16), code(8), code(4)]),
        (16, 8, 4),
        (4, 4, 3),
        (3,),
    ),
    "groups of stages": (
        lambda: keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(code(), 3), 2),
        (16,) * 6,
        (4, 4, 2, 3),
        (2, 3),
    ),
    "scales": (lambda: keras_vqvae.MultiScaleQuantizer(code(), (1, 2, 4)), (16,), (21,), ()),
    "scales of stages": (
        lambda: keras_vqvae.MultiScaleQuantizer(keras_vqvae.ResidualQuantizer([code(16), code(4)]), (1, 4)),
        (16, 4),
        (17, 2),
        (2,),
    ),
}


def model_of(quantizer, grid=(4, 4)):
    encoder, decoder = (
        keras.Sequential([keras.Input((*grid, size)), keras.layers.Dense(other)]) for size, other in ((3, 6), (6, 3))
    )
    return keras_vqvae.VQVAE(encoder, quantizer, decoder)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_from_model_takes_sizes_and_shapes_from_the_model(name):
    make, sizes, shape, index_shape = QUANTIZERS[name]
    model = model_of(make())
    prior = keras_vqvae.AutoregressivePrior.from_model(model, **SIZES)
    assert (prior.codebook_sizes, prior.shape, prior.index_shape) == (sizes, shape, index_shape)
    assert prior.num_classes is None
    codes = model.encode(draw(5, 4, 4, 3), verbose=0)
    assert prior.log_likelihood(codes, verbose=0).shape == codes.shape
    assert model.sample(prior, 2, verbose=0).shape == (2, 4, 4, 3)


@pytest.mark.parametrize("kind", PRIORS.values())
def test_from_model_accepts_the_other_arguments_of_the_class(kind):
    class Own(kind):
        pass

    prior = Own.from_model(model_of(code()), 7, **SIZES, label_dropout=0.3, seed=5, name="own")
    assert type(prior) is Own
    assert (prior.num_classes, prior.hidden_dim, prior.label_dropout, prior.seed) == (7, 8, 0.3, 5)
    assert prior.name == "own"
    with pytest.raises(TypeError):
        kind.from_model(model_of(code()), num_embeddings=5)


def test_a_model_for_any_size_needs_a_shape():
    model = model_of(code(), grid=(None, 4))
    kind = keras_vqvae.MaskedPrior
    with pytest.raises(
        ValueError, match=r"`shape` must be given.*Received: shape=None, model with codes of shape \(None, 4\)"
    ):
        kind.from_model(model)
    assert kind.from_model(model, shape=(3, 4), **SIZES).shape == (3, 4)
    # A shape may be taken from an array of codes.
    assert kind.from_model(model, shape=np.zeros((2, 6, 4)).shape[1:], **SIZES).shape == (6, 4)
    for wrong in ((3, 5), (3,), (3, 4, 1)):
        with pytest.raises(ValueError, match=r"`shape` must match the shape of the model's codes, \(None, 4\)"):
            kind.from_model(model, shape=wrong)
    with pytest.raises(ValueError, match=r"Received: shape\[0\]=0"):
        kind.from_model(model, shape=(0, 4))


def test_unbuilt_models_and_other_objects_are_refused():
    layers = keras.layers.Dense(3), code(), keras.layers.Dense(3)
    with pytest.raises(ValueError, match="must be built"):
        keras_vqvae.MaskedPrior.from_model(keras_vqvae.VQVAE(*layers))
    for wrong in (None, code(), keras.Sequential([keras.Input((3,))])):
        with pytest.raises(ValueError, match="`model` must be a VQVAE. Received: model="):
            keras_vqvae.MaskedPrior.from_model(wrong)
