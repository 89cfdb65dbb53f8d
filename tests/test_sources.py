"""Tests that `adapt` accepts data in any form, and that its memory does not grow with the data."""

import keras
import numpy as np
import pytest
from helpers import Batches, draw, numpy
from keras import layers

import keras_vqvae
from keras_vqvae.models.sources import PER_SAMPLE, Reservoir


def make(grid=(), quantizer=None, **keywords):
    encoder = keras.Sequential([keras.Input((*grid, 6)), layers.Dense(3)])
    decoder = keras.Sequential([keras.Input((*grid, 3)), layers.Dense(6)])
    return keras_vqvae.VQVAE(encoder, quantizer or keras_vqvae.VectorQuantizer(8, seed=1, **keywords), decoder)


class Read(np.ndarray):
    """An array that records which rows are read."""

    def __getitem__(self, rows):
        if isinstance(rows, np.ndarray):
            self.rows.append(rows)
        return np.asarray(super().__getitem__(rows))


def counting(array):
    counted = array.view(Read)
    counted.rows = []
    return counted


class Endless(keras.utils.PyDataset):
    """A data set of unknown length."""

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return draw(8, 6, seed=index)


def loader(x, y):
    import torch

    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return torch.utils.data.DataLoader(data, batch_size=16)


def tf_data(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


SOURCES = {
    "tensor": lambda x, y: keras.ops.convert_to_tensor(x),
    "PyDataset": lambda x, y: Batches(16, x, y),
    "generator": lambda x, y: ((x[i : i + 7], y[i : i + 7]) for i in range(0, len(x), 7)),
    "DataLoader": loader,
    "tf.data": tf_data,
}


@pytest.mark.each_backend(slow=True)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_codebook_of_an_array(source):
    x, y = draw(50, 6), np.arange(50)
    one, other = make(), make()
    other.set_weights(one.get_weights())
    one.adapt(x, verbose=0)
    other.adapt(SOURCES[source](x, y), verbose=0)
    np.testing.assert_allclose(numpy(other.quantizer.codebook), numpy(one.quantizer.codebook), rtol=1e-5)
    # The layer's own k-means on all 50 vectors.
    layer = keras_vqvae.VectorQuantizer(8, seed=1)
    layer.adapt(one.encoder.predict(x, verbose=0), verbose=0)
    np.testing.assert_allclose(numpy(one.quantizer.codebook), numpy(layer.codebook), rtol=1e-5)


def test_a_generator_builds_a_model_and_loses_no_batch():
    x = draw(50, 6)
    encoder = keras.Sequential([layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(50, seed=1), keras.Sequential([layers.Dense(6)]))
    model.adapt((x[i : i + 10] for i in range(0, 50, 10)), verbose=0)
    # There are as many codes as vectors, so each vector has its own.
    assert len(np.unique(model.encode(x, verbose=0))) == 50


def test_a_sample_is_uniform_for_any_batches():
    found = np.zeros(40)
    for seed in range(500):
        whole, parts = Reservoir(10, seed), Reservoir(10, seed)
        rows = np.arange(40)
        whole.add(rows)
        for start in range(0, 40, 7):
            parts.add(rows[start : start + 7])
        np.testing.assert_array_equal(whole.rows(), parts.rows())
        assert len(np.unique(whole.rows())) == 10
        found[whole.rows()] += 1
    # Each of 40 rows has probability 1/4, so it is drawn about 125 times, with a standard deviation of 9.7.
    assert np.abs(found - 125).max() < 4 * 9.7


def test_a_reservoir_holds_a_bounded_number_of_rows():
    reservoir, most = Reservoir(10, 0), 0
    for _ in range(1000):
        reservoir.add(np.zeros((3, 2)))
        most = max(most, sum(len(rows) for _, rows in reservoir._parts))
    assert most <= 20 + 3
    assert reservoir.rows().shape == (10, 2)


@pytest.mark.parametrize(("grid", "needed"), [((), 64), ((5,), 13), ((8, 8), 64 // PER_SAMPLE)])
def test_only_the_needed_rows_of_an_array_are_read(grid, needed):
    x = counting(draw(200, *grid, 6))
    model = make(grid)
    model.adapt(x, max_vectors=64, seed=3, verbose=0)
    rows = np.concatenate(x.rows)
    assert len(rows) == len(np.unique(rows)) == needed
    # Rows are read from all over the data.
    assert rows.max() > 100
    again = counting(np.asarray(x))
    model.adapt(again, max_vectors=64, seed=3, verbose=0)
    np.testing.assert_array_equal(np.concatenate(again.rows), rows)


def test_256_vectors_per_code_are_used():
    seen = []
    model = make(quantizer=keras_vqvae.VectorQuantizer(2))
    model.quantizer.adapt = lambda vectors, **keywords: seen.append(vectors.shape)
    model.adapt(draw(1000, 6), verbose=0)
    model.adapt(draw(1000, 6), max_vectors=30, verbose=0)
    model.adapt(draw(1000, 6), batch_size=20, steps=3, verbose=0)
    assert seen == [(512, 3), (30, 3), (60, 3)]


def test_steps_limit_an_endless_source():
    read = []

    def generator():
        for number in range(10):
            read.append(number)
            yield draw(8, 6, seed=number)

    model = make()
    model.adapt(generator(), steps=3, verbose=0)
    assert read == [0, 1, 2]
    model.adapt(Endless(), steps=4, verbose=0)
    with pytest.raises(ValueError, match="`steps` must be given"):
        model.adapt(Endless(), verbose=0)
    with pytest.raises(ValueError, match="`x` must give at least one vector"):
        model.adapt(iter(()), verbose=0)
    with pytest.raises(ValueError, match="`max_vectors` must be a positive integer"):
        model.adapt(draw(8, 6), max_vectors=0, verbose=0)


def test_masked_vectors_are_not_drawn():
    """With 90% of the vectors masked, it draws as many of the others as possible."""
    seen = []
    encoder = keras.Sequential([keras.Input((10, 4)), layers.Masking(), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(8), layers.Dense(4))
    model.quantizer.adapt = lambda vectors, **keywords: seen.append(vectors)
    x = draw(20, 10, 4)
    x[:, 1:] = 0
    model.adapt(x, max_vectors=20, verbose=0)
    (vectors,) = seen
    assert np.isfinite(vectors).all()
    assert 2 <= len(vectors) <= 20


def test_grids_are_sampled_as_a_whole():
    seen = []
    quantizer = keras_vqvae.MultiScaleQuantizer(keras_vqvae.VectorQuantizer(8), (1, 4))
    model = make((4,), quantizer)
    quantizer.adapt = lambda vectors, **keywords: seen.append(vectors.shape)
    model.adapt(draw(100, 4, 6), max_vectors=40, verbose=0)
    assert seen == [(10, 4, 3)]


def test_empty_batches_are_skipped_and_unusable_data_are_errors():
    x = draw(24, 6)
    one, other = make(), make()
    other.set_weights(one.get_weights())
    one.adapt(x, verbose=0)
    other.adapt((each for each in (x[:0], x[:10], x[:0], x[10:])), verbose=0)
    np.testing.assert_allclose(numpy(other.quantizer.codebook), numpy(one.quantizer.codebook), rtol=1e-5)
    encoder, decoder = keras.Sequential([keras.Input((None, 6)), layers.Dense(3)]), keras.Sequential([layers.Dense(6)])
    scales = keras_vqvae.MultiScaleQuantizer(keras_vqvae.VectorQuantizer(8), strides=(2, 1))
    with pytest.raises(ValueError, match="`x` must give grids of one size"):
        keras_vqvae.VQVAE(encoder, scales, decoder).adapt((draw(3, size, 6) for size in (4, 8)), verbose=0)
    with pytest.raises(
        ValueError, match="`x` must have arrays with the same number of samples. Received: arrays of 24, 5 samples"
    ):
        one.adapt({"a": x, "b": x[:5]}, verbose=0)
    with pytest.raises(ValueError, match="`x` must give at least one vector"):
        one.adapt(np.full((4, 6), np.nan), verbose=0)


def test_steps_limit_an_array_to_its_first_batches():
    x = counting(draw(200, 6))
    make().adapt(x, batch_size=10, steps=3, max_vectors=8, verbose=0)
    rows = np.concatenate(x.rows)
    assert len(rows) == 8
    assert rows.max() < 30


def test_inputs_can_be_structures_of_arrays():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    encoder = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([inputs["a"], inputs["b"]])))
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(4, seed=1), layers.Dense(5))
    x = {"a": draw(50, 2), "b": draw(50, 3, seed=1)}
    model.adapt(x, max_vectors=20, verbose=0)
    assert len(np.unique(model.encode(x, verbose=0))) == 4
