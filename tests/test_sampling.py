import hypothesis
import numpy as np
import pytest
from helpers import draw, numpy, softmax
from hypothesis import strategies as st

from keras_vqvae.models import sampling


def allowed(logits, top_k, top_p):
    """Computes which codes of one row may be drawn, by the definitions of `top_k` and `top_p`."""
    order = np.argsort(-logits, kind="stable")
    keep = order[: top_k or len(order)]
    if top_p is not None:
        shares = softmax(logits[keep])
        keep = keep[: np.searchsorted(np.cumsum(shares), top_p) + 1]
    return set(keep.tolist())


@hypothesis.given(
    size=st.integers(1, 12),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.integers(1, 12) | st.none(),
    top_p=st.sampled_from([0.03, 0.31, 0.77]) | st.none(),
)
def test_top_k_and_top_p_match_their_definitions(size, seed, temperature, top_k, top_p):
    logits = draw(size, seed=seed)
    top_k = None if top_k is None else min(top_k, size)
    restricted = numpy(sampling.restrict(logits[None], temperature, top_k, top_p))[0]
    stay = allowed(logits / temperature, top_k, top_p)
    assert set(np.flatnonzero(np.isfinite(restricted)).tolist()) == stay
    kept = sorted(stay)
    np.testing.assert_allclose(restricted[kept], logits[kept] / np.float32(temperature), rtol=1e-6)


def test_top_k_and_top_p_of_all_codes_change_nothing():
    logits = draw(3, 50)
    np.testing.assert_array_equal(numpy(sampling.restrict(logits, top_k=50, top_p=1.0)), logits)


def test_codes_are_drawn_with_their_probabilities():
    logits = draw(1, 6).astype("float64")
    bits = (np.arange(1000) * 2**sampling.RANDOM_BITS) // 1000
    drawn = numpy(sampling.draw(np.repeat(logits, 1000, axis=0).astype("float32"), bits))
    shares = np.bincount(drawn, minlength=6) / 1000
    np.testing.assert_allclose(shares, softmax(logits)[0], atol=1e-3)


@hypothesis.given(seed=st.integers(0, 1000), size=st.sampled_from([1, 2, 33, 1000]), end=st.booleans())
def test_impossible_codes_are_never_drawn(seed, size, end):
    generator = np.random.default_rng(seed)
    logits = 30 * generator.normal(size=(4, size)).astype("float32")
    possible = generator.random((4, size)) < 0.3
    possible[:, generator.integers(size)] = True
    bits = np.full(4, 2**sampling.RANDOM_BITS - 1 if end else 0)
    drawn = numpy(sampling.draw(np.where(possible, logits, -np.inf).astype("float32"), bits))
    assert drawn.dtype == "int32"
    assert possible[np.arange(4), drawn].all()


def test_uniform_numbers_are_strictly_between_0_and_1():
    numbers = numpy(sampling.uniforms(np.array([0, 2 ** (sampling.RANDOM_BITS - 1), 2**sampling.RANDOM_BITS - 1])))
    assert 0 < numbers[0] < 1e-6
    assert numbers[1] == pytest.approx(0.5, abs=1e-6)
    assert 1 - 1e-6 < numbers[2] < 1


def test_guidance_extrapolates_from_logits_without_to_logits_with_the_class():
    pairs = draw(6, 5)
    with_class, without = pairs[:3], pairs[3:]
    np.testing.assert_allclose(numpy(sampling.guide(pairs, 0.0)), without, atol=1e-6)
    np.testing.assert_allclose(numpy(sampling.guide(pairs, 1.0)), with_class, atol=1e-6)
    np.testing.assert_allclose(numpy(sampling.guide(pairs, 3.0)), 3 * with_class - 2 * without, atol=1e-5)
