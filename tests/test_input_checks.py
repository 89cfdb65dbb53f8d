"""Tests that wrong shapes and unbuilt layers raise errors that say what to do, and that no message prints an array."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_vqvae

VQ = keras_vqvae.VectorQuantizer
WITH_CODEBOOKS = {
    "optimizer": VQ,
    "moving average": lambda size: VQ(size, ema_decay=0.9),
    "SimVQ": keras_vqvae.SimVectorQuantizer,
    "Gumbel": keras_vqvae.GumbelQuantizer,
    "IBQ": keras_vqvae.IndexBackpropagationQuantizer,
}
ADAPTED = {
    **{name: lambda make=make: make(6) for name, make in WITH_CODEBOOKS.items()},
    "residual": lambda: keras_vqvae.ResidualQuantizer(VQ(6), 2),
    "groups": lambda: keras_vqvae.GroupedQuantizer(VQ(6), 2),
    "projection": lambda: keras_vqvae.ProjectedQuantizer(VQ(6), 2),
}
LONGEST_MESSAGE = 400
"""A message that printed one of these codebooks would be longer."""
LONGEST_IN_CALL = 600
"""Keras adds a call's arguments to its errors."""


def built(quantizer, *shape):
    quantizer.build((None, *shape))
    return quantizer


def refused(match, function, *arguments, longest=LONGEST_MESSAGE, **keywords):
    with pytest.raises(ValueError, match=match) as caught:
        function(*arguments, **keywords)
    assert len(str(caught.value)) < longest


@pytest.mark.parametrize("make", WITH_CODEBOOKS.values(), ids=WITH_CODEBOOKS)
def test_reading_or_setting_a_codebook_before_build_is_an_error(make):
    refused("must be built before `codebook`.*Received: built=False", lambda: make(6).codebook)
    refused("must be built before `set_codebook`.*Received: built=False", make(6).set_codebook, np.zeros((6, 4)))


@pytest.mark.parametrize("make", WITH_CODEBOOKS.values(), ids=WITH_CODEBOOKS)
@pytest.mark.parametrize("shape", [(6, 3), (5, 4), (6,), ()])
def test_a_codebook_of_another_shape_is_refused(make, shape):
    layer = built(make(6), 4)
    before = keras.ops.convert_to_numpy(layer.codebook)
    received = re.escape(f"Received: values of shape {shape}")
    refused(rf"`values`.*\(6, 4\).*{received}", layer.set_codebook, np.ones(shape))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.codebook), before)


@pytest.mark.parametrize("make", ADAPTED.values(), ids=ADAPTED)
@pytest.mark.parametrize("keywords", [{}, {"init": "codebook"}], ids=str)
def test_adapt_refuses_vectors_of_another_size(rng, make, keywords):
    layer = built(make(), 4)
    before = [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
    for shape in ((64, 8), (64, 3), (2, 32, 2)):
        refused(r"`vectors`.*Received: vectors of shape", layer.adapt, rng.normal(size=shape), verbose=0, **keywords)
    refused("`vectors`.*rank 2.*Received: vectors of shape", layer.adapt, np.zeros(4), verbose=0)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)


def test_adapt_refuses_grids_of_another_shape(rng):
    layer = built(keras_vqvae.MultiScaleQuantizer(VQ(6), scales=(1, 2, 4)), 4, 4, 3)
    for shape in ((2, 4, 4, 2), (2, 3, 4, 3), (16, 3), (2, 4, 3)):
        refused("Received: (vectors|inputs) of shape", layer.adapt, rng.normal(size=shape), verbose=0)


