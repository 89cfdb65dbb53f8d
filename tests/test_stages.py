"""Tests residuals of a list of stages, which may differ, against the formula in NumPy."""

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import assert_same_weights, built, draw, numpy, weights
from keras import ops

import keras_vqvae
from keras_vqvae import metrics

SIZES = (16, 8, 4)
DIM = 4


def vector(num_embeddings=16, **keywords):
    return keras_vqvae.VectorQuantizer(num_embeddings, **{"seed": num_embeddings, **keywords})


def falling(**keywords):
    """Returns stages of decreasing size."""
    return keras_vqvae.ResidualQuantizer([vector(size) for size in SIZES], **keywords)


def mixed(**keywords):
    """Returns a stage with unit-norm codes, a projected stage, and a projected FSQ stage."""
    return keras_vqvae.ResidualQuantizer(
        [
            vector(16, distance="cosine", ema_decay=0.9),
            keras_vqvae.ProjectedQuantizer(vector(8), 3),
            keras_vqvae.ProjectedQuantizer(keras_vqvae.FiniteScalarQuantizer((3, 2)), 2),
        ],
        **keywords,
    )


@pytest.fixture
def x():
    return draw(64, DIM)


@pytest.mark.parametrize("make", [pytest.param(falling, marks=pytest.mark.each_backend(slow=True)), mixed])
def test_each_stage_quantizes_the_residual_of_earlier_stages(x, make):
    layer = built(make())
    quantized, indices = layer(x, return_indices=True)
    rest, total = x, 0.0
    for stage, quantizer in enumerate(layer.quantizers):
        output, chosen = quantizer(rest, return_indices=True)
        np.testing.assert_array_equal(numpy(indices)[:, stage], numpy(chosen))
        rest, total = rest - numpy(output), total + numpy(output)
    np.testing.assert_allclose(numpy(quantized), total, atol=1e-6)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))


def test_the_given_stages_are_used_without_copies():
    stages = [vector(size) for size in SIZES]
    layer = built(keras_vqvae.ResidualQuantizer(stages))
    assert [*layer.quantizers] == stages
    assert layer.num_quantizers == 3
    assert layer.num_embeddings == 16
    assert layer.codebook_sizes == SIZES
    assert tuple(stages[2].codebook.shape) == (4, DIM)


def test_the_first_stage_can_be_pretrained(x):
    semantic = built(vector(8, trainable=False))
    semantic.adapt(x, verbose=0)
    before = numpy(semantic.codebook).copy()
    layer = keras_vqvae.ResidualQuantizer([semantic, vector(16, ema_decay=0.9)])
    layer.adapt(x, verbose=0)
    layer(x, training=True)
    np.testing.assert_array_equal(numpy(semantic.codebook), before)
    np.testing.assert_array_equal(numpy(layer.encode(x))[:, 0], oracle.nearest_code(x, before))
    rest = x - before[oracle.nearest_code(x, before)]
    later = keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=16)
    later.adapt(rest, verbose=0)
    later(rest, training=True)
    np.testing.assert_allclose(numpy(layer.quantizers[1].codebook), numpy(later.codebook), atol=1e-5)


def test_a_frozen_residual_freezes_its_stages(x):
    layer = built(falling(trainable=False))
    before = weights(layer)
    layer(x, training=True)
    assert_same_weights(before, weights(layer))
    assert not layer.trainable_variables
    # Like a single codebook, the whole residual can be adapted.
    layer.adapt(x, verbose=0)
    assert all((before[stage.embeddings.path] != numpy(stage.codebook)).any() for stage in layer.quantizers)


@pytest.mark.parametrize("make", [falling, mixed])
def test_every_stage_learns(x, make):
    layer = built(make())
    target = draw(*x.shape, seed=1)
    _, by_weights = layer_gradients(layer, x, target)
    for variable, gradient in zip(layer.trainable_variables, by_weights, strict=True):
        assert np.abs(gradient).max() > 0, variable.path


