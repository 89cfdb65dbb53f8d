"""Tests quantizers of another size that replace a trained one."""

import functools

import numpy as np
import pytest
from helpers import draw, numpy

import keras_vqvae

VQ = functools.partial(keras_vqvae.VectorQuantizer, dead_code_threshold=0)
QUANTIZERS = {
    "ema": lambda: VQ(32, ema_decay=0.9, seed=1),
    "residual": lambda: keras_vqvae.ResidualQuantizer(VQ(32, ema_decay=0.9, seed=1), 3),
    "stages": lambda: keras_vqvae.ResidualQuantizer([VQ(32, seed=1), VQ(16, seed=2)]),
    "groups": lambda: keras_vqvae.GroupedQuantizer(VQ(32, seed=1), 2),
    "projected": lambda: keras_vqvae.ProjectedQuantizer(VQ(32, seed=1), 3),
    "residual_of_projected": lambda: keras_vqvae.ResidualQuantizer(
        keras_vqvae.ProjectedQuantizer(VQ(32, seed=1), 3), 2, quantizer_dropout=0.5, seed=3
    ),
    "residual_of_groups": lambda: keras_vqvae.ResidualQuantizer(keras_vqvae.GroupedQuantizer(VQ(32, seed=1), 2), 2),
}


QUANTIZERS |= {
    "groups_of_residuals": lambda: keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(VQ(32, seed=1), 2), 2),
    "projected_stages": lambda: keras_vqvae.ProjectedQuantizer(
        keras_vqvae.ResidualQuantizer([VQ(32, seed=1), VQ(16, seed=2)]), 3
    ),
}


def trained(name):
    layer = QUANTIZERS[name]()
    x = draw(40, 4)
    layer(x)
    # Only a few codes are in use.
    for _ in range(2):
        layer(x[:8], training=True)
    return layer, x[:8]


def moved(new_indices, codes):
    """Maps codes `[N, *codebook_shape]` to their new indices."""
    if codes.ndim == 1:
        return new_indices[codes]
    places = np.indices(codes.shape)[1:]
    return new_indices[(*places, codes)]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_pruning_keeps_the_encoding_and_decoding_of_the_given_data(name):
    layer, x = trained(name)
    codes = numpy(layer.encode(x))
    smaller, new_indices = layer.prune_unused(layer.count_codes(codes))
    counted = numpy(layer.count_codes(codes)).reshape(-1, 32)
    assert max(smaller.codebook_sizes) == (counted > 0).sum(-1).max() < 32
    assert new_indices.shape == (*layer.codebook_shape, layer.num_embeddings)
    np.testing.assert_array_equal(numpy(smaller.encode(x)), moved(new_indices, codes))
    np.testing.assert_allclose(numpy(smaller(x)), numpy(layer(x)), rtol=1e-6)
    counts, kept = numpy(layer.code_counts), new_indices >= 0
    assert numpy(smaller.code_counts).sum() == counts[kept].sum()
    # The smaller layer trains and can be saved, and has its own random state.
    smaller(x, training=True)
    again = type(smaller).from_config(smaller.get_config())
    assert again.codebook_sizes == smaller.codebook_sizes


@pytest.mark.parametrize("name", QUANTIZERS)
def test_enlarging_keeps_the_indices_of_the_old_codes(name):
    layer, x = trained(name)
    larger, new_indices = layer.resize(48)
    assert larger.codebook_sizes == (48,) * len(layer.codebook_sizes)
    for size, row in zip(layer.codebook_sizes, new_indices.reshape(-1, layer.num_embeddings), strict=True):
        np.testing.assert_array_equal(row[:size], np.arange(size))
        assert (row[size:] == -1).all()
    codes = layer.encode(x)
    np.testing.assert_allclose(numpy(larger.decode(codes)), numpy(layer.decode(codes)), rtol=1e-6)


def test_counts_decide_which_codes_remain():
    layer, _ = trained("ema")
    counts = np.arange(32)
    smaller, new_indices = layer.resize(4, counts)
    np.testing.assert_array_equal(np.flatnonzero(new_indices >= 0), [28, 29, 30, 31])
    np.testing.assert_array_equal(numpy(smaller.codebook), numpy(layer.codebook)[28:])


def test_a_pruned_quantizer_replaces_the_old_one_in_a_model():
    encoder, decoder = keras_vqvae.build(8, embedding_dim=4, encoder_sizes=(6,), decoder_sizes=(6,))
    model = keras_vqvae.VQVAE(encoder, VQ(64, ema_decay=0.9, seed=1), decoder)
    model.compile("sgd")
    x = draw(16, 8)
    model.fit(x, verbose=0)
    codes = model.encode(x, verbose=0)
    smaller, new_indices = model.quantizer.prune_unused(model.quantizer.count_codes(codes))
    pruned = keras_vqvae.VQVAE(model.encoder, smaller, model.decoder)
    np.testing.assert_array_equal(pruned.encode(x, verbose=0), new_indices[codes])
    np.testing.assert_allclose(pruned.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    pruned.compile("sgd")
    pruned.fit(x, verbose=0)


def test_stages_added_later_do_not_change_the_first_ones():
    layer, x = trained("residual")
    codes = numpy(layer.encode(x))
    longer = keras_vqvae.ResidualQuantizer([*layer.quantizers, VQ(8, seed=5)])
    np.testing.assert_array_equal(numpy(longer.encode(x))[:, :3], codes)
    longer.quantizers[3].adapt(x - numpy(layer(x)), verbose=0)
    assert np.square(x - numpy(longer(x))).sum() < np.square(x - numpy(layer(x))).sum()


def test_frozen_quantizers_stay_frozen():
    for frozen in range(2):
        layer, _ = trained("groups")
        layer.quantizers[frozen].trainable = False
        smaller, _ = layer.resize(8)
        assert [each.trainable for each in smaller.quantizers] == [each.trainable for each in layer.quantizers]


def test_errors_for_wrong_arguments_say_what_to_do():
    layer, _ = trained("residual")
    with pytest.raises(ValueError, match=r"`counts` must have the shape \(3, 32\)"):
        layer.resize(4, np.zeros(32))
    with pytest.raises(ValueError, match="`counts` must be numbers of at least 0"):
        layer.resize(4, -np.ones((3, 32)))
    with pytest.raises(ValueError, match="needs usage counts"):
        layer.prune_unused(np.zeros((3, 32)))
    groups, _ = trained("groups")
    with pytest.raises(ValueError, match="needs usage counts"):
        groups.prune_unused(np.zeros((2, 32)))
    digits = keras_vqvae.ResidualQuantizer(keras_vqvae.FiniteScalarQuantizer((3, 3)), 2)
    digits.build((None, 2))
    with pytest.raises(ValueError, match="`FiniteScalarQuantizer` has no codebook to resize"):
        digits.resize(4)
    shared = keras_vqvae.ResidualQuantizer(VQ(8), 2, shared_codebook=True)
    shared.build((None, 2))
    with pytest.raises(ValueError, match="shared_codebook=True"):
        shared.resize(4)
    with pytest.raises(ValueError, match="must be built"):
        VQ(8).resize(4)
