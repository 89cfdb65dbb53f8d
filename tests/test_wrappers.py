"""Tests residual, grouped and projected quantization against compositions by hand."""

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import built, numpy
from keras import ops

import keras_vqvae
from keras_vqvae.layers import wrappers
from keras_vqvae.ops import estimators


def vector(num_embeddings=8, **keywords):
    return keras_vqvae.VectorQuantizer(num_embeddings, seed=1, **keywords)


@pytest.fixture
def x(rng):
    return rng.normal(size=(30, 4)).astype("float32")


def by_hand(layer, x):
    """Computes codes, indices and squared errors of each stage in NumPy."""
    rest, codes, indices, errors = x.astype("float64"), [], [], []
    for quantizer in layer.quantizers:
        codebook = numpy(quantizer.codebook)
        indices.append(oracle.nearest_code(rest, codebook))
        codes.append(codebook[indices[-1]])
        errors.append(oracle.mean_square(rest - codes[-1]))
        rest = rest - codes[-1]
    return codes, np.stack(indices, -1), errors


@pytest.mark.parametrize("shared", [False, True])
def test_residuals_are_quantized_stage_by_stage(x, shared):
    layer = built(keras_vqvae.ResidualQuantizer(vector(), 3, shared_codebook=shared))
    codes, indices, errors = by_hand(layer, x)
    quantized, found = layer(x, training=True, return_indices=True)
    np.testing.assert_array_equal(numpy(found), indices)
    np.testing.assert_allclose(numpy(quantized), sum(codes), atol=1e-6)
    expected = [weight * error for error in errors for weight in (0.25, 1.0)]
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], expected, rtol=1e-4)
    assert len({id(quantizer) for quantizer in layer.quantizers}) == (1 if shared else 3)
    if not shared:
        assert len(np.unique(numpy(layer.quantizers[0].codebook) - numpy(layer.quantizers[1].codebook))) > 1


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_encoders_gradient_is_copied_once_at_any_depth(x, rng, depth):
    layer = built(keras_vqvae.ResidualQuantizer(vector(commitment_weight=0, codebook_weight=0), depth))
    cotangent = rng.normal(size=x.shape).astype("float32")
    by_inputs, _ = layer_gradients(layer, x, cotangent)
    np.testing.assert_array_equal(by_inputs, cotangent)


def test_the_commitment_loss_of_every_stage_reaches_the_encoder(x):
    """The residuals keep their gradient, so each stage's commitment loss pulls on the encoder."""
    layer = built(keras_vqvae.ResidualQuantizer(vector(codebook_weight=0), 3))
    codes, _, _ = by_hand(layer, x)
    by_inputs, by_weights = layer_gradients(layer, x, np.zeros_like(x))
    # No commitment loss moves the codes of earlier stages.
    for by_codebook in by_weights:
        np.testing.assert_array_equal(by_codebook, 0)
    rests = [x - sum(codes[: stage + 1]) for stage in range(3)]
    np.testing.assert_allclose(by_inputs, 0.25 * 2 / x.size * sum(rests), atol=1e-6)
    assert all(np.abs(rest).max() > 0.01 for rest in rests)


def test_indices_of_minus_1_leave_out_their_stages(x):
    layer = built(keras_vqvae.ResidualQuantizer(vector(), 3))
    codes, indices, _ = by_hand(layer, x)
    for depth in range(4):
        cut = np.where(np.arange(3) < depth, indices, -1)
        np.testing.assert_allclose(numpy(layer.decode(cut)), sum(codes[:depth]) + 0 * x, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: keras_vqvae.ResidualQuantizer(vector(), 3), (slice(2),)),
        (lambda: keras_vqvae.GroupedQuantizer(vector(), 4), (slice(1),)),
        (lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.ResidualQuantizer(vector(), 3), 3), (slice(0),)),
        (
            lambda: keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(vector(), 3), 2),
            (slice(None), slice(2)),
        ),
    ],
    ids=["residual", "groups", "projected", "groups of residuals"],
)
def test_indices_of_only_the_first_parts_decode_as_if_padded_with_minus_1(x, make, parts):
    layer = built(make())
    indices = numpy(layer.encode(x))
    few = indices[(slice(None), *parts)]
    cut = np.full_like(indices, -1)
    cut[(slice(None), *parts)] = few
    expected = numpy(layer.decode(cut))
    np.testing.assert_array_equal(numpy(layer.decode(few)), expected)
    codes = keras.Input(few.shape[1:], dtype="int32")
    np.testing.assert_array_equal(numpy(keras.Model(codes, layer.decode(codes))(few)), expected)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: vector(32),
        lambda: keras_vqvae.FiniteScalarQuantizer((5, 5, 5, 5)),
        lambda: keras_vqvae.FiniteScalarQuantizer((4, 4, 4, 4), symmetric=True),
        lambda: keras_vqvae.LookupFreeQuantizer(4),
        lambda: keras_vqvae.SimVectorQuantizer(32, seed=1),
    ],
    ids=["vector", "fsq", "symmetric fsq", "lfq", "sim"],
)
def test_the_error_falls_with_each_stage(rng, inner):
    x = rng.uniform(-1, 1, size=(500, 4)).astype("float32")
    layer = built(keras_vqvae.ResidualQuantizer(inner(), 4))
    if hasattr(layer.quantizers[0], "seed_generator") and hasattr(layer.quantizers[0], "embedding_dim"):
        layer.adapt(x, verbose=0)
    indices = numpy(layer.encode(x))
    cut = [np.where(np.arange(4) < depth, indices, -1) for depth in range(1, 5)]
    target = numpy(layer.bound(ops.convert_to_tensor(x)))
    errors = np.array([oracle.mean_square(numpy(layer.decode(codes)) - target) for codes in cut])
    assert (errors[1:] < 0.75 * errors[:-1]).all(), errors


