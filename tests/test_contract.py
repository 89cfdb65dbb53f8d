"""Tests what every quantizer in `quantizers.py` promises, one test for each promise.

Inputs have 12 vectors if the number does not matter, and 24 if a test needs more, because JAX compiles each operation
for each number of vectors.
"""

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from helpers import assert_same_weights, books, draw, losses_of, numpy, restore, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from quantizers import DIM, DRAW_OUTPUTS, DRAW_RESIDUALS, EVERY, MOVE_THEIR_CODES, NO_LOSSES, SHAPE

pytestmark = pytest.mark.each_backend


@pytest.mark.parametrize("leading", [(12,), (3, 4), (2, 3, 2), (1, 2, 3, 2), (2, 1, 2, 1, 3)])
def test_inputs_can_have_any_leading_dimensions(layer, leading):
    if layer.quantizes_grids:
        pytest.skip("it was built for grids of one rank")
    x = draw(*leading, DIM)
    quantized, indices = layer(x, return_indices=True)
    assert tuple(quantized.shape) == x.shape
    assert tuple(indices.shape)[: len(leading)] == leading
    assert keras.backend.standardize_dtype(indices.dtype) == "int32"
    flat = numpy(layer(x.reshape(-1, DIM)))
    np.testing.assert_array_equal(numpy(quantized).reshape(-1, DIM), flat)


def test_decode_inverts_encode(layer, name):
    x = draw(4, *SHAPE)
    quantized, indices = layer(x, return_indices=True)
    np.testing.assert_array_equal(numpy(layer.encode(x)), numpy(indices))
    np.testing.assert_array_equal(numpy(layer.decode(layer.encode(x))), numpy(quantized))
    if name in MOVE_THEIR_CODES:
        return
    # Codes are fixed points.
    np.testing.assert_allclose(numpy(layer(quantized)), numpy(quantized), atol=1e-6)


def test_the_codebook_lists_the_codes(layer):
    if not hasattr(layer, "codebook"):
        pytest.skip("its codes cannot be listed")
    codebook = numpy(layer.codebook)
    assert codebook.shape == (layer.num_embeddings, DIM)
    np.testing.assert_array_equal(numpy(layer.decode(np.arange(layer.num_embeddings))), codebook)


@pytest.mark.parametrize("outside", [-1, 10**9])
def test_an_index_outside_the_codebook_is_an_error(layer, outside):
    indices = np.array(numpy(layer.encode(draw(4, *SHAPE))))
    outside = min(outside, layer.min_index - 1) if outside < 0 else outside
    indices.flat[1] = outside
    with pytest.raises(ValueError, match=rf"indices.*Received: indices with \[{outside}\]"):
        layer.decode(indices)


def test_decode_before_build_is_an_error(make):
    with pytest.raises(ValueError, match="must be built"):
        make().decode([0])


def test_losses_are_float32_scalars_and_equal_in_training_and_evaluation(layer, name):
    if name in DRAW_RESIDUALS:
        pytest.skip("its losses and indices are random")
    found = []
    for training in (False, True):
        layer(draw(4, *SHAPE), training=training)
        assert bool(layer.losses) == (name not in NO_LOSSES)
        # Reading the losses twice must give equal values.
        found += [layer.losses, layer.losses]
        for loss in layer.losses:
            assert tuple(loss.shape) == ()
            assert keras.backend.standardize_dtype(loss.dtype) == "float32"
            assert np.isfinite(numpy(loss))
    for losses in found[1:]:
        np.testing.assert_array_equal([numpy(loss) for loss in losses], [numpy(loss) for loss in found[0]])


def test_empty_batches_work_and_change_no_state(layer):
    before = weights(layer)
    shape = (0, *SHAPE)
    x = np.zeros(shape, "float32")
    for training in (False, True):
        quantized, indices = layer(x, training=training, return_indices=True)
        assert tuple(quantized.shape) == shape
        assert tuple(indices.shape) == (*layer.index_axes(shape[:-1]), *layer.index_shape)
        np.testing.assert_array_equal([numpy(loss) for loss in layer.losses], 0)
    assert tuple(layer.decode(layer.encode(x)).shape) == shape
    seeds = [path for path in before if "seed" in path]
    assert_same_weights(*({k: v for k, v in w.items() if k not in seeds} for w in (before, weights(layer))))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has float64 only if it is enabled at the start")
