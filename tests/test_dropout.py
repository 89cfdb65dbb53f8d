"""Tests samples that use only some stages or groups in training."""

import keras
import numpy as np
import pytest
from helpers import built, compiled, numpy

import keras_vqvae

WRAPPERS = [keras_vqvae.ResidualQuantizer, keras_vqvae.GroupedQuantizer]


def vector(**keywords):
    return keras_vqvae.VectorQuantizer(8, seed=1, **keywords)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_dropout_draws_a_number_of_stages_for_each_sample(rng, wrapper):
    x = rng.normal(size=(200, 5, 4)).astype("float32")
    inner = vector(dead_code_threshold=0)
    layer, again = (built(wrapper(inner, 4, quantizer_dropout=1.0, seed=3)) for _ in range(2))
    quantized, indices = (numpy(part) for part in layer(x, training=True, return_indices=True))
    used = indices >= 0
    numbers = used.sum(-1)
    # All positions of a sample use the same number of stages or groups: the first ones. The number is uniform.
    assert (numbers == numbers[:, :1]).all()
    np.testing.assert_array_equal(used, np.arange(4) < numbers[..., None])
    np.testing.assert_allclose(np.bincount(numbers[:, 0], minlength=5)[1:] / 200, 0.25, atol=0.12)
    np.testing.assert_allclose(numpy(layer.decode(indices)), quantized, atol=1e-6)
    if wrapper is keras_vqvae.GroupedQuantizer:
        np.testing.assert_array_equal(quantized[~used], 0)
    # Unused stages and groups are neither counted nor trained.
    np.testing.assert_array_equal(numpy(layer.code_counts).sum(-1), used.sum((0, 1)))
    for part, quantizer in enumerate(layer.quantizers):
        assert numpy(quantizer.code_counts).sum() == used[..., part].sum()
    np.testing.assert_array_equal(numpy(again(x, training=True, return_indices=True)[1]), indices)
    assert (numpy(layer(x, training=True, return_indices=True)[1]) != indices).any()
    assert (numpy(layer.encode(x)) >= 0).all()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_samples_outside_the_dropout_fraction_use_all_stages(rng, wrapper):
    x = rng.normal(size=(2000, 1, 4)).astype("float32")
    levels = (4, 4, 4, 4) if wrapper is keras_vqvae.ResidualQuantizer else (4,)
    layer = built(wrapper(keras_vqvae.FiniteScalarQuantizer(levels), 4, quantizer_dropout=0.5, seed=3))
    used = (numpy(layer(x, training=True, return_indices=True)[1]) >= 0).sum(-1)
    # Half of the samples are drawn, and a quarter of these use all four.
    np.testing.assert_allclose(np.bincount(used[:, 0], minlength=5)[1:] / 2000, [1 / 8, 1 / 8, 1 / 8, 5 / 8], atol=0.04)
    assert type(layer).from_config(layer.get_config()).quantizer_dropout == 0.5


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_batches_of_one_sample_are_trained(rng, wrapper):
    """Such a batch may end an epoch. Backends that can do so compile it for any batch size."""
    layer = wrapper(vector(), 2, quantizer_dropout=1.0, seed=3)
    model = compiled(keras.Sequential([keras.Input((5, 4)), layer]), "sgd", "mse")
    x = rng.normal(size=(3, 5, 4)).astype("float32")
    model.fit(x, x, batch_size=2, shuffle=False, verbose=0)
    first, second = numpy(layer.code_counts).sum(-1)
    # All vectors use the first stage. Some samples use the second, too.
    assert first == 15
    assert second in (0, 5, 10, 15)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, np.nan, "a", None])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_invalid_dropout_is_refused(wrapper, wrong):
    with pytest.raises(ValueError, match="quantizer_dropout.*Received: quantizer_dropout="):
        wrapper(vector(), 2, quantizer_dropout=wrong)