def test_adapt_is_greedy_k_means(x):
    layer = keras_vqvae.ResidualQuantizer(vector(), 2)
    layer.adapt(x, verbose=0)
    first, _ = keras_vqvae.kmeans(x, 8, seed=1, verbose=0)
    rest = x - numpy(first)[oracle.nearest_code(x, numpy(first))]
    second, _ = keras_vqvae.kmeans(rest, 8, seed=2, verbose=0)
    np.testing.assert_allclose(numpy(layer.quantizers[1].codebook), numpy(second), atol=1e-5)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras_vqvae.ProjectedQuantizer(vector(), 3),
        lambda: keras_vqvae.GroupedQuantizer(vector(), 2),
        lambda: keras_vqvae.ResidualQuantizer(vector(), 2),
    ],
    ids=["projected", "grouped", "residual"],
)
def test_adapt_passes_the_residual_of_any_stage_to_the_next(x, inner):
    layer = keras_vqvae.ResidualQuantizer(inner(), 2)
    layer.adapt(x, verbose=0)
    second = layer.quantizers[1]
    expected = wrappers.copy(inner(), 1)
    expected.build((None, 4))
    expected.set_weights(second.get_weights())
    expected.adapt(x - numpy(layer.quantizers[0](x)), verbose=0)
    for one, other in zip(second.weights, expected.weights, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), atol=1e-5)


@pytest.mark.each_backend
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_shared_codebook_learns_once_per_step_from_all_stages(x, stages):
    """The inputs of all stages update one moving average. They use the codebook from before the step."""
    layer = built(
        keras_vqvae.ResidualQuantizer(vector(ema_decay=0.9, dead_code_threshold=0), stages, shared_codebook=True)
    )
    shared = layer.quantizers[0]
    expected = oracle.MovingAverage(numpy(shared.codebook), 0.9)
    _, indices, _ = by_hand(layer, x)
    rests = [x - sum(expected.codebook[indices[:, stage]] for stage in range(depth)) for depth in range(stages)]
    layer(x, training=True)
    expected.update(np.concatenate(rests))
    np.testing.assert_allclose(numpy(shared.codebook), expected.codebook, atol=1e-5)
    np.testing.assert_allclose(numpy(shared.ema_counts), expected.counts, rtol=1e-5)


def test_groups_are_quantized_independently(x):
    layer = built(keras_vqvae.GroupedQuantizer(vector(), 2))
    quantized, indices = layer(x, return_indices=True)
    errors = []
    for group, quantizer in enumerate(layer.quantizers):
        part = x[:, 2 * group : 2 * group + 2]
        codebook = numpy(quantizer.codebook)
        expected = oracle.nearest_code(part, codebook)
        np.testing.assert_array_equal(numpy(indices)[:, group], expected)
        np.testing.assert_array_equal(numpy(quantized)[:, 2 * group : 2 * group + 2], codebook[expected])
        errors += [weight * oracle.mean_square(part - codebook[expected]) / 2 for weight in (0.25, 1.0)]
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], errors, rtol=1e-4)
    # The seed is that of each group, or an explicit one.
    for keywords, seed in ({}, 2), ({"seed": 5}, 5):
        layer.adapt(x, verbose=0, **keywords)
        codes, _ = keras_vqvae.kmeans(x[:, 2:], 8, seed=seed, verbose=0)
        np.testing.assert_allclose(numpy(layer.quantizers[1].codebook), numpy(codes), atol=1e-5)


