"""Compares the log-likelihood of given codes with sums over all sequences and over all orders."""

import itertools
import math
import re

import keras
import numpy as np
import pytest
from helpers import compiled, softmax

import keras_vqvae

PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}
SIZES = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "seed": 0}


@pytest.fixture(params=PRIORS)
def kind(request):
    return request.param


def random_prior(kind, *args, **keywords):
    """Returns a prior whose logits are far from uniform and depend on the other codes."""
    prior = PRIORS[kind](*args, **SIZES, **keywords)
    for seed, weight in enumerate(prior.trainable_variables):
        weight.assign(weight + keras.random.normal(weight.shape, stddev=0.7, seed=seed))
    return prior


def every(*sizes):
    return np.array(list(itertools.product(*map(range, sizes))))


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_the_probabilities_of_all_sequences_sum_to_1(kind):
    """This holds for the masked prior, too: for a fixed order, steps of several codes also define a distribution."""
    prior = random_prior(kind, (2, 3), (2, 2), num_classes=2, index_shape=(2,))
    codes = every(2, 3, 2, 3).reshape(-1, 2, 2)
    options = [{}] if kind == "autoregressive" else [{"num_steps": steps, "seed": steps} for steps in (1, 3, 99)]
    options = [{"batch_size": 20, **keywords} for keywords in options]
    for labels, keywords in itertools.product((None, 1), options):
        nats = prior.log_likelihood(codes, labels, verbose=0, **keywords)
        assert nats.shape == codes.shape
        assert nats.dtype == "float32"
        assert nats.std() > 0.1
        assert np.exp(nats.sum((1, 2))).sum() == pytest.approx(1, abs=1e-5)


def test_the_likelihood_of_a_code_is_conditioned_on_earlier_codes():
    prior = random_prior("autoregressive", 5, (2, 2), num_classes=3)
    codes, labels = every(5, 5, 5, 5)[::7].reshape(-1, 2, 2), np.arange(90) % 3
    shares = softmax(prior.predict((codes, labels), verbose=0).astype("float64"))
    expected = np.log(np.take_along_axis(shares, codes[..., None], -1))[..., 0]
    nats = prior.log_likelihood(codes, labels, verbose=0)
    np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)
    compiled(prior, "sgd", traced=False)
    assert prior.evaluate(codes, labels, verbose=0)[0] == pytest.approx(-nats.mean(), rel=1e-5)


def exact_bound(prior, codes):
    """For each code, averages over the number of masked codes, and for each number over the masks that hide it."""
    length, result = codes.shape[1], np.zeros(codes.shape)
    for count in range(1, length + 1):
        masks = [np.isin(np.arange(length), places) for places in itertools.combinations(range(length), count)]
        for place in range(length):
            masking = [mask for mask in masks if mask[place]]
            for mask in masking:
                logits = prior.predict(np.where(mask, prior.num_embeddings, codes), verbose=0)[:, place]
                own = np.take_along_axis(np.log(softmax(logits.astype("float64"))), codes[:, place, None], -1)[:, 0]
                result[:, place] += own / length / len(masking)
    return result