@pytest.mark.each_backend
def test_codes_are_counted_per_stage(x):
    layer = built(falling())
    indices = numpy(layer(x, training=True, return_indices=True)[1])
    expected = [np.bincount(indices[:, stage], minlength=16) for stage in range(3)]
    np.testing.assert_array_equal(numpy(layer.code_counts), expected)
    np.testing.assert_array_equal(numpy(layer.count_codes(indices)), expected)
    for stage, size in enumerate(SIZES):
        np.testing.assert_array_equal(numpy(layer.quantizers[stage].code_counts), expected[stage][:size])


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, lambda inner: keras_vqvae.GroupedQuantizer(inner, 2)], ids=["residual", "grouped"]
)
def test_usage_is_a_fraction_of_each_stages_own_codes(wrap):
    layer = built(wrap(falling()), 8)
    indices = np.stack([np.arange(16) % size for size in layer.codebook_sizes], axis=1)
    indices = indices.reshape(16, *layer.index_shape)
    found = metrics.summary(layer.count_codes(indices), layer.codebook_sizes)
    assert float(found["codebook_usage"]) == float(found["min_codebook_usage"]) == 1.0
    np.testing.assert_allclose(float(found["min_perplexity"]), 4.0, rtol=1e-5)
    metric = keras_vqvae.CodebookUsage(layer.codebook_sizes, len(layer.codebook_sizes))
    metric.update_state(np.zeros_like(indices))
    np.testing.assert_allclose(float(metric.result()), np.mean([1 / size for size in layer.codebook_sizes]), rtol=1e-5)
    again = type(metric).from_config(metric.get_config())
    assert again.num_embeddings == layer.codebook_sizes


@pytest.mark.each_backend
def test_an_index_beyond_its_stage_is_an_error_and_clipped_in_compiled_code(x):
    layer = built(falling())
    inside = np.array([[15, 7, 3], [0, -1, -1]], "int32")
    layer.decode(inside)
    for stage, size in enumerate(SIZES[1:], start=1):
        outside = inside.copy()
        outside[0, stage] = size
        with pytest.raises(
            ValueError, match=rf"`indices` must be below.*\(16, 8, 4\).*Received: indices with \[{size}"
        ):
            layer.decode(outside)
    with pytest.raises(ValueError, match="Received: indices with"):
        layer.decode(np.array([[0, 8]], "uint8"))
    symbolic = keras.Input((3,), dtype="int32")
    decoder = keras.Model(symbolic, layer.decode(symbolic))
    if keras.backend.backend() == "torch":
        # Keras does not compile this on PyTorch.
        return
    decoded = decoder.predict(np.full((2, 3), 15, "int32"), verbose=0)
    np.testing.assert_allclose(decoded, numpy(layer.decode(np.array([[15, 7, 3]] * 2))), atol=1e-6)


def test_scales_of_different_stages_check_the_indices_of_each_cell():
    layer = keras_vqvae.MultiScaleQuantizer(falling(), (1, 2))
    layer.build((None, 2, DIM))
    indices = numpy(layer.encode(draw(5, 2, DIM)))
    assert indices.shape == (5, 3, 3)
    assert layer.codebook_sizes == SIZES * 2
    layer.decode(indices)
    indices[0, 2, 2] = 4
    with pytest.raises(ValueError, match=r"Received: indices with \[4\]"):
        layer.decode(indices)


@pytest.mark.each_backend
def test_a_beam_over_different_stages_finds_the_best_sum(x):
    """A beam as wide as all sums of the first two stages finds the best of all sums."""
    layer = built(falling(beam_width=128))
    books = [numpy(stage.codebook) for stage in layer.quantizers]
    sums = (books[0][:, None, None] + books[1][:, None] + books[2]).reshape(-1, DIM)
    expected = oracle.nearest_code(x, sums)
    expected = np.stack(np.unravel_index(expected, SIZES), axis=1)
    np.testing.assert_array_equal(numpy(layer.encode(x)), expected)


def test_adapt_is_k_means_with_the_size_of_each_stage(x):
    layer = falling()
    layer.adapt(x, verbose=0)
    rest = x
    for size, stage in zip(SIZES, layer.quantizers, strict=True):
        codes, _ = keras_vqvae.kmeans(rest, size, seed=size, verbose=0)
        np.testing.assert_allclose(numpy(stage.codebook), numpy(codes), atol=1e-5)
        rest = rest - numpy(codes)[oracle.nearest_code(rest, numpy(codes))]
    # An explicit seed takes precedence.
    layer.adapt(x, verbose=0, seed=5)
    codes, _ = keras_vqvae.kmeans(x, SIZES[0], seed=5, verbose=0)
    np.testing.assert_allclose(numpy(layer.quantizers[0].codebook), numpy(codes), atol=1e-5)
    error = np.square(x - numpy(layer(x))).mean()
    layer.beam_width = 4
    layer.adapt(x, verbose=0)
    assert np.square(x - numpy(layer(x))).mean() < error


