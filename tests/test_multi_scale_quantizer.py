"""Tests multi-scale quantization of grids against NumPy."""

import functools
import itertools
import math

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import assert_same_weights, books, draw, losses_of, numpy, restore, weights
from keras import ops
from oracle import resized

import keras_vqvae
from keras_vqvae.ops import resizing

CASES = {
    "1d": ((7,), (1, 3, 7), 0.4),
    "2d": ((4, 6), (1, (2, 3), (3, 6), (4, 6)), 0),
    "3d": ((2, 3, 4), ((1, 1, 2), (2, 3, 4)), 0.4),
    "coarser": ((5, 5), (2, 4), 0),
}
"""Grid, scales and the fraction of masked positions."""


def vector(size=8, **keywords):
    return keras_vqvae.VectorQuantizer(size, seed=1, **{"ema_decay": 0.9, **keywords})


def multi_scale(grid=(4, 4), scales=(1, 2, 4), dim=4, inner=None, **keywords):
    layer = keras_vqvae.MultiScaleQuantizer(inner or vector(), scales, **keywords)
    layer.build((None, *grid, dim))
    return layer


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize(
    ("old", "new"), [((6,), (4,)), ((4,), (6,)), ((1, 5), (3, 5)), ((5, 4, 3), (2, 3, 1)), ((2, 3), (5, 9))]
)
def test_grids_shrink_by_means_and_grow_by_interpolation(old, new, interpolation):
    x = draw(2, *old, 3)
    found = numpy(resizing.resize(ops.convert_to_tensor(x), new, interpolation))
    np.testing.assert_allclose(found, resized(x.astype("float64"), new, interpolation), atol=1e-5)