@pytest.mark.parametrize("make", ADAPTED.values(), ids=ADAPTED)
def test_adapt_accepts_lists(rng, make):
    vectors = rng.normal(size=(64, 4)).astype("float32")
    values = []
    for given in (vectors, vectors.tolist()):
        keras.utils.set_random_seed(0)
        layer = make()
        layer.adapt(given, seed=1, verbose=0, epochs=2)
        values.append([keras.ops.convert_to_numpy(weight) for weight in layer.weights])
    for one, other in zip(*values, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_errors_do_not_print_initial_codes(rng):
    vectors = rng.normal(size=(64, 4))
    for init in (np.zeros((6, 3)), np.zeros((500, 4)), np.zeros((6, 4)).tolist(), keras.ops.zeros((7, 4))):
        refused(r"`init`.*\(6, 4\).*Received: init of type", keras_vqvae.kmeans, vectors, 6, init=init, verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras_vqvae.FiniteScalarQuantizer([2] * 1000),
        lambda: keras_vqvae.FiniteScalarQuantizer([2] * 1000 + [0]),
        lambda: keras_vqvae.ResidualQuantizer([VQ(6)] * 1000),
        lambda: keras_vqvae.MultiScaleQuantizer(VQ(6), scales=[1] * 1000),
        lambda: keras_vqvae.MultiScaleQuantizer(VQ(6), scales=range(1, 2000)),
        lambda: keras_vqvae.MultiScaleQuantizer(VQ(6), scales=(1, 2), convolution=[0] * 1000),
        lambda: VQ(6, commitment_weight=np.ones(1000)),
        lambda: built(VQ(1000), 4).resize(6, counts=-np.ones(1000)),
        lambda: built(VQ(6), 4).decode([[0] * 1000, [0]]),
    ],
    ids=[
        "levels",
        "wrong level",
        "stages",
        "equal scales",
        "many scales",
        "convolution",
        "weight",
        "counts",
        "indices",
    ],
)
def test_errors_cut_off_long_values(make):
    refused("Received: ", make)


def test_fewer_vectors_than_codes_cause_a_warning(rng):
    vectors = rng.normal(size=(5, 4))
    with pytest.warns(UserWarning, match="fewer.*Received: 5 vectors, num_embeddings=6"):
        VQ(6).adapt(vectors, verbose=0)
    VQ(5).adapt(vectors, verbose=0)


def test_the_argument_that_sets_the_last_axis_is_named_in_errors():
    for quantizer, received in (
        (keras_vqvae.LookupFreeQuantizer(10), "num_bits=10"),
        (keras_vqvae.BinarySphericalQuantizer(10), "num_bits=10"),
        (keras_vqvae.FiniteScalarQuantizer((3, 3)), r"len\(levels\)=2"),
        (VQ(6, embedding_dim=3), "embedding_dim=3"),
    ):
        refused(rf"last axis, 8\. Received: {received}, input_shape=\(4, 8\)", quantizer, np.zeros((4, 8), "float32"))


def test_channels_first_are_refused():
    inputs = keras.Input((3, 8, 8))
    outputs = layers.Conv2D(4, 3, data_format="channels_first", name="last")(inputs)
    activated = layers.ReLU()(layers.BatchNormalization(axis=1)(outputs))
    nested = keras.Model(inputs, activated)(keras.Input((3, 8, 8)))
    sequential = keras.Sequential([keras.Input((3, 8)), layers.Conv1D(4, 3, data_format="channels_first", name="last")])
    for tensor in (outputs, activated, nested, sequential(keras.Input((3, 8)))):
        order = r"\(2, 3, 1\)" if len(tensor.shape) == 4 else r"\(2, 1\)"
        message = rf"`last`.*Permute\({order}\).*Received: data_format='channels_first'"
        refused(message, VQ(6), tensor, longest=LONGEST_IN_CALL)
    permuted = layers.Permute((2, 3, 1))(activated)
    assert VQ(6)(permuted).shape == permuted.shape


def test_channels_last_and_vectors_are_accepted():
    inputs = keras.Input((8, 8, 3))
    flat = layers.Flatten("channels_first")(inputs)
    for tensor in (inputs, layers.Conv2D(4, 3)(inputs), layers.ReLU()(inputs), flat):
        assert VQ(6)(tensor).shape == tensor.shape


def test_a_vqvae_with_a_channels_first_encoder_is_refused():
    encoder = keras.Sequential([keras.Input((3, 8)), layers.Conv1D(4, 3, data_format="channels_first")])
    decoder = keras.Sequential([layers.Dense(3)])
    refused("channels", keras_vqvae.VQVAE, encoder, VQ(6), decoder, longest=LONGEST_IN_CALL)
