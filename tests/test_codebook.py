import keras
import numpy as np
import oracle
import pytest
from gradients import gradients
from helpers import program
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_vqvae
from keras_vqvae.ops import codebook

pytestmark = pytest.mark.each_backend


def test_quantize_gives_the_codes_and_passes_the_gradient_straight(rng):
    z_e = rng.normal(size=(2, 3, 4)).astype("float32")
    codes = rng.normal(size=(7, 4)).astype("float32")
    cotangent = ops.convert_to_tensor(rng.normal(size=z_e.shape), dtype="float32")
    z_q, indices = keras_vqvae.quantize(z_e, codes)
    np.testing.assert_array_equal(ops.convert_to_numpy(z_q), codes[oracle.nearest_code(z_e, codes)])
    np.testing.assert_array_equal(ops.convert_to_numpy(indices), oracle.nearest_code(z_e, codes))
    by_encoder, by_codebook = gradients(
        lambda z_e, codes: ops.sum(keras_vqvae.quantize(z_e, codes)[0] * cotangent), z_e, codes
    )
    np.testing.assert_array_equal(by_encoder, ops.convert_to_numpy(cotangent))
    np.testing.assert_array_equal(by_codebook, 0)


def test_lookup_gives_the_codebook_its_gradient(rng):
    codes = rng.normal(size=(7, 4)).astype("float32")
    indices = np.array([[0, 3, 3], [6, 0, 3]])
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_vqvae.lookup(codes, indices)), codes[indices])
    cotangent = rng.normal(size=(2, 3, 4)).astype("float32")
    (gradient,) = gradients(
        lambda codes: ops.sum(keras_vqvae.lookup(codes, indices) * ops.convert_to_tensor(cotangent)), codes
    )
    np.testing.assert_allclose(gradient, oracle.one_hot(indices, 7).T @ cotangent.reshape(6, 4), rtol=1e-5)


@pytest.mark.parametrize("indices", [[-1], [0, 5], [[1], [2**31 - 1]], [0.0], [True]])
def test_lookup_outside_the_codebook_is_an_error(indices):
    with pytest.raises(ValueError, match=r"indices.*Received: indices"):
        keras_vqvae.lookup(np.zeros((5, 2), "float32"), np.array(indices))


def test_init_codebook_is_standard_normal_and_repeats():
    first = ops.convert_to_numpy(keras_vqvae.init_codebook(512, 64))
    np.testing.assert_array_equal(first, ops.convert_to_numpy(keras_vqvae.init_codebook(512, 64, seed=42)))
    assert (first != ops.convert_to_numpy(keras_vqvae.init_codebook(512, 64, seed=1))).all()
    # Five standard errors of the mean and of the variance of 32768 draws.
    assert abs(first.mean()) < 5 / 181
    assert abs(first.var() - 1) < 5 * 2**0.5 / 181


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", None, True])
def test_sizes_that_are_not_positive_integers_are_named(size):
    with pytest.raises(ValueError, match="num_embeddings.*Received: num_embeddings="):
        keras_vqvae.init_codebook(size, 4)
    with pytest.raises(ValueError, match="embedding_dim.*Received: embedding_dim="):
        keras_vqvae.init_codebook(4, size)