def by_hand(layer, x, indices, kept, num_scales):
    """Decodes the first `num_scales` scales, and computes the mean squared distance between their inputs and codes."""
    x = np.where(kept[..., None], x.astype("float64"), 0)
    grid, total, start, squares = x.shape[1:-1], np.zeros_like(x), 0, []
    for quantizer, scale in itertools.islice(zip(layer.quantizers, layer.scales, strict=True), num_scales):
        sizes = scale * (len(grid) // len(scale))
        cells, codes = math.prod(sizes), numpy(quantizer.codebook).astype("float64")
        fraction = resized(kept[..., None].astype("float64"), sizes)
        means = resized((x - total) * kept[..., None], sizes) / np.where(fraction > 1e-9, fraction, 1)
        chosen = indices[:, start : start + cells]
        seen = fraction.reshape(-1) > 1e-9
        flat = means.reshape(-1, x.shape[-1])
        oracle.assert_nearest(chosen.reshape(-1)[seen], flat[seen], codes)
        squares.append(np.square(flat - codes[chosen.reshape(-1)])[seen].mean())
        total, start = total + resized(codes[chosen].reshape(len(x), *sizes, -1), grid), start + cells
    return total, squares


@pytest.mark.parametrize(("grid", "scales", "masked"), CASES.values(), ids=CASES)
def test_values_indices_losses_and_counts_match_the_formulas(grid, scales, masked):
    layer, x = multi_scale(grid, scales), draw(3, *grid, 4)
    kept = np.random.default_rng(1).random((3, *grid)) >= masked
    quantized, indices = layer(x, mask=ops.convert_to_tensor(kept), return_indices=True)
    sizes = [scale * (len(grid) // len(scale)) for scale in layer.scales]
    assert tuple(indices.shape) == (3, sum(map(math.prod, sizes)))
    total, squares = by_hand(layer, x, numpy(indices), kept, len(sizes))
    np.testing.assert_allclose(numpy(quantized), total, atol=1e-5)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))
    losses = losses_of(layer, x, kept)
    np.testing.assert_allclose(losses, np.multiply(0.25, squares), rtol=1e-4, atol=1e-6)
    areas = [resized(kept[..., None].astype("float64"), size) > 1e-9 for size in sizes]
    np.testing.assert_array_equal(numpy(layer.code_counts).sum(-1), [area.sum() for area in areas])
    for counts, quantizer in zip(numpy(layer.code_counts), layer.quantizers, strict=True):
        np.testing.assert_array_equal(counts, numpy(quantizer.code_counts))


def test_indices_of_the_first_scales_decode_to_a_coarse_picture():
    layer, x = multi_scale(), draw(2, 4, 4, 4)
    indices = numpy(layer.encode(x))
    for num_scales, cells in enumerate((1, 5, 21), start=1):
        coarse = np.where(np.arange(21) < cells, indices, -1)
        expected, _ = by_hand(layer, x, indices, np.ones((2, 4, 4), bool), num_scales)
        np.testing.assert_allclose(numpy(layer.decode(coarse)), expected, atol=1e-5)


@pytest.mark.parametrize("junk", [0.0, 1e4, np.nan, np.inf])
def test_masked_positions_have_no_effect(junk):
    layer, x = multi_scale(convolution=True), draw(2, 4, 4, 4)
    before = weights(layer)
    mask = np.random.default_rng(1).random((2, 4, 4)) < 0.5
    mask[1, :2] = False
    outcomes = []
    for inputs in (x, np.where(mask[..., None], x, junk).astype("float32")):
        restore(layer, before)
        quantized, indices = layer(inputs, mask=ops.convert_to_tensor(mask), return_indices=True)
        outcomes.append((numpy(quantized), numpy(indices), losses_of(layer, inputs, mask), weights(layer)))
    for found, expected in zip(outcomes[1][:3], outcomes[0][:3], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_same_weights(outcomes[0][3], outcomes[1][3])
    if not np.isfinite(junk):
        # NaN and inf are masked without a mask, too.
        np.testing.assert_array_equal(numpy(layer(inputs)), numpy(layer(inputs, mask=ops.convert_to_tensor(mask))))
        by_inputs, by_weights = layer_gradients(layer, inputs, np.zeros_like(x))
        assert all(np.isfinite(gradient).all() for gradient in (by_inputs[mask], *by_weights))


def test_convolutions_ignore_the_image_data_format():
    layer, x = multi_scale(convolution=True), draw(2, 4, 4, 4)
    layer.kernel.assign(draw(*layer.kernel.shape, seed=1))
    expected = numpy(layer(x))
    keras.config.set_image_data_format("channels_first")
    try:
        np.testing.assert_array_equal(numpy(layer(x)), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_the_gradient_is_copied_and_trains_the_convolution():
    layer, x = multi_scale(inner=keras_vqvae.FiniteScalarQuantizer((3, 3, 3, 3)), convolution=True), draw(2, 4, 4, 4)
    upstream = draw(2, 4, 4, 4, seed=5)
    by_inputs, (by_kernel, by_bias) = layer_gradients(layer, x, upstream)
    # FSQ with three levels is bounded by a tanh.
    np.testing.assert_allclose(by_inputs, upstream * (1 - np.tanh(x) ** 2), rtol=0.02, atol=1e-3)
    assert np.abs(by_kernel).max() > 0
    # The last scale is straight-through and compensates for what the first two add.
    np.testing.assert_allclose(by_bias[0], upstream.sum((0, 1, 2)), rtol=0.02, atol=0.05)
    # With a nonzero kernel, the convolution affects the output and `decode`.
    quantized = numpy(layer(x))
    layer.kernel.assign(draw(*layer.kernel.shape) / 10)
    layer.bias.assign(draw(*layer.bias.shape) / 10)
    moved, indices = layer(x, return_indices=True)
    assert np.abs(numpy(moved) - quantized).max() > 0.01
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(moved))
    bounded = numpy(layer.quantizers[0].bound(ops.convert_to_tensor(x)))
    expected = np.mean(np.square(bounded - numpy(moved)))
    np.testing.assert_allclose(losses_of(layer, x)[-1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2)),
        lambda: keras_vqvae.BinarySphericalQuantizer(4),
        lambda: keras_vqvae.ResidualQuantizer(vector(), 2),
        lambda: keras_vqvae.ProjectedQuantizer(vector(), 2),
        lambda: vector(distance="direction"),
    ],
    ids=["fsq", "bsq", "residual", "projected", "direction"],
)
def test_any_quantizer_of_vectors_can_be_used(inner):
    shared = not isinstance(inner(), keras_vqvae.ProjectedQuantizer)
    layer, x = multi_scale(inner=inner(), shared_codebook=shared), draw(2, 4, 4, 4)
    layer(x, training=True)
    quantized, indices = layer(x, return_indices=True)
    assert tuple(indices.shape) == (2, 21, *layer.index_shape)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))
    assert len({id(quantizer) for quantizer in layer.quantizers}) == (1 if shared else 3)
    assert numpy(layer.code_counts).shape == (3, *layer.index_shape, layer.num_embeddings)
    np.testing.assert_array_equal(numpy(layer.code_counts).sum(-1).reshape(3, -1).T, [[2, 8, 32]] * books(layer))