def test_dropout_leaves_out_the_last_stages(x):
    layer = built(falling(quantizer_dropout=1.0, seed=1))
    indices = numpy(layer(x, training=True, return_indices=True)[1])
    used = indices >= 0
    assert used[:, 0].all()
    assert (used[:, 1] >= used[:, 2]).all()
    assert 0 < used[:, 2].sum() < used[:, 1].sum() < len(x)


@pytest.mark.parametrize("make", [falling, mixed])
def test_a_model_of_stages_trains_logs_and_is_saved(x, make, tmp_path):
    encoder, decoder = keras_vqvae.build(DIM, embedding_dim=6, encoder_sizes=(8,), decoder_sizes=(8,))
    model = keras_vqvae.VQVAE(encoder, make(), decoder)
    model.compile("adam")
    monitor = keras_vqvae.CodebookMonitor(per_codebook=True)
    model.fit(x, verbose=0, callbacks=[monitor], validation_data=(x,))
    codes = model.encode(x, verbose=0)
    sizes = model.quantizer.codebook_sizes
    each = [len(np.unique(codes[:, stage])) / size for stage, size in enumerate(sizes)]
    found = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["codebook_usage"], np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(found["min_codebook_usage"], min(each), rtol=1e-5)
    by_stage = [monitor.validation[f"val_codebook_usage_{stage}"] for stage in range(len(sizes))]
    np.testing.assert_allclose(by_stage, each, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(x, verbose=0), codes)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("prior_class", [keras_vqvae.AutoregressivePrior, keras_vqvae.MaskedPrior])
@pytest.mark.parametrize("guidance_scale", [None, 3.0])
def test_priors_draw_only_codes_of_each_stage(prior_class, guidance_scale, x):
    """If each were drawn from all codes, nearly every code would be out of range."""
    sizes, shape = (64, 2), (3, 2)
    codes = np.stack([np.random.default_rng(0).integers(0, size, (32, 3)) for size in sizes], axis=-1)
    prior = prior_class(sizes, shape, num_classes=2, index_shape=(2,), num_layers=1, hidden_dim=8, num_heads=1, seed=0)
    prior.compile("adam")
    labels = np.arange(32) % 2
    history = prior.fit(codes, labels, verbose=0).history
    assert 0 < history["loss"][0] < np.log(64)
    logits = numpy(prior((codes, labels)))
    assert (logits[:, :, 1, 2:] < -1e8).all()
    assert np.abs(logits[:, :, 0]).max() < 1e3
    options = {"guidance_scale": guidance_scale, "verbose": 0, "seed": 0}
    known = np.full((50, *shape), -1)
    known[:, 0] = 1
    drawn = prior.generate(50, labels=1, known=known, **options)
    assert drawn[..., 1].max() == 1
    assert drawn[..., 0].max() > 1
    for wrong in (
        lambda: prior.fit(codes * 0 + 2, labels, verbose=0),
        lambda: prior.generate(2, labels=1, known=np.full((2, *shape), 2), **options),
    ):
        with pytest.raises(ValueError, match=r"codes of their codebooks, \(64, 2\)"):
            wrong()
    again = prior_class.from_config(prior.get_config())
    assert again.codebook_sizes == sizes


def test_a_prior_with_other_codebook_sizes_is_refused(x):
    encoder, decoder = keras_vqvae.build(DIM, embedding_dim=6, encoder_sizes=(8,), decoder_sizes=(8,))
    model = keras_vqvae.VQVAE(encoder, falling(), decoder)
    sizes = {"num_layers": 1, "hidden_dim": 8, "num_heads": 1}
    prior = keras_vqvae.AutoregressivePrior(model.quantizer.codebook_sizes, (3,), index_shape=(3,), **sizes)
    assert model.sample(prior, 5, verbose=0).shape == (5, DIM)
    with pytest.raises(
        ValueError, match=r"the quantizer's codebook sizes.* Received: prior with codebook_sizes=\(16, 16, 16\)"
    ):
        model.sample(keras_vqvae.AutoregressivePrior(16, (3,), index_shape=(3,), **sizes), 5)


