"""Tests draws around known codes, and counts the programs that a sweep of settings compiles."""

import inspect
import itertools

import keras
import numpy as np
import pytest
from helpers import numpy

import keras_vqvae

PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}
SIZES = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "seed": 0}


@pytest.fixture(params=PRIORS)
def kind(request):
    return request.param


def deterministic(kind):
    """Returns a prior with one likely code for each codebook: 4 for the first, 1 for the second."""
    prior = PRIORS[kind]((6, 2), (3, 2), index_shape=(2,), **SIZES)
    bias = np.zeros((2, 6), "float32")
    bias[[0, 1], [4, 1]] = 50.0
    prior.transformer.bias.assign(bias)
    return prior


def test_known_codes_are_kept_and_the_others_are_drawn(kind, rng):
    prior = deterministic(kind)
    codes = rng.integers(0, (6, 2), (20, 3, 2))
    unknown = rng.random(codes.shape) < 0.5
    known = np.where(unknown, -1, codes)
    new = prior.generate(20, known=known, seed=0, batch_size=7, verbose=0)
    assert new.dtype == "int32"
    np.testing.assert_array_equal(new, np.where(unknown, [4, 1], codes))
    # Any array-like of integers is accepted.
    np.testing.assert_array_equal(prior.generate(20, known=known.tolist(), seed=0, verbose=0), new)
    np.testing.assert_array_equal(prior.generate(20, known=known.astype("int8"), seed=0, verbose=0), new)


def test_fully_known_samples_are_returned_unchanged(kind, rng):
    codes = rng.integers(0, (6, 2), (5, 3, 2))
    np.testing.assert_array_equal(deterministic(kind).generate(5, known=codes, verbose=0), codes)
    np.testing.assert_array_equal(
        deterministic(kind).generate(5, known=codes.astype("uint8"), temperature=0.5, top_k=1, verbose=0), codes
    )


def test_known_without_any_code_has_no_effect(kind):
    prior = PRIORS[kind](6, (3,), **SIZES)
    nothing = np.full((9, 3), -1)
    np.testing.assert_array_equal(
        prior.generate(9, known=nothing, seed=2, verbose=0), prior.generate(9, seed=2, verbose=0)
    )


def test_known_codes_outside_their_codebook_are_refused(kind):
    known = np.full((2, 3, 2), -1)
    known[1, 2, 1] = 2
    with pytest.raises(ValueError, match=r"`known` must be below .*\(6, 2\). Received: known with \[2\]"):
        deterministic(kind).generate(2, known=known)


def test_draws_depend_on_earlier_known_codes_and_for_the_masked_prior_on_later_ones(kind):
    """The prior's attention is far from uniform, and its middle code is drawn between two known codes."""
    prior = PRIORS[kind](6, (3,), **SIZES)
    for seed, weight in enumerate(prior.trainable_variables):
        weight.assign(weight + keras.random.normal(weight.shape, stddev=0.2, seed=seed))

    def drawn(first, last):
        known = np.broadcast_to([first, -1, last], (100, 3))
        return prior.generate(100, known=known, temperature=2.0, seed=0, verbose=0)[:, 1]

    middle = drawn(0, 0)
    assert any((drawn(code, 0) != middle).any() for code in range(1, 6))
    assert any((drawn(0, code) != middle).any() for code in range(1, 6)) == (kind == "masked")


@pytest.mark.each_backend("masked", slow=True)
def test_a_sweep_of_settings_compiles_one_program(kind):
    """Tries 30 settings of temperature, nucleus and guidance. PyTorch runs one sampler 30 times, uncompiled."""
    traced = []

    class Counting(PRIORS[kind]):
        def sample_codes(self, *args, **options):
            traced.append(options)
            return super().sample_codes(*args, **options)

    prior = Counting(16, (4,), num_classes=3, **SIZES)
    for seed, weight in enumerate(prior.trainable_variables):
        weight.assign(weight + keras.random.normal(weight.shape, stddev=0.5, seed=seed))
    settings = list(itertools.product((0.3, 0.7, 1.0, 1.2, 3.0), (0.5, 0.9, 1.0), (1.0, 6.0)))
    names = "temperature", "top_p", "guidance_scale"
    draw = lambda **options: prior.generate(32, 1, seed=0, verbose=0, **options)  # noqa: E731
    first = draw(**dict(zip(names, settings[0], strict=True)))
    once = len(traced)
    draws = [draw(**dict(zip(names, values, strict=True))) for values in settings]
    np.testing.assert_array_equal(draws[0], first)
    # The settings have an effect although the program does not change.
    assert len({each.tobytes() for each in draws}) > 15
    assert len(prior._parts.samplers) == 1
    assert len(traced) == (1 + len(settings) if keras.backend.backend() == "torch" else once)


def test_settings_without_effect_draw_the_same_as_the_defaults(kind):
    """Each case compiles another program, and so does each `top_k`."""
    prior = PRIORS[kind](16, (4,), num_classes=3, **SIZES)
    draw = lambda **options: prior.generate(32, 1, seed=0, verbose=0, **options)  # noqa: E731
    np.testing.assert_array_equal(draw(temperature=1, top_p=1, guidance_scale=1), draw())
    assert len(prior._parts.samplers) == 2
    np.testing.assert_array_equal(draw(top_k=16), draw())
    assert len({draw(top_k=top_k).tobytes() for top_k in (1, 3, 3)}) == 2
    assert len(prior._parts.samplers) == 5


def test_settings_are_exact_in_mixed_precision(kind):
    """If they were inputs of a model, they would be rounded to bfloat16, where 0.7 is 0.69921875."""
    seen = []

    class Seeing(PRIORS[kind]):
        def sample_codes(self, known, labels, bits, **options):
            seen.append(options["temperature"])
            return super().sample_codes(known, labels, bits, **options)

    prior = Seeing(6, (3,), dtype="mixed_bfloat16", **SIZES)
    prior.generate(2, temperature=0.7, verbose=0)
    if keras.backend.backend() == "torch":
        assert numpy(seen[0]) == np.float32(0.7)
    assert all(keras.backend.standardize_dtype(value.dtype) == "float32" for value in seen)


def test_arguments_after_labels_are_keyword_only(kind):
    kinds = [parameter.kind for parameter in inspect.signature(PRIORS[kind].generate).parameters.values()]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert kinds[:3] == [positional] * 3
    assert positional not in kinds[3:]
    with pytest.raises(TypeError):
        deterministic(kind).generate(2, None, 1.0)