def test_all_cells_of_a_scale_use_the_same_number_of_stages():
    layer = multi_scale(inner=keras_vqvae.ResidualQuantizer(vector(), 3, quantizer_dropout=1.0, seed=1))
    # Batches of a size for which JAX has already compiled.
    batches = np.split(draw(20, 4, 4, 4), 10)
    indices = np.concatenate([numpy(layer(batch, training=True, return_indices=True)[1]) for batch in batches])
    stages = (indices >= 0).sum(-1)
    for scale in np.split(stages, [1, 5], axis=1):
        assert (scale == scale[:, :1]).all()
    assert set(stages.ravel().tolist()) == {1, 2, 3}


def test_adapt_is_k_means_of_each_scale():
    layer, x = multi_scale(), draw(40, 4, 4, 4)
    before = oracle.mean_square(numpy(layer(x)) - x)
    layer.adapt(x, verbose=0)
    first, _ = keras_vqvae.kmeans(x.mean((1, 2)), 8, seed=1, verbose=0)
    np.testing.assert_allclose(numpy(layer.quantizers[0].codebook), numpy(first), atol=1e-5)
    assert oracle.mean_square(numpy(layer(x)) - x) < 0.8 * before
    layer = multi_scale(inner=keras_vqvae.ResidualQuantizer(vector(), 2))
    layer.adapt(x, verbose=0)
    assert oracle.mean_square(numpy(layer(x)) - x) < 0.7 * before


def test_a_model_trains_saves_and_decodes(tmp_path):
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 2, strides=2)])
    decoder = keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Conv2DTranspose(1, 2, strides=2)])
    quantizer = keras_vqvae.MultiScaleQuantizer(vector(), (1, 2, 4), convolution=True)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile("adam")
    x = draw(20, 8, 8, 1)
    losses = model.fit(x, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    codes = model.encode(x, verbose=0)
    assert codes.shape == (20, 21)
    pictures = model.predict(x, verbose=0)
    np.testing.assert_allclose(model.decode(codes, verbose=0), pictures, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), pictures)
    again.quantizer.trainable = False
    before = weights(again.quantizer)
    again.quantizer(draw(2, 4, 4, 4), training=True)
    assert_same_weights(before, weights(again.quantizer))


@pytest.mark.parametrize("shared", [False, True])
def test_a_collapsed_scale_is_visible(shared):
    """The mean of each sample is 0, so all samples share one code of the first scale."""
    z = draw(64, 4, 4)
    z -= z.mean(1, keepdims=True)
    quantizer = keras_vqvae.MultiScaleQuantizer(vector(16, dead_code_threshold=0), (1, 4), shared_codebook=shared)
    encoder = keras.Sequential([keras.Input((4, 4)), keras.layers.Identity()])
    model = keras_vqvae.VQVAE(encoder, quantizer, keras.layers.Identity())
    model.compile("sgd")
    monitor = keras_vqvae.CodebookMonitor(per_codebook=True)
    logs = model.evaluate(z, verbose=0, return_dict=True, callbacks=[monitor])
    assert logs["min_perplexity"] == pytest.approx(1)
    assert logs["min_codebook_usage"] == pytest.approx(1 / 16)
    fine = oracle.perplexity(model.encode(z, verbose=0)[:, 1:], 16)
    assert logs["perplexity"] == pytest.approx((1 + fine) / 2, rel=1e-4)
    for name, value in logs.items():
        if "loss" not in name and name not in ("bits_per_sample", "explained_variance"):
            assert monitor.validation[f"val_{name}"] == pytest.approx(value, rel=1e-4)
    assert monitor.validation["val_perplexity_0"] == pytest.approx(1)
    assert monitor.validation["val_perplexity_1"] == pytest.approx(fine, rel=1e-4)


