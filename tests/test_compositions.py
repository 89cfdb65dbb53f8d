"""Tests gradients through nested quantizers: every part must learn by the chain rule."""

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from helpers import built, draw, numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_vqvae

DIM = 4
TAUGHT_BY_ITS_LOSS = ("codebook", "projection")
"""Weights that get no gradient from the decoder if the estimator passes none to the codes: codes, and SimVQ's map."""


def vector(**keywords):
    # Codes must not be replaced, so that each call evaluates the same function.
    return keras_vqvae.VectorQuantizer(8, seed=1, dead_code_threshold=0, **keywords)


# `dim` -> a quantizer, and whether the decoder trains its codes.
LEAVES = {
    "optimizer": (lambda dim: vector(), False),
    "ema": (lambda dim: vector(ema_decay=0.9), False),
    "rotation": (lambda dim: vector(estimator="rotation"), False),
    "diveq": (lambda dim: vector(estimator="diveq"), True),
    "fsq": (lambda dim: keras_vqvae.FiniteScalarQuantizer((5,) * dim), True),
    "noise": (lambda dim: keras_vqvae.FiniteScalarQuantizer((5,) * dim, noise=0.5, seed=1), True),
    "lfq": (lambda dim: keras_vqvae.LookupFreeQuantizer(dim), True),
    "sim": (lambda dim: keras_vqvae.SimVectorQuantizer(8, seed=1), False),
    "ibq": (lambda dim: keras_vqvae.IndexBackpropagationQuantizer(8, seed=1), True),
    "gumbel": (lambda dim: keras_vqvae.GumbelQuantizer(8, seed=1), True),
}
WRAPPERS = {
    "residual": lambda inner, dim, draw: keras_vqvae.ResidualQuantizer(
        inner(dim), draw(st.integers(1, 3)), quantizer_dropout=draw(st.sampled_from([0, 0.5])), seed=1
    ),
    "grouped": lambda inner, dim, draw: keras_vqvae.GroupedQuantizer(inner(dim // 2), 2),
    "projected": lambda inner, dim, draw: keras_vqvae.ProjectedQuantizer(inner(2), 2),
    "scales": lambda inner, dim, draw: keras_vqvae.MultiScaleQuantizer(
        inner(dim), draw(st.sampled_from([(1, 3), (1, 2)])), convolution=draw(st.booleans())
    ),
}


@st.composite
def compositions(draw):
    """Draws a quantizer in up to three wrappers, the outermost possibly multi-scale. Returns it and its leaf's name."""
    leaf = draw(st.sampled_from(sorted(LEAVES)))
    names = draw(st.lists(st.sampled_from(["residual", "grouped", "projected"]), min_size=1, max_size=2))
    names = names[:1] if names == ["grouped"] * 2 else names  # Rotations need groups of more than one element.
    if draw(st.booleans()):
        names = ["scales", *names]

    def make(names, dim):
        if not names:
            return LEAVES[leaf][0](dim)
        return WRAPPERS[names[0]](lambda dim: make(names[1:], dim), dim, draw)

    return make(names, DIM), leaf, names


@settings(max_examples=60)
@given(compositions())
def test_every_weight_of_every_composition_learns_from_the_decoder(composition):
    layer, leaf, _ = composition
    x = draw(16, 3, DIM)
    layer.build(x.shape)
    by_inputs, by_weights = layer_gradients(layer, x, draw(*x.shape, seed=1), with_losses=False)
    assert np.abs(by_inputs).max() > 0
    for weight, gradient in zip(layer.trainable_variables, by_weights, strict=True):
        taught = LEAVES[leaf][1] or weight.name not in TAUGHT_BY_ITS_LOSS
        assert bool(np.abs(gradient).max() > 0) == taught, weight.path


def surrogate(layer, vectors, weights, held):
    """Computes the output and the commitment losses in float64, with codes and copied residuals held constant.

    `weights` maps the layer's weight paths to values. `held` contains the constants, and is filled in if it is empty.
    """
    losses = []

    def constant(place, value):
        return held.setdefault(place, value)

    def stage(quantizer, r, place, share):
        if isinstance(quantizer, keras_vqvae.ResidualQuantizer):
            parts, rest = [], r
            for i, each in enumerate(quantizer.quantizers):
                parts.append(stage(each, rest, (*place, i), share))
                copied = quantizer.copies_gradient(True)
                rest = rest - (constant((*place, i, "q"), parts[-1]) if copied else parts[-1])
            if not quantizer.copies_gradient(True):
                return sum(parts)
            return constant((*place, "sum"), sum(parts)) + r - constant((*place, "r"), r)
        if isinstance(quantizer, keras_vqvae.GroupedQuantizer):
            parts = np.split(r, quantizer.num_groups, -1)
            groups = zip(quantizer.quantizers, parts, strict=True)
            share = share / quantizer.num_groups
            return np.concatenate([stage(each, part, (*place, i), share) for i, (each, part) in enumerate(groups)], -1)
        if isinstance(quantizer, keras_vqvae.ProjectedQuantizer):
            down, down_bias, up, up_bias = (
                weights[getattr(quantizer, name).path] for name in ("down_kernel", "down_bias", "up_kernel", "up_bias")
            )
            return stage(quantizer.quantizer, r @ down + down_bias, (*place, 0), share) @ up + up_bias
        book = numpy(quantizer.codebook).astype("float64")
        codes = constant((*place, "codes"), book[np.square(r[:, None] - book).sum(-1).argmin(-1)])
        losses.append(0.25 * share * np.mean(np.square(r - codes)))
        return codes + r - constant((*place, "r"), r)

    return stage(layer, vectors, (), 1.0), sum(losses)


NESTED = {
    "residual of projections": lambda: keras_vqvae.ResidualQuantizer(
        keras_vqvae.ProjectedQuantizer(vector(codebook_weight=0), 3), 3
    ),
    "projected residual": lambda: keras_vqvae.ProjectedQuantizer(
        keras_vqvae.ResidualQuantizer(vector(codebook_weight=0), 2), 3
    ),
    "residual of residuals of projections": lambda: keras_vqvae.ResidualQuantizer(
        keras_vqvae.ResidualQuantizer(keras_vqvae.ProjectedQuantizer(vector(codebook_weight=0), 2), 2), 2
    ),
    "residual of groups of projections": lambda: keras_vqvae.ResidualQuantizer(
        keras_vqvae.GroupedQuantizer(keras_vqvae.ProjectedQuantizer(vector(codebook_weight=0), 2), 2), 2
    ),
    "groups of residuals": lambda: keras_vqvae.GroupedQuantizer(
        keras_vqvae.ResidualQuantizer(vector(codebook_weight=0), 2), 2
    ),
}


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("with_losses", [False, True])
def test_values_and_gradients_match_the_formula(make, with_losses):
    """Compares them along random directions of inputs and weights with finite differences of the float64 formula."""
    layer, x, cotangent = built(make(), DIM), draw(24, DIM), draw(24, DIM, seed=1)
    weights = {weight.path: numpy(weight).astype("float64") for weight in layer.trainable_variables}
    held = {}

    def value(x, weights):
        output, losses = surrogate(layer, x, weights, held)
        return np.sum(cotangent * output) + with_losses * losses

    output, losses = surrogate(layer, x.astype("float64"), weights, held)
    np.testing.assert_allclose(numpy(layer(x, training=True)), output, atol=1e-5)
    np.testing.assert_allclose(sum(numpy(loss) for loss in layer.losses), losses, rtol=1e-4)
    by_inputs, by_weights = layer_gradients(layer, x, cotangent, with_losses)
    along, along_x, step = (
        {path: draw(*w.shape, seed=2, dtype="float64") for path, w in weights.items()},
        draw(*x.shape, seed=3, dtype="float64"),
        1e-5,
    )
    for moving in (along, {}):
        ends = [
            value(
                x.astype("float64") + sign * along_x,
                {path: w + sign * moving.get(path, 0) for path, w in weights.items()},
            )
            for sign in (step, -step)
        ]
        found = sum(np.sum(g * moving.get(path, 0)) for path, g in zip(weights, by_weights, strict=True))
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(found + np.sum(by_inputs * along_x), expected, rtol=1e-4)


def test_straight_through_stages_copy_the_gradient_exactly_once():
    inner = keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(vector(), 2), 2)
    layer, x, cotangent = built(keras_vqvae.ResidualQuantizer(inner, 2), DIM), draw(24, DIM), draw(24, DIM, seed=1)
    by_inputs, _ = layer_gradients(layer, x, cotangent, with_losses=False)
    np.testing.assert_array_equal(by_inputs, cotangent)


def test_scales_below_the_full_grid_copy_only_the_gradient_they_can_represent():
    """Per row, with area means `M` and interpolation `U` of each scale, the gradient is `I - prod(I - U M)`."""
    scales = keras_vqvae.MultiScaleQuantizer(vector(), (1, 2))
    x, cotangent = draw(6, 4, DIM), draw(6, 4, DIM, seed=1)
    by_inputs, _ = layer_gradients(scales, x, cotangent, with_losses=False)
    one = np.full((4, 4), 1 / 4)
    # The scale of size 2: means of halves, and linear interpolation between their centers.
    two = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]) @ np.repeat(np.eye(2), 2, 1) / 2
    jacobian = np.eye(4) - (np.eye(4) - two) @ (np.eye(4) - one)
    np.testing.assert_allclose(by_inputs, np.einsum("ij,nid->njd", jacobian, cotangent), atol=1e-6)


