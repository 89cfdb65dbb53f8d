"""Tests multi-scale quantization at strides, for inputs of any size, against NumPy."""

import itertools

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import draw, losses_of, numpy
from keras import ops

import keras_vqvae

DIM = 4


def strided(strides, rank=1, size=8, **keywords):
    layer = keras_vqvae.MultiScaleQuantizer(
        keras_vqvae.VectorQuantizer(size, ema_decay=0.9, seed=1), strides=strides, **keywords
    )
    layer.build((None, *(None,) * rank, DIM))
    return layer


def filled(x, stride):
    return np.pad(x, [(0, 0), *((0, -size % step) for size, step in zip(x.shape[1:-1], stride, strict=True)), (0, 0)])


def cell_means(x, stride):
    for axis, step in enumerate(stride, start=1):
        x = np.stack([part.mean(axis) for part in np.split(x, x.shape[axis] // step, axis)], axis)
    return x


def of_scale(indices, coarsest, stride, start):
    """Extracts the indices of one scale, `[n, *sizes]`, by each cell's position within its coarsest cell."""
    parts = [a // b for a, b in zip(coarsest, stride, strict=True)]
    sizes = [size * part for size, part in zip(indices.shape[1 : 1 + len(parts)], parts, strict=True)]
    found = np.zeros((len(indices), *sizes), "int32")
    for cell in itertools.product(*map(range, sizes)):
        place = np.ravel_multi_index([c % part for c, part in zip(cell, parts, strict=True)], parts)
        found[(slice(None), *cell)] = indices[
            (slice(None), *(c // part for c, part in zip(cell, parts, strict=True)), start + place)
        ]
    return found, start + int(np.prod(parts))


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    ("grid", "strides", "masked"),
    [
        ((8,), (4, 2, 1), 0),
        ((13,), (8, 4, 2, 1), 0.3),
        ((1,), (4, 2), 0),
        ((6, 5), ((4, 2), (2, 2), (1, 1)), 0.3),
        ((3, 2, 4), ((2, 1, 4), 1), 0),
    ],
    ids=str,
)
def test_values_indices_and_losses_match_the_formulas(grid, strides, masked, interpolation):
    layer = strided(strides, len(grid), interpolation=interpolation)
    x, kept = draw(2, *grid, DIM), np.random.default_rng(1).random((2, *grid)) >= masked
    quantized, indices = layer(x, mask=ops.convert_to_tensor(kept), return_indices=True)
    full = [(stride,) * len(grid) if isinstance(stride, int) else stride for stride in strides]
    assert tuple(indices.shape)[:-1] == (2, *(-(-size // step) for size, step in zip(grid, full[0], strict=True)))
    weights = filled(kept[..., None].astype("float64"), full[0])
    rest = filled(np.where(kept[..., None], x, 0).astype("float64"), full[0])
    total, start, squares = np.zeros_like(rest), 0, []
    for quantizer, stride in zip(layer.quantizers, full, strict=True):
        fraction = cell_means(weights, stride)
        means = cell_means((rest - total) * weights, stride) / np.where(fraction > 0, fraction, 1)
        chosen, start = of_scale(numpy(indices), full[0], stride, start)
        codes, seen = numpy(quantizer.codebook).astype("float64"), fraction[..., 0] > 0
        oracle.assert_nearest(chosen[seen], means[seen], codes)
        squares.append(np.square(means - codes[chosen])[seen].mean())
        total = total + oracle.resized(codes[chosen], rest.shape[1:-1], interpolation)
    assert indices.shape[-1] == start == len(layer.codebooks)
    inside = total[(slice(None), *map(slice, grid))]
    np.testing.assert_allclose(numpy(quantized), inside, atol=1e-5)
    np.testing.assert_allclose(numpy(layer.decode(indices)), total, atol=1e-5)
    np.testing.assert_allclose(losses_of(layer, x, kept), np.multiply(0.25, squares), rtol=1e-4, atol=1e-6)


def test_indices_of_the_coarse_scales_decode_to_a_coarse_sound():
    layer, x = strided((4, 2, 1), interpolation="nearest"), draw(2, 8, DIM)
    indices = numpy(layer.encode(x))
    first = numpy(layer.quantizers[0].codebook)[indices[..., 0]]
    coarse = np.where(np.arange(7) < 1, indices, -1)
    np.testing.assert_allclose(numpy(layer.decode(coarse)), np.repeat(first, 4, axis=1), atol=1e-6)


def test_indices_of_complete_coarse_cells_do_not_depend_on_later_inputs():
    """With repetition, a cell affects only its own elements, so sound can be cut between coarsest cells."""
    layer, x = strided((4, 2, 1), interpolation="nearest"), draw(2, 16, DIM)
    np.testing.assert_array_equal(numpy(layer.encode(x[:, :8])), numpy(layer.encode(x))[:, :2])


def test_the_gradient_is_copied_at_sizes_that_strides_do_not_divide():
    layer, x, upstream = strided((4, 2, 1)), draw(2, 6, DIM), draw(2, 6, DIM, seed=5)
    by_inputs, _ = layer_gradients(layer, x, upstream, with_losses=False)
    np.testing.assert_allclose(by_inputs, upstream, atol=1e-6)


def test_adapt_ignores_padding_in_the_means():
    layer, x = strided((4, 1), interpolation="nearest"), draw(40, 6, DIM)
    before = oracle.mean_square(numpy(layer(x)) - x)
    layer.adapt(x, verbose=0)
    means = np.stack([x[:, :4].mean(1), x[:, 4:].mean(1)], axis=1)
    first, _ = keras_vqvae.kmeans(means, 8, seed=1, verbose=0)
    np.testing.assert_allclose(numpy(layer.quantizers[0].codebook), numpy(first), atol=1e-5)
    # The last coarsest cell extends two cells beyond the vectors.
    coarse = np.repeat(numpy(first)[numpy(layer.encode(x))[..., 0]], 4, axis=1)[:, :6]
    second, _ = keras_vqvae.kmeans(x - coarse, 8, seed=2, verbose=0)
    np.testing.assert_allclose(numpy(layer.quantizers[1].codebook), numpy(second), atol=1e-5)
    assert oracle.mean_square(numpy(layer(x)) - x) < 0.8 * before


def test_a_model_of_sound_of_any_length_trains_saves_decodes_and_is_sampled(tmp_path):
    keras.utils.set_random_seed(0)
    encoder = keras_vqvae.build_conv_encoder((None, 1), DIM, filters=(4,), num_residual_blocks=0)
    decoder = keras_vqvae.build_conv_decoder((None, 1), DIM, filters=(4,), num_residual_blocks=0)
    quantizer = keras_vqvae.MultiScaleQuantizer(
        keras_vqvae.VectorQuantizer(8, ema_decay=0.9, seed=1), strides=(4, 2, 1), interpolation="linear"
    )
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile("adam")
    assert model.tokenizer.output_shape == (None, None, 7)
    assert model.detokenizer.output_shape == (None, None, 1)
    for steps in (16, 12):
        history = model.fit(draw(8, steps, 1), batch_size=4, verbose=0).history
        assert np.isfinite(history["loss"]).all()
    x = draw(4, 16, 1)
    codes, sound = model.encode(x, verbose=0), model.predict(x, verbose=0)
    assert codes.shape == (4, 2, 7)
    np.testing.assert_allclose(model.decode(codes, verbose=0), sound, atol=1e-5)
    # 12 steps are 6 vectors. They need 2 coarsest cells, which have 16 steps.
    decoded = model.decode(model.encode(x[:, :12], verbose=0), verbose=0)
    assert decoded.shape == (4, 16, 1)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), sound)
    prior = keras_vqvae.MaskedPrior(8, (3, 7), num_layers=1, num_heads=1, hidden_dim=8, seed=0)
    assert model.sample(prior, 2, num_steps=2, verbose=0, seed=0).shape == (2, 24, 1)


@pytest.mark.parametrize("strides", [(), (1, 2), (2, 2), (3, 2), (4, 0), "21", 2, ((4, 2), (2, 4)), ((1,) * 4,)])
def test_invalid_strides_are_refused(strides):
    with pytest.raises(ValueError, match="strides.*Received"):
        strided(strides)


def test_wrong_ranks_and_scales_together_with_strides_are_refused():
    inner = keras_vqvae.VectorQuantizer(8)
    for keywords in ({}, {"scales": (1, 2), "strides": (2, 1)}):
        with pytest.raises(ValueError, match="scales.*strides.*Received"):
            keras_vqvae.MultiScaleQuantizer(inner, **keywords)
    with pytest.raises(ValueError, match="strides.*Received"):
        strided(((2, 2), (1, 1)), rank=1)
    layer = strided((2, 1))
    with pytest.raises(ValueError, match="grid of 1 axes.*Received"):
        layer(draw(2, 4, 4, DIM))
    with pytest.raises(ValueError, match="indices.*Received"):
        layer.decode(np.zeros((2, 4, 4), "int32"))


@pytest.mark.parametrize("interpolation", ["bicubic", None, ("linear",)])
def test_unknown_interpolations_are_refused(interpolation):
    with pytest.raises(ValueError, match="interpolation.*Received"):
        strided((2, 1), interpolation=interpolation)


@pytest.mark.parametrize("convolution", [1, "yes", (0,), (0, 2), (1, 0.5), (-1, 0), ()])
def test_invalid_convolution_numbers_are_refused(convolution):
    with pytest.raises(ValueError, match="convolution.*Received"):
        strided((2, 1), convolution=convolution)


def test_scales_with_the_same_number_share_a_convolution():
    layer = strided((4, 2, 1), convolution=(0, 1, 0), interpolation="nearest")
    assert layer.kernel.shape == (2, 3, DIM, DIM)
    layer.bias.assign([[1.0] * DIM, [10.0] * DIM])
    layer.kernel.assign(0 * layer.kernel)
    none = np.full((1, 1, 7), -1)
    np.testing.assert_allclose(numpy(layer.decode(none)), 12)