def test_groups_have_copies_of_all_stages(x):
    layer = built(keras_vqvae.GroupedQuantizer(falling(), 2), 8)
    assert layer.codebook_sizes == SIZES * 2
    first, second = (group.quantizers for group in layer.quantizers)
    for one, other, size in zip(first, second, SIZES, strict=True):
        assert one.num_embeddings == other.num_embeddings == size
        assert (numpy(one.codebook) != numpy(other.codebook)).any()
    assert ops.shape(layer.encode(draw(5, 8))) == (5, 2, 3)


REFUSED = {
    "none": (lambda: keras_vqvae.ResidualQuantizer([]), r"1 to 1024 stages. Received: quantizer with 0 stages"),
    "another kind": (lambda: keras_vqvae.ResidualQuantizer([keras.layers.Dense(3)]), "must be a Quantizer"),
    "grids": (
        lambda: keras_vqvae.ResidualQuantizer([keras_vqvae.MultiScaleQuantizer(vector(), (1, 2))]),
        "quantizes whole grids",
    ),
    "twice": (lambda: keras_vqvae.ResidualQuantizer([vector()] * 2), "a stage twice.*`shared_codebook=True`"),
    "number": (lambda: falling(num_quantizers=3), "`num_quantizers`.*Received: num_quantizers=3"),
    "shared": (lambda: falling(shared_codebook=True), "`shared_codebook`.*Received:.*shared_codebook=True"),
    "fixed": (
        lambda: keras_vqvae.ResidualQuantizer([vector(), keras_vqvae.FiniteScalarQuantizer((3, 3))]),
        "Pass one `quantizer` and `num_quantizers`",
    ),
    "cosine later": (
        lambda: keras_vqvae.ResidualQuantizer([vector(), vector(8, distance="cosine")]),
        "Received: distance='cosine'",
    ),
    "beam": (lambda: mixed(beam_width=2), "nearest code.*Received: beam_width=2"),
    "shapes": (
        lambda: keras_vqvae.ResidualQuantizer([vector(), keras_vqvae.GroupedQuantizer(vector(8), 2)]),
        r"indices of the same shape. Received: stages whose `index_shape` is \[\(\), \(2,\)\]",
    ),
    "dim": (lambda: built(keras_vqvae.ResidualQuantizer([built(vector(), 3)])), "last axis is 3. Received"),
    "built inside": (
        lambda: keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer([built(vector())]), 2),
        "must not be built",
    ),
    "single": (lambda: keras_vqvae.ResidualQuantizer(vector()), "Received: num_quantizers=None"),
    "sizes": (lambda: keras_vqvae.CodebookUsage((3, 4), 3), r"Received: num_embeddings=\(3, 4\)"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_stages_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["groups", "scales"])
def test_adapt_keeps_the_codes_of_frozen_parts(kind):
    if kind == "groups":
        layer, x = keras_vqvae.GroupedQuantizer(vector(), 2), draw(64, DIM)
    else:
        layer, x = keras_vqvae.MultiScaleQuantizer(vector(), (1, 2)), draw(64, 2, DIM)
    layer.build((None, *x.shape[1:]))
    layer.quantizers[0].trainable = False
    before = [numpy(each.codebook).copy() for each in layer.quantizers]
    layer.adapt(x, verbose=0)
    np.testing.assert_array_equal(numpy(layer.quantizers[0].codebook), before[0])
    assert (numpy(layer.quantizers[1].codebook) != before[1]).all()


def test_codes_of_scales_with_different_stages_are_sampled():
    inputs, latents = keras.Input((2, DIM)), keras.Input((2, DIM))
    quantizer = keras_vqvae.MultiScaleQuantizer(keras_vqvae.ResidualQuantizer([vector(16), vector(4)]), (1, 2))
    encoder, decoder = (keras.Model(each, keras.layers.Dense(DIM)(each)) for each in (inputs, latents))
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    shape = model.tokenizer.output_shape[1:]
    prior = keras_vqvae.MaskedPrior((16, 4), shape, index_shape=(2,), num_layers=1, hidden_dim=8, num_heads=1)
    assert model.sample(prior, 5, verbose=0).shape == (5, 2, DIM)