def test_projections_of_earlier_stages_learn_from_the_losses_of_later_ones():
    """Otherwise they diverge where later stages seem to compensate for them, because nothing holds them there."""
    stage = keras_vqvae.ProjectedQuantizer(vector(), 3)
    layer, x = built(keras_vqvae.ResidualQuantizer(stage, 2), DIM), draw(24, DIM)
    layer.quantizers[0].quantizer.commitment_weight = 0.0
    _, by_weights = layer_gradients(layer, x, np.zeros_like(x))
    found = {weight.path: gradient for weight, gradient in zip(layer.trainable_variables, by_weights, strict=True)}
    for name in ("down_kernel", "up_kernel"):
        assert np.abs(found[getattr(layer.quantizers[0], name).path]).max() > 1e-3


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        tuple(
            vector(estimator=name, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
            for name in ("straight_through", "rotation")
        ),
        (
            keras_vqvae.FiniteScalarQuantizer((5,) * DIM),
            keras_vqvae.FiniteScalarQuantizer((5,) * DIM, noise=0.5, seed=1),
        ),
    ],
    ids=["rotation", "noise"],
)
@pytest.mark.parametrize(
    ("wrap", "dim"),
    [
        (lambda quantizer: keras_vqvae.ResidualQuantizer(quantizer, 2), DIM),
        (lambda quantizer: keras_vqvae.ResidualQuantizer(keras_vqvae.GroupedQuantizer(quantizer, 2), 2), 2 * DIM),
        (lambda quantizer: keras_vqvae.MultiScaleQuantizer(quantizer, (1, 3)), DIM),
    ],
    ids=["residual", "residual of groups", "scales"],
)
def test_settings_of_a_stage_have_an_effect_within_wrappers(plain, other, wrap, dim):
    x, cotangent = draw(8, 3, dim), draw(8, 3, dim, seed=1)
    found = []
    for quantizer in (plain, other):
        layer = wrap(quantizer)
        layer.build(x.shape)
        found.append((numpy(layer(x, training=True)), layer_gradients(layer, x, cotangent, with_losses=False)[0]))
    (value, gradient), (another_value, another_gradient) = found
    assert (value != another_value).any() or (gradient != another_gradient).any()
    # In inference both return the same codes.
    np.testing.assert_array_equal(*(numpy(wrap(quantizer)(x)) for quantizer in (plain, other)))