def test_the_mean_over_orders_is_the_trained_bound():
    prior = random_prior("masked", 3, (3,))
    codes = every(3, 3, 3)[::3]
    bound = exact_bound(prior, codes)
    scores = [prior.log_likelihood(codes, num_steps=3, seed=seed, verbose=0) for seed in range(40)]
    # There are six orders, and each gives another array.
    orders, counts = np.unique(np.round(scores, 4), axis=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() >= 2
    np.testing.assert_allclose(orders.mean(0), bound, atol=2e-4)
    # It is a bound: on average it is below the log of the mean probability over orders.
    assert (bound.sum(1) < np.log(np.exp(orders.sum(2)).mean(0))).all()
    # `loss` draws masks with every number of codes.
    compiled(prior, "sgd", traced=False)
    loss = prior.evaluate(np.repeat(codes, 800, 0), batch_size=7200, verbose=0)[0]
    assert loss == pytest.approx(-bound.mean(), rel=0.03)


def test_codes_of_one_step_are_predicted_independently():
    """In a single step nothing is known, so each code has its probability in an empty sample."""
    prior = random_prior("masked", 3, (4,))
    codes = every(3, 3, 3, 3)[::5]
    logits = prior.predict(np.full_like(codes, 3), verbose=0).astype("float64")
    expected = np.log(np.take_along_axis(softmax(logits), codes[..., None], -1))[..., 0]
    np.testing.assert_allclose(prior.log_likelihood(codes, num_steps=1, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_steps_are_groups_of_equal_size():
    """The value of a code depends only on codes of earlier groups, not on its own group or later ones."""
    prior = random_prior("masked", 3, (6,))
    codes = np.zeros((1, 6), int)
    before = prior.log_likelihood(codes, num_steps=3, seed=4, verbose=0)[0]
    counts = []
    for place in range(6):
        changed = codes.copy()
        changed[0, place] = 1
        moved = np.abs(prior.log_likelihood(changed, num_steps=3, seed=4, verbose=0)[0] - before) > 1e-6
        counts.append(moved.sum() - moved[place])
    assert sorted(counts) == [0, 0, 2, 2, 4, 4]


def test_the_likelihood_does_not_depend_on_the_batch(kind):
    prior = random_prior(kind, 5, (2, 3), num_classes=3)
    codes, labels = np.random.default_rng(1).integers(0, 5, (7, 2, 3)), np.arange(7) % 3
    nats = prior.log_likelihood(codes, labels, verbose=0)
    for batch_size in (3, 4):
        np.testing.assert_allclose(
            prior.log_likelihood(codes, labels, batch_size=batch_size, verbose=0), nats, atol=1e-5
        )
    np.testing.assert_allclose(prior.log_likelihood(codes[2:3], labels[2:3], verbose=0), nats[2:3], atol=1e-5)
    assert np.abs(prior.log_likelihood(codes, 1, verbose=0) - nats).max() > 1e-3
    assert prior.log_likelihood(codes[:0], verbose=0).shape == (0, 2, 3)


def test_codes_unlike_the_training_data_are_less_likely(kind, rng):
    """The prior is trained on rows of equal codes, and must find the one that differs."""
    codes = np.repeat(rng.integers(0, 4, (512, 1)), 4, axis=1)
    prior = PRIORS[kind](4, (4,), num_layers=1, num_heads=2, hidden_dim=16, dropout=0.0, seed=0)
    compiled(prior, keras.optimizers.Adam(0.01))
    prior.fit(codes, batch_size=64, epochs=6, verbose=0)
    odd = codes[:50].copy()
    odd[:, 2] = (odd[:, 2] + 1) % 4
    options = {} if kind == "autoregressive" else {"num_steps": 4}
    normal, unlike = (prior.log_likelihood(each, verbose=0, **options).sum(1) for each in (codes[:50], odd))
    assert unlike.max() < normal.min()
    assert normal.mean() > -3 * math.log(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codes": np.full((4, 2), 5)}, "codes with [5]"),
        ({"codes": np.full((4, 2), -1)}, "codes with [-1]"),
        ({"codes": np.zeros((4, 3), int)}, "codes of shape (4, 3)"),
        ({"codes": np.zeros((4, 2))}, "codes of dtype float"),
        ({"labels": 3}, "labels with [3]"),
        ({"labels": [0, 1]}, "labels of shape (2,) for 4 samples"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_arguments_are_named_in_errors(kind, arguments, message):
    if kind == "autoregressive" and arguments.keys() & {"num_steps", "seed"}:
        pytest.skip("the autoregressive prior has no steps")
    prior = PRIORS[kind](5, (2,), num_classes=3, **SIZES)
    with pytest.raises(ValueError, match=re.escape(f"Received: {message}")):
        prior.log_likelihood(**{"codes": np.zeros((4, 2), int), **arguments})


def test_the_code_that_marks_masked_positions_is_refused():
    """The code `num_embeddings` marks a position to fill in for the masked prior, and occurs in no sample."""
    with pytest.raises(ValueError, match=r"Received: codes with \[5\]"):
        PRIORS["masked"](5, (2,), **SIZES).log_likelihood(np.full((1, 2), 5))
