"""Tests that dead codes move to vectors of the batch, with and without `ema_decay`."""

import keras
import numpy as np
import oracle
import pytest
from helpers import built, compiled, draw, numpy
from keras import layers, ops

import keras_vqvae
from keras_vqvae.ops import dead_codes

OWNERS = {"optimizer": {}, "layer": {"ema_decay": 0.99}}


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 4)).astype("float32")


@pytest.fixture(params=OWNERS)
def owner(request):
    return OWNERS[request.param]


def nested(quantizer, dim=4):
    """Returns a model with the quantizer two models deep, after a layer that does nothing."""
    inner = keras.Sequential([keras.Input((dim,)), layers.Dense(dim, kernel_initializer="identity"), quantizer])
    model = keras.Sequential([keras.Input((dim,)), keras.Sequential([keras.Input((dim,)), inner])])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def far_codes(num_embeddings, dim=4, alive=2):
    """Returns an initializer that puts all but the first codes out of reach."""
    codes = np.full((num_embeddings, dim), 100.0)
    codes[:alive] = np.random.default_rng(1).normal(size=(alive, dim))
    return lambda shape, dtype: ops.convert_to_tensor(codes, dtype=dtype)


@pytest.mark.each_backend
def test_dead_codes_move_in_fit_of_any_model(x, owner):
    quantizer = keras_vqvae.VectorQuantizer(16, embeddings_initializer=far_codes(16), **owner)
    model = nested(quantizer)
    before = numpy(quantizer.codebook).copy()
    model.fit(x, x, batch_size=64, verbose=0)
    after = numpy(quantizer.codebook)
    for code in after[2:]:
        assert np.isclose(code, x, atol=1e-5).all(-1).any()
    if not owner:
        np.testing.assert_array_equal(after[:2], before[:2])
    model.fit(x, x, batch_size=64, epochs=3, verbose=0)
    assert len(np.unique(numpy(quantizer.codebook), axis=0)) == 16


@pytest.mark.each_backend
def test_the_default_quantizer_uses_nearly_all_codes():
    """An earlier default ended with 3 to 6% of the codes in use."""
    x = draw(512, 8)
    quantizer = keras_vqvae.VectorQuantizer(128, seed=0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), quantizer, layers.Dense(8)])
    compiled(model, keras.optimizers.Adam(1e-3), "mse")
    model.fit(x, x, batch_size=128, epochs=15, verbose=0)
    used = np.unique(numpy(quantizer.encode(model.layers[0](x))))
    assert len(used) > 0.95 * 128


@pytest.mark.parametrize("batch", [16, 64])
def test_moving_counts_decide_which_codes_die(x, batch):
    """Compares each step with NumPy: codes die below a tenth of uniform usage, and move with counts just above it."""
    quantizer = built(keras_vqvae.VectorQuantizer(8, embeddings_initializer=far_codes(8, alive=5), seed=3))
    codes, counts = numpy(quantizer.codebook).copy(), np.zeros(8)
    seeds = numpy(quantizer.draw_seeds).astype("int64")
    for step, part in enumerate(np.concatenate([x, x, x]).reshape(-1, batch, 4)):
        quantizer(part, training=True)
        counts = 0.99 * counts + 0.01 * np.bincount(oracle.nearest_code(part, codes), minlength=8)
        rows = (seeds + step * dead_codes.STRIDE + 2**31) % 2**32 - 2**31
        dead = counts < 0.1 * counts.mean()
        codes[dead] = part[rows % batch][dead]
        counts[dead] = 0.1 * counts.mean()
        np.testing.assert_allclose(numpy(quantizer.codebook), codes, atol=1e-5)
        np.testing.assert_allclose(numpy(quantizer.ema_counts), counts, rtol=1e-5)
    assert (np.abs(codes) < 10).all()


def test_a_code_that_is_no_longer_used_dies_eventually(x, owner):
    quantizer = keras_vqvae.VectorQuantizer(2, embeddings_initializer=far_codes(2), **owner)
    model = nested(quantizer)
    model.fit(x, x, batch_size=1, verbose=0)
    quantizer.set_codebook(np.stack([np.full(4, 100.0), np.zeros(4)]))
    model.fit(x[:10], x[:10], batch_size=1, verbose=0)
    assert numpy(quantizer.codebook)[0, 0] > 50
    model.fit(x, x, batch_size=1, epochs=5, verbose=0)
    assert (np.abs(numpy(quantizer.codebook)) < 10).all()


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [
        (keras_vqvae.VectorQuantizer, {"trainable": False}),
        (keras_vqvae.VectorQuantizer, {"dead_code_threshold": 0}),
        (keras_vqvae.VectorQuantizer, {"ema_decay": 0.9, "dead_code_threshold": 0}),
        (keras_vqvae.IndexBackpropagationQuantizer, {}),
    ],
    ids=["frozen", "optimizer", "moving average", "inner product"],
)
def test_dead_codes_stay_in_layers_that_do_not_move_them(x, kind, keywords):
    quantizer = kind(8, embeddings_initializer=far_codes(8), **keywords)
    nested(quantizer).fit(x, x, batch_size=16, verbose=0)
    np.testing.assert_array_equal(numpy(quantizer.codebook)[2:], 100.0)