def test_low_precision_inputs_are_quantized_in_float32():
    layer, full, x = multi_scale(dtype="mixed_float16"), multi_scale(), (300 * draw(2, 4, 4, 4)).astype("float16")
    full.set_weights(layer.get_weights())
    quantized, indices = layer(x, training=True, return_indices=True)
    expected, same = full(x.astype("float32"), training=True, return_indices=True)
    np.testing.assert_array_equal(numpy(indices), numpy(same))
    np.testing.assert_allclose(numpy(quantized), numpy(expected), rtol=1e-3, atol=1e-3)
    for one, other in zip(layer.weights, full.weights, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), rtol=1e-5)
    assert keras.backend.standardize_dtype(quantized.dtype) == "float16"
    assert all(keras.backend.standardize_dtype(loss.dtype) == "float32" for loss in layer.losses)
    assert keras.backend.standardize_dtype(indices.dtype) == "int32"


@pytest.mark.parametrize(
    "scales",
    [
        (),
        (2, 1),
        (1, 1),
        (0, 2),
        (1.5,),
        "12",
        3,
        ((2, 4), (3, 3)),
        ((1, 1), (1, 2, 2)),
        ((1,) * 4,),
        ((),),
        (True, 2),
        ((1, 1.5),),
    ],
)
def test_invalid_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales.*Received"):
        keras_vqvae.MultiScaleQuantizer(vector(), scales)


@pytest.mark.parametrize("shape", [(None, 4), (None, 3, 3, 4), (None, 4, None, 4), (None, 4, 4, 4, 4, 4)])
def test_grids_that_do_not_fit_the_scales_are_refused(shape):
    with pytest.raises(ValueError, match="scales.*Received"):
        keras_vqvae.MultiScaleQuantizer(vector(), (1, 2, 4)).build(shape)
    with pytest.raises(ValueError, match="scales.*Received"):
        keras_vqvae.MultiScaleQuantizer(vector(), ((1, 2), (2, 4))).build((None, 4, 4))


def test_grids_and_indices_of_another_size_are_refused():
    layer = multi_scale()
    with pytest.raises(ValueError, match="Received"):
        layer(draw(2, 4, 8, 4))
    with pytest.raises(ValueError, match="indices.*Received"):
        layer.decode(np.zeros((2, 20), "int32"))
    with pytest.raises(ValueError, match="adapt.*Received"):
        multi_scale(shared_codebook=True).adapt(draw(2, 4, 4, 4))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: keras_vqvae.ResidualQuantizer(inner, 2),
        lambda inner: keras_vqvae.GroupedQuantizer(inner, 2),
        lambda inner: keras_vqvae.ProjectedQuantizer(inner, 2),
        lambda inner: keras_vqvae.MultiScaleQuantizer(inner, (1, 2)),
    ],
    ids=["residual", "grouped", "projected", "scales"],
)
def test_a_multi_scale_quantizer_cannot_be_wrapped(wrap):
    with pytest.raises(ValueError, match="quantizer.*Received"):
        wrap(keras_vqvae.MultiScaleQuantizer(vector(), (1, 2)))


def test_vectors_are_bounded_only_once():
    """tanh(.6) rounds to 1, but tanh(tanh(.6)) rounds to 0."""
    layer = multi_scale(inner=keras_vqvae.FiniteScalarQuantizer((3, 3, 3, 3)))
    np.testing.assert_allclose(numpy(layer(np.full((2, 4, 4, 4), 0.6, "float32"))), 1)


def test_codes_learn_only_from_their_own_scale():
    x = draw(2, 4, 4, 4)
    layer = multi_scale(inner=vector(ema_decay=None))
    codes, chosen = numpy(layer.quantizers[0].codebook), numpy(layer.encode(x))[:, 0]
    expected = np.zeros_like(codes)
    np.add.at(expected, chosen, 2 * (codes[chosen] - x.mean((1, 2))) / (2 * 4))
    np.testing.assert_allclose(layer_gradients(layer, x, np.zeros_like(x))[1][0], expected, atol=1e-6)


def test_there_are_at_most_1024_scales():
    make = functools.partial(keras_vqvae.MultiScaleQuantizer, keras_vqvae.VectorQuantizer(4), shared_codebook=True)
    assert len(make(range(1, 1025)).quantizers) == 1024
    with pytest.raises(ValueError, match="`scales` must have 1 to 1024 entries"):
        make(range(1, 1026))