@given(num_embeddings=st.integers(1, 6), rows=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_statistics_are_those_of_one_hot_codes(num_embeddings, rows, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, 3)).astype("float32")
    indices = rng.integers(num_embeddings, size=rows).astype("int32")
    kept = rng.random(rows) < 0.7
    vectors[~kept] = np.nan
    chosen = oracle.one_hot(indices, num_embeddings)[kept]
    expected = chosen.T @ vectors[kept]
    vectors, indices, kept = (ops.convert_to_tensor(array) for array in (vectors, indices, kept))
    counts = codebook.count_codes(indices, kept, num_embeddings)
    sums = codebook.sum_by_code(vectors, indices, kept, num_embeddings)
    np.testing.assert_array_equal(ops.convert_to_numpy(counts), chosen.sum(0))
    np.testing.assert_allclose(ops.convert_to_numpy(sums), expected, atol=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_moving_average_is_the_papers(decay, rng):
    codes = rng.normal(size=(8, 3)).astype("float32")
    codes[0] = 100  # Never chosen.
    expected = oracle.MovingAverage(codes, decay, warm_up=False)
    counts = np.zeros(8, "float32")
    found = codes
    for _ in range(20):
        vectors = rng.normal(size=(30, 3)).astype("float32")
        indices = ops.convert_to_tensor(oracle.nearest_code(vectors, expected.codebook), dtype="int32")
        kept = ops.ones(30, dtype="bool")
        found, counts = codebook.ema_step(
            ops.convert_to_tensor(found),
            ops.convert_to_tensor(counts),
            codebook.count_codes(indices, kept, 8),
            codebook.sum_by_code(ops.convert_to_tensor(vectors), indices, kept, 8),
            decay,
        )
        expected.update(vectors)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected.codebook, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(counts), expected.counts, rtol=1e-4)
    np.testing.assert_array_equal(ops.convert_to_numpy(found)[0], codes[0])


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 2**16))
def test_only_kept_rows_are_drawn_and_none_twice_while_they_suffice(kept, num_draws, seed):
    kept = np.array(kept)
    rows, any_kept = codebook.draw_kept(ops.convert_to_tensor(kept), num_draws, seed)
    rows = ops.convert_to_numpy(rows)
    assert bool(any_kept) == kept.any()
    assert ((rows >= 0) & (rows < len(kept))).all()
    if kept.any():
        assert kept[rows].all()
        assert np.bincount(rows).max() == -(-num_draws // kept.sum())


def test_every_kept_row_is_as_likely_in_every_draw():
    kept = np.array([True, False, True, True, False, True, True])
    trials, seed = 2000, keras.random.SeedGenerator(0)
    draw = program(lambda: codebook.draw_kept(ops.convert_to_tensor(kept), 3, seed)[0], [seed.state])
    drawn = np.stack([ops.convert_to_numpy(draw()) for _ in range(trials)])
    for column in drawn.T:
        counts = np.bincount(column, minlength=len(kept))[kept]
        # Five standard deviations of a binomial share of one in five.
        assert abs(counts - trials / 5).max() < 5 * (trials * 0.2 * 0.8) ** 0.5


def test_rows_are_drawn_from_cells_that_do_not_overlap():
    def drawn(rows, num_draws, trials):
        kept, seed = ops.ones((rows,), "bool"), keras.random.SeedGenerator(0)
        draw = program(lambda: codebook.draw_kept(kept, num_draws, seed)[0], [seed.state])
        return np.stack([ops.convert_to_numpy(draw()) for _ in range(trials)])

    # Five rows in three cells, of 2, 2 and 1.
    for rows in drawn(5, 3, trials=200):
        assert len(set(rows.tolist())) == 3
    # Four rows in two cells: the second draw lies one, two or three rows after the first.
    trials = 2000
    counts = np.bincount(np.diff(drawn(4, 2, trials))[:, 0] % 4, minlength=4)
    shares = np.array([0, 1 / 4, 1 / 2, 1 / 4])
    assert (abs(counts - trials * shares) <= 5 * (trials * shares * (1 - shares)) ** 0.5).all()


def test_dead_codes_move_onto_candidates_with_the_count_of_one_just_alive():
    codes, candidates = ops.zeros((4, 2)), ops.ones((4, 2))
    counts = ops.convert_to_tensor([10, 0, 0.3, 5.7])  # Uniform use is 4.
    moved, raised = codebook.revive_dead_codes(codes, counts, candidates, 0.1)
    np.testing.assert_array_equal(ops.convert_to_numpy(moved)[:, 0], [0, 1, 1, 0])
    np.testing.assert_allclose(ops.convert_to_numpy(raised), [10, 0.4, 0.4, 5.7])
    unmoved, kept = codebook.revive_dead_codes(codes, counts, candidates, 0.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(unmoved), 0)
    np.testing.assert_array_equal(ops.convert_to_numpy(kept), ops.convert_to_numpy(counts))