def test_float64_gives_the_results_of_float32(make, name):
    layer = make()
    x = draw(14, *SHAPE)
    expected, indices = layer(x, return_indices=True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        wide = make()
        wide.build((None, *SHAPE))
        for old, new in zip(layer.weights, wide.weights, strict=True):
            new.assign(numpy(old))
        quantized, again = wide(x.astype("float64"), training=name not in DRAW_OUTPUTS, return_indices=True)
        for loss in wide.losses:
            assert keras.backend.standardize_dtype(loss.dtype) == "float64"
    finally:
        keras.config.set_floatx("float32")
    assert keras.backend.standardize_dtype(quantized.dtype) == "float64"
    np.testing.assert_array_equal(numpy(again), numpy(indices))
    np.testing.assert_allclose(numpy(quantized), numpy(expected), rtol=1e-6)


@pytest.mark.each_backend("ema", "composed_sim")
def test_losses_are_means_over_the_vectors(layer, name):
    if name in DRAW_RESIDUALS:
        pytest.skip("its losses and indices are random")
    before = weights(layer)
    x = draw(4, *SHAPE)
    once = losses_of(layer, x)
    restore(layer, before)
    np.testing.assert_allclose(losses_of(layer, np.concatenate([x, x])), once, rtol=1e-5)


def counted(layer, indices):
    """Counts how often each code of each codebook occurs in `[samples, ..., *index_shape]`."""
    if not layer.quantizes_grids:
        each = indices.reshape(-1, *layer.index_shape)
        counts = [np.sum(each == code, axis=0) for code in range(layer.num_embeddings)]
        return np.stack(counts, axis=-1)
    cells = [np.prod(scale) for scale in layer.scales or np.array(layer.strides[0]) // layer.strides]
    columns = np.split(indices, np.cumsum(cells)[:-1], axis=-1)
    return np.stack([counted(layer.quantizers[0], scale) for scale in columns])


def test_code_counts_count_the_codes_chosen_in_training(layer, name):
    if name in DRAW_RESIDUALS:
        pytest.skip("its losses and indices are random")
    x, more = draw(4, *SHAPE), draw(4, *SHAPE, seed=1)
    expected = np.zeros((*layer.codebook_shape, layer.num_embeddings), int)
    for inputs in (x, more):
        indices = numpy(layer.encode(inputs))
        expected += counted(layer, indices)
        np.testing.assert_array_equal(numpy(layer.count_codes(indices)), counted(layer, indices))
        layer(inputs, training=True)
    layer(x)
    np.testing.assert_array_equal(numpy(layer.code_counts), expected)
    assert layer.code_counts.name == "code_counts"
    layer.reset_code_counts()
    np.testing.assert_array_equal(numpy(layer.code_counts), 0)


def test_inference_changes_no_state(layer):
    before = weights(layer)
    layer(draw(4, *SHAPE))
    layer(draw(4, *SHAPE), training=False, return_indices=True)
    layer.encode(draw(4, *SHAPE))
    assert_same_weights(before, weights(layer))


@settings(max_examples=5)
@given(mask=st.lists(st.booleans(), min_size=12, max_size=12))
@pytest.mark.parametrize("name", EVERY)
def test_masked_positions_have_no_effect(name, mask):
    layer = EVERY[name]()
    layer.build((None, *SHAPE))
    before = weights(layer)
    mask = np.array(mask).reshape(4, 3)
    x, junk = draw(4, *SHAPE), np.resize(np.array([0, 1e4, np.nan, np.inf], "float32"), mask.shape)[..., None]
    losses = losses_of(layer, x, mask)
    after = weights(layer)
    restore(layer, before)
    np.testing.assert_array_equal(losses_of(layer, np.where(mask[..., None], x, junk), mask), losses)
    assert_same_weights(weights(layer), after)
    if not layer.quantizes_grids:
        assert numpy(layer.code_counts).sum() == mask.sum() * books(layer)


def test_masked_losses_equal_those_of_the_valid_vectors(layer, name):
    if name in DRAW_RESIDUALS:
        pytest.skip("its losses and indices are random")
    if layer.quantizes_grids:
        pytest.skip("the valid positions of a grid are not a grid")
    before = weights(layer)
    x = draw(8, 3, DIM)
    mask = np.array(4 * [[True, True, False], [False, True, False]])
    masked = losses_of(layer, x, mask)
    restore(layer, before)
    np.testing.assert_allclose(masked, losses_of(layer, x[mask]), rtol=1e-5)


def test_a_mask_with_fewer_axes_is_broadcast(layer, name):
    if name in DRAW_RESIDUALS:
        pytest.skip("its losses and indices are random")
    before = weights(layer)
    x, mask = draw(8, *SHAPE), np.array(4 * [True, False])
    masked = losses_of(layer, x, mask), numpy(layer.code_counts).copy()
    restore(layer, before)
    np.testing.assert_allclose(masked[0], losses_of(layer, x[mask]), rtol=1e-5)
    np.testing.assert_array_equal(masked[1], numpy(layer.code_counts))


def test_nonfinite_vectors_never_reach_the_state(layer):
    x = draw(4, *SHAPE)
    layer(x, training=True)
    layer.reset_code_counts()
    before = weights(layer)
    seeds = [path for path in before if "seed" in path]
    mask = np.ones(x.shape[:-1], bool)
    mask[0, 1] = False
    layer(x, mask=ops.convert_to_tensor(mask), training=True)
    masked = numpy(layer.code_counts).copy()
    assert 0 < masked.sum() < numpy(layer.encode(x)).size
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        restore(layer, before)
        layer(np.full_like(x, bad), training=True)
        after = weights(layer)
        assert_same_weights(*({k: v for k, v in w.items() if k not in seeds} for w in (before, after)))
        restore(layer, before)
        x[0, 1, 2] = bad
        layer(x, training=True)
        np.testing.assert_array_equal(numpy(layer.code_counts), masked)
        for path, value in weights(layer).items():
            assert np.isfinite(value).all(), path
        for loss in layer.losses:
            assert np.isfinite(numpy(loss))


@pytest.mark.each_backend("composed_sim")
def test_given_indices_replace_the_search(layer):
    """Residuals with a beam search, and groups, search first and then pass indices to their parts."""
    if layer.quantizes_grids:
        pytest.skip("it is never a part of another quantizer")
    indices = ops.reshape(layer.encode(draw(4, *SHAPE)), (4 * SHAPE[0], *layer.index_shape))
    vectors = ops.convert_to_tensor(draw(4 * SHAPE[0], DIM, seed=1))
    record = layer.quantize_vectors(vectors, ops.ones(4 * SHAPE[0], "bool"), False, 4, indices)
    np.testing.assert_array_equal(numpy(record.indices), numpy(indices))
    np.testing.assert_array_equal(numpy(record.codes), numpy(layer.lookup(indices)))


def test_nonfinite_vectors_do_not_spoil_gradients(layer):
    x = draw(4, *SHAPE)
    x[0, 2] = np.nan
    by_inputs, by_weights = layer_gradients(layer, x, np.zeros_like(x))
    assert np.isfinite(by_inputs[np.isfinite(x)]).all()
    for gradient in by_weights:
        assert np.isfinite(gradient).all()


def test_trap_gradients_are_finite_at_zero(layer):
    """`ops.normalize` has no finite gradient at zero."""
    x = np.zeros((4, *SHAPE), "float32")
    by_inputs, by_weights = layer_gradients(layer, x, np.ones_like(x))
    for gradient in (by_inputs, *by_weights):
        assert np.isfinite(gradient).all()
