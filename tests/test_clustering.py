import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_vqvae
from keras_vqvae.ops import clustering

pytestmark = pytest.mark.each_backend


def fit(vectors, *args, **keywords):
    codes, counts = keras_vqvae.kmeans(vectors, *args, verbose=0, **keywords)
    return ops.convert_to_numpy(codes), counts


def error(vectors, codes):
    return oracle.distances(vectors, codes).min(-1).mean()


@pytest.fixture
def blobs(rng):
    """Returns vectors in twelve clusters that are far apart, and the cluster centers."""
    centers = 100 * rng.normal(size=(12, 5))
    return (centers[:, None] + rng.normal(size=(12, 30, 5))).astype("float32"), centers


def test_well_separated_clusters_are_found(blobs):
    vectors, _ = blobs
    codes, counts = fit(vectors, 12, seed=0)
    order = oracle.nearest_code(vectors.mean(1), codes)
    np.testing.assert_allclose(codes[order], vectors.mean(1), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(counts, 30)


def test_an_epoch_is_a_step_of_lloyds_algorithm(rng):
    vectors = rng.normal(size=(200, 3)).astype("float32")
    start, _ = fit(vectors, 8, init="random", epochs=1, seed=4)
    end, counts = fit(vectors, 8, init="random", epochs=2, seed=4)
    nearest = oracle.nearest_code(vectors, start)
    expected = np.stack([vectors[nearest == code].mean(0) for code in range(8)])
    np.testing.assert_allclose(end, expected, atol=1e-5)
    np.testing.assert_array_equal(counts, np.bincount(oracle.nearest_code(vectors, end), minlength=8))


@pytest.mark.parametrize("keywords", [{}, {"init": "random"}, {"batch_size": 256}])
def test_the_error_is_close_to_that_of_scikit_learn(keywords):
    cluster = pytest.importorskip("sklearn.cluster")
    datasets = pytest.importorskip("sklearn.datasets")
    vectors = datasets.load_digits().data.astype("float32")
    codes, _ = fit(vectors, 32, seed=0, **keywords)
    peer = cluster.KMeans(32, n_init=1, random_state=0, init=keywords.get("init", "k-means++")).fit(vectors)
    assert error(vectors, codes) < 1.05 * peer.inertia_ / len(vectors)


def test_kmeans_stops_when_no_code_moves(blobs, monkeypatch):
    vectors, _ = blobs
    codes, _ = fit(vectors, 12, seed=0, epochs=5)
    passes, assign = [], clustering._assign
    monkeypatch.setattr(clustering, "_assign", lambda *arguments: passes.append(1) or assign(*arguments))
    more, _ = fit(vectors, 12, seed=0, epochs=500)
    np.testing.assert_array_equal(codes, more)
    assert len(passes) < 10


def test_equal_seeds_give_equal_codes(rng):
    vectors = rng.normal(size=(100, 3)).astype("float32")
    for keywords in ({}, {"init": "random"}, {"batch_size": 16}):
        one, other, third = (fit(vectors, 8, seed=seed, epochs=2, **keywords)[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, other)
        assert (one != third).any()


def test_set_random_seed_determines_the_codes(rng):
    vectors, found = rng.normal(size=(100, 3)).astype("float32"), []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        found.append(fit(vectors, 8, epochs=2)[0])
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_nonfinite_vectors_are_ignored(rng):
    vectors = rng.normal(size=(50, 3)).astype("float32")
    codes, _ = fit(vectors, 4, seed=1)
    bad = np.array([[np.nan, 0, 0], [0, np.inf, 0], [1e30, 0, 0]], "float32")
    again, counts = fit(np.concatenate([vectors[:20], bad, vectors[20:]]), 4, seed=1)
    np.testing.assert_array_equal(again, codes)
    assert counts.sum() == 50
    with pytest.raises(ValueError, match=r"Received: vectors of shape \(3, 3\), none of them finite"):
        fit(bad, 4)
    with pytest.raises(ValueError, match=r"`vectors` must be an array \[..., D\]. Received: vectors of shape \(\)"):
        fit(np.float32(1), 2)


def test_more_codes_than_vectors_cover_each_vector(rng):
    vectors = rng.normal(size=(5, 3)).astype("float32")
    for init in ("k-means++", "random"):
        with pytest.warns(UserWarning, match="fewer"):
            codes, counts = fit(vectors, 16, init=init, seed=0, epochs=30)
        assert np.isfinite(codes).all()
        assert counts.sum() == 5
        assert (error(vectors, codes) < 1e-6) or init == "random"


def test_codes_without_vectors_move_to_different_vectors(rng):
    vectors = rng.normal(size=(50, 3)).astype("float32")
    far = np.concatenate([vectors[:1], np.full((5, 3), 100, "float32")])
    codes, _ = fit(vectors, 6, init=far, seed=0, epochs=1)
    places = [np.flatnonzero((vectors == code).all(-1)) for code in codes[1:]]
    assert len(np.unique(np.concatenate(places))) > 2


def test_cosine_codes_are_unit_vectors_in_the_directions_of_the_clusters(blobs, rng):
    directions = keras.utils.normalize(blobs[1])
    lengths = rng.uniform(0.1, 100, size=(12, 30, 1))
    vectors = (directions[:, None] + 0.01 * rng.normal(size=(12, 30, 5))) * lengths
    codes, counts = fit(vectors, 12, distance="cosine", seed=0)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(counts, 30)
    assert (directions @ codes.T).max(-1).min() > 0.999


def test_chunks_give_the_same_codes(rng, monkeypatch):
    vectors = rng.normal(size=(100, 3)).astype("float32")
    whole, counts = fit(vectors, 8, seed=1)
    monkeypatch.setitem(keras_vqvae.kmeans.__globals__, "_CHUNK_ELEMENTS", 7 * 3)
    parts, same = fit(vectors, 8, seed=1)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_array_equal(same, counts)


def test_progress_is_shown(blobs, capsys):
    keras_vqvae.kmeans(blobs[0], 12, epochs=3, seed=0, verbose=1)
    assert "3/3" in capsys.readouterr().out
    keras_vqvae.kmeans(blobs[0], 12, epochs=3, seed=0, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_embeddings", 0),
        ("init", "best"),
        ("epochs", 0),
        ("batch_size", 0),
        ("distance", "l1"),
        ("verbose", "loud"),
    ],
)
def test_wrong_arguments_are_named_in_errors(name, value):
    keywords = {"num_embeddings": 4, name: value}
    with pytest.raises(ValueError, match=f"Received: {name}="):
        keras_vqvae.kmeans(np.ones((5, 3), "float32"), **keywords)