@pytest.mark.parametrize("trainable", [True, False])
def test_quantizers_frozen_before_wrapping_stay_frozen(trainable):
    inner = keras_vqvae.ResidualQuantizer(vector(trainable=trainable), 2)
    layer = built(keras_vqvae.GroupedQuantizer(inner, 2))
    assert len(layer.trainable_variables) == (4 if trainable else 0)


def test_a_projection_is_linear_before_and_after(x, rng):
    layer = built(keras_vqvae.ProjectedQuantizer(vector(), 2))
    layer.down_bias.assign(rng.normal(size=2))
    layer.up_bias.assign(rng.normal(size=4))
    down = x @ numpy(layer.down_kernel) + numpy(layer.down_bias)
    codebook = numpy(layer.quantizer.codebook)
    indices = oracle.nearest_code(down, codebook)
    quantized, found = layer(x, training=True, return_indices=True)
    np.testing.assert_array_equal(numpy(found), indices)
    up = codebook[indices] @ numpy(layer.up_kernel) + numpy(layer.up_bias)
    np.testing.assert_allclose(numpy(quantized), up, atol=1e-5)
    error = oracle.mean_square(down - codebook[indices])
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], [0.25 * error, error], rtol=1e-4)
    cotangent = rng.normal(size=x.shape).astype("float32")
    layer = built(keras_vqvae.ProjectedQuantizer(vector(commitment_weight=0, codebook_weight=0), 2))
    by_inputs, _ = layer_gradients(layer, x, cotangent)
    expected = cotangent @ numpy(layer.up_kernel).T @ numpy(layer.down_kernel).T
    np.testing.assert_allclose(by_inputs, expected, atol=1e-5)


@pytest.mark.each_backend
@pytest.mark.parametrize("dim", [2, 6])
def test_the_maps_of_a_projection_start_orthogonal(dim):
    layer = built(keras_vqvae.ProjectedQuantizer(vector(), dim))
    down, up = numpy(layer.down_kernel), numpy(layer.up_kernel)
    product = down.T @ down if dim < 4 else down @ down.T
    np.testing.assert_allclose(product, np.eye(min(dim, 4)), atol=1e-5)
    np.testing.assert_array_equal(up, down.T)
    layer.up_kernel.assign(ops.zeros((dim, 4)))
    np.testing.assert_array_equal(numpy(layer.down_kernel), down)


def test_grouped_residual_finite_scalars_equal_their_parts(x):
    inner = keras_vqvae.ResidualQuantizer(keras_vqvae.FiniteScalarQuantizer((5, 5)), 3)
    layer = built(keras_vqvae.GroupedQuantizer(inner, 2))
    quantized, indices = layer(x, return_indices=True)
    assert tuple(indices.shape) == (30, 2, 3)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))
    alone = built(keras_vqvae.ResidualQuantizer(keras_vqvae.FiniteScalarQuantizer((5, 5)), 3), 2)
    np.testing.assert_array_equal(numpy(alone(x[:, 2:])), numpy(quantized)[:, 2:])