@pytest.mark.parametrize("kind", [keras_vqvae.IndexBackpropagationQuantizer, keras_vqvae.SimVectorQuantizer])
def test_a_dead_code_threshold_is_refused_if_codes_cannot_move(kind):
    with pytest.raises(ValueError, match="cannot move onto a vector. Received: dead_code_threshold=0.1"):
        kind(8, dead_code_threshold=0.1)


def test_no_code_moves_onto_a_masked_or_nonfinite_vector(rng, owner):
    x = rng.normal(size=(32, 6, 4)).astype("float32")
    x[:, 3:] = 50.0
    x[rng.random(32) < 0.3, 1] = np.nan
    quantizer = keras_vqvae.VectorQuantizer(64, embeddings_initializer=far_codes(64), **owner)
    model = keras.Sequential([keras.Input((6, 4)), layers.Masking(50.0), quantizer])
    for _ in range(20):
        model(x, training=True)
    # A code that drew an invalid row does not move in that step.
    assert (np.abs(numpy(quantizer.codebook)) < 10).all()


@pytest.mark.each_backend
def test_equal_seeds_move_codes_equally(x):
    def train(seed):
        quantizer = built(keras_vqvae.VectorQuantizer(8, embeddings_initializer=far_codes(8), seed=seed))
        quantizer(x, training=True)
        return numpy(quantizer.codebook)

    np.testing.assert_array_equal(train(1), train(1))
    assert (train(1) != train(3)).any()


@pytest.mark.each_backend
def test_all_rows_are_equally_likely(rng):
    """Tested over the steps of one code, past the int32 wrap-around, and over codes."""
    rows, steps, codes = 7, 200, 50
    vectors = ops.reshape(ops.arange(rows, dtype="float32"), (rows, 1))
    valid = ops.convert_to_tensor(np.arange(rows) != 3)
    seeds = numpy(dead_codes.initial_seeds((codes,), 1))
    drawn = []
    for step in range(steps):
        wrapped = ((seeds.astype("int64") + step * dead_codes.STRIDE + 2**31) % 2**32 - 2**31).astype("int32")
        found, usable = dead_codes.candidates(vectors, valid, ops.convert_to_tensor(wrapped))
        drawn.append(numpy(found)[:, 0].astype(int))
        np.testing.assert_array_equal(numpy(usable), drawn[-1] != 3)
    for counts in (np.bincount(np.array(drawn)[:, 0], minlength=rows), np.bincount(np.ravel(drawn), minlength=rows)):
        np.testing.assert_allclose(counts / counts.sum(), 1 / rows, rtol=0.2)


@pytest.mark.parametrize(
    ("rows", "codes"), [(196, 256), (784, 256), (3136, 256), (768, 1024), (1024, 1024), (1000, 512)]
)
def test_the_codes_of_a_step_draw_different_rows(rows, codes):
    """The rows are positions of grids, so their number has many divisors."""
    seeds = numpy(dead_codes.initial_seeds((codes,), 0))
    assert len(np.unique(seeds % rows)) > 0.9 * min(rows, codes)
    # In a narrow range, they usually wrap around at 2^31 in the same step.
    assert np.ptp(seeds.astype("int64") % 2**32) < 2**26


def test_the_codebook_is_the_sum_of_a_weight_and_an_offset(x):
    """A constraint and a regularizer see the sum of both. Setting the codebook resets the offset."""
    bound = keras.constraints.MaxNorm(0.5, axis=-1)
    layer = built(
        keras_vqvae.VectorQuantizer(
            8, embeddings_initializer=far_codes(8), embeddings_constraint=bound, embeddings_regularizer="l2"
        )
    )
    layer(x, training=True)
    codes = numpy(layer.codebook)
    np.testing.assert_allclose(numpy(layer.embeddings) + numpy(layer.offset), codes, rtol=1e-4)
    assert (np.linalg.norm(codes[2:], axis=-1) < 0.501).all()
    np.testing.assert_allclose(numpy(layer.losses[-1]), 0.01 * np.square(codes).sum(), rtol=1e-5)
    layer.set_codebook(codes)
    np.testing.assert_allclose(numpy(layer.codebook), codes, rtol=1e-5)
    np.testing.assert_array_equal(numpy(layer.offset), 0)


def test_moved_codes_survive_resizing_and_saving(x, tmp_path):
    quantizer = keras_vqvae.VectorQuantizer(8, embeddings_initializer=keras.initializers.Constant(100.0), seed=1)
    model = nested(quantizer)
    model.fit(x, x, batch_size=16, epochs=3, verbose=0)
    larger, new_indices = quantizer.resize(12)
    np.testing.assert_array_equal(numpy(larger.codebook)[new_indices], numpy(quantizer.codebook))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other), err_msg=one.path)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_dead_codes_are_those_below_the_threshold_that_can_move():
    counts = ops.convert_to_tensor(np.array([10, 0, 0.3, 5.7, 0], "float32"))  # Uniform usage is 3.2.
    usable = ops.convert_to_tensor([True, True, True, True, False])
    dead, alive_from = dead_codes.dead_codes(counts, usable, 0.1)
    np.testing.assert_array_equal(numpy(dead), [False, True, True, False, False])
    np.testing.assert_allclose(numpy(alive_from), 0.32)
    dead, _ = dead_codes.dead_codes(counts, usable, 0.0)
    assert not numpy(dead).any()