def test_a_model_trains_measures_and_decodes_several_codebooks(x):
    encoder, decoder = keras_vqvae.build(4, embedding_dim=6, encoder_sizes=(8,), decoder_sizes=(8,))
    quantizer = keras_vqvae.ResidualQuantizer(vector(ema_decay=0.9), 3, quantizer_dropout=1.0, seed=1)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile("adam")
    model.adapt(x, verbose=0)
    history = model.fit(x, epochs=2, verbose=0, callbacks=[keras_vqvae.CodebookMonitor()]).history
    assert 1 <= history["perplexity"][-1] <= 8
    codes = model.encode(x, verbose=0)
    assert codes.shape == (30, 3)
    np.testing.assert_allclose(model.decode(codes, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    result = model.evaluate(x, verbose=0, return_dict=True)
    each = [oracle.perplexity(codes[:, stage], 8) for stage in range(3)]
    np.testing.assert_allclose(result["perplexity"], np.mean(each), rtol=1e-4)
    np.testing.assert_allclose(result["min_perplexity"], min(each), rtol=1e-4)
    used = [len(np.unique(codes[:, stage])) / 8 for stage in range(3)]
    np.testing.assert_allclose(result["codebook_usage"], np.mean(used), rtol=1e-4)
    np.testing.assert_allclose(result["min_codebook_usage"], min(used), rtol=1e-4)
    first = np.where(np.arange(3) < 2, codes, -1)
    np.testing.assert_array_equal(model.decode(codes[:, :2], verbose=0), model.decode(first, verbose=0))
    with pytest.raises(ValueError, match="Received: codes of shape"):
        model.decode(np.zeros((30, 4), "int32"), verbose=0)


def test_freezing_a_wrapper_freezes_its_quantizers(x):
    layer = built(keras_vqvae.ResidualQuantizer(vector(ema_decay=0.9), 2))
    layer.trainable = False
    before = [numpy(weight).copy() for weight in layer.weights]
    layer(x, training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


@pytest.mark.parametrize(
    ("make", "message"),
    {
        "levels": (lambda: keras_vqvae.ResidualQuantizer(vector(), 0), "Received: num_quantizers=0"),
        "kind": (lambda: keras_vqvae.ResidualQuantizer(keras.layers.Dense(3), 2), "must be a Quantizer.*Received"),
        "built": (lambda: keras_vqvae.GroupedQuantizer(built(vector()), 2), "not be built.*Received"),
        "groups": (lambda: built(keras_vqvae.GroupedQuantizer(vector(), 3)), "Received: num_groups=3, input_shape"),
        "no groups": (lambda: keras_vqvae.GroupedQuantizer(vector(), 0), "Received: num_groups=0"),
        "dim": (lambda: keras_vqvae.ProjectedQuantizer(vector(), 0), "Received: dim=0"),
        "shared": (
            lambda: keras_vqvae.ResidualQuantizer(vector(), 2, shared_codebook=True).adapt(np.ones((3, 4))),
            "Received: shared_codebook=True",
        ),
    }.values(),
)
def test_wrong_arguments_are_named_in_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_wrappers_of_one_template_do_not_share_weights(x):
    inner = vector()
    one, other = (built(keras_vqvae.ResidualQuantizer(inner, 2)) for _ in range(2))
    one.quantizers[0].set_codebook(np.zeros((8, 4)))
    assert np.abs(numpy(other.quantizers[0].codebook)).min() > 0
    assert not inner.built


@pytest.mark.parametrize(
    ("layer", "times"),
    [
        (lambda: keras_vqvae.IndexBackpropagationQuantizer(8, seed=1), 1),
        (lambda: keras_vqvae.ResidualQuantizer(vector(), 3), 0),
        (lambda: keras_vqvae.GroupedQuantizer(vector(), 2), 0),
        (lambda: keras_vqvae.GroupedQuantizer(vector(estimator="rotation"), 2), 2),
    ],
    ids=["ibq", "residual", "grouped", "grouped rotation"],
)
def test_each_quantizer_computes_its_output_once_or_not_at_all(x, monkeypatch, layer, times):
    """A residual of straight-through stages copies the gradient once. IBQ's output occurs in its loss, too."""
    calls = []
    for owner, name in ((estimators, "apply"), (keras_vqvae.IndexBackpropagationQuantizer, "estimate")):
        estimate = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, of=estimate: (calls.append(1), of(*args))[1])
    layer = built(layer())
    layer(x, training=True)
    assert all(np.isfinite(numpy(loss)) for loss in layer.losses)
    assert len(calls) == times


WRAPPERS = {
    "projected": lambda inner: keras_vqvae.ProjectedQuantizer(inner, 4),
    "residual": lambda inner: keras_vqvae.ResidualQuantizer(inner, 2, quantizer_dropout=1.0),
    "grouped": lambda inner: keras_vqvae.GroupedQuantizer(inner, 1, quantizer_dropout=1.0),
}
SCALES = {"scales": lambda inner: keras_vqvae.MultiScaleQuantizer(inner, (1, 3))}


@pytest.mark.parametrize("inside", WRAPPERS)
@pytest.mark.parametrize("outside", [*WRAPPERS, *SCALES])
def test_every_wrapper_wraps_every_wrapper(rng, outside, inside):
    layer = (WRAPPERS | SCALES)[outside](WRAPPERS[inside](keras_vqvae.FiniteScalarQuantizer((5, 4, 3, 2))))
    x = rng.normal(size=(8, 3, 4)).astype("float32")
    layer(x, training=True)
    quantized, indices = layer(x, return_indices=True)
    np.testing.assert_array_equal(numpy(layer.decode(indices)), numpy(quantized))
    np.testing.assert_array_equal(numpy(layer.encode(x)), numpy(indices))


def test_indices_of_a_single_vector_are_decoded_without_a_batch_axis():
    layer = built(keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(8, seed=1), 2), 4)
    codes = [numpy(quantizer.codebook) for quantizer in layer.quantizers]
    np.testing.assert_allclose(numpy(layer.decode([3, 5])), codes[0][3] + codes[1][5], rtol=1e-6)
    np.testing.assert_array_equal(numpy(layer.quantizers[0].decode(3)), codes[0][3])
