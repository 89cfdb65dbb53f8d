"""Tests the base class of quantizers with a codebook, using `VectorQuantizer`."""

import shutil

import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from helpers import compiled, numpy
from keras import layers, ops

import keras_vqvae


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 4)).astype("float32")


def build(num_embeddings=6, dim=4, **keywords):
    layer = keras_vqvae.VectorQuantizer(num_embeddings, seed=3, **keywords)
    layer.build((None, dim))
    return layer, numpy(layer.codebook).copy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_cosine_equals_the_euclidean_layer_on_unit_vectors(x):
    layer, codebook = build(distance="cosine")
    np.testing.assert_allclose(np.linalg.norm(codebook, axis=-1), 1, rtol=1e-5)
    quantized, indices = layer(7 * x, training=True, return_indices=True)
    expected = (unit(x) @ codebook.T).argmax(-1)
    np.testing.assert_array_equal(numpy(indices), expected)
    np.testing.assert_array_equal(numpy(quantized), codebook[expected])
    error = oracle.mean_square(unit(x) - codebook[expected])
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], [0.25 * error, error], rtol=1e-5)


def test_cosine_gradients_pass_through_the_normalization(x, rng):
    layer, codebook = build(distance="cosine")
    cotangent = rng.normal(size=x.shape).astype("float32")
    by_inputs, (by_codebook,) = layer_gradients(layer, x, cotangent)
    z = unit(x)
    indices = oracle.nearest_code(z, codebook)
    pull = 2 / x.size * (z - codebook[indices])
    by_unit = cotangent + 0.25 * pull
    # The gradient through `x / |x|`: the component along the vector vanishes.
    expected = (by_unit - z * np.sum(by_unit * z, -1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(by_inputs, expected, atol=1e-5)
    np.testing.assert_allclose(by_codebook, -oracle.one_hot(indices, 6).T @ pull, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_cosine_codes_keep_norm_1_in_training(x, ema_decay):
    layer, before = build(distance="cosine", ema_decay=ema_decay)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layer])
    compiled(model, keras.optimizers.Adam(0.1), "mse")
    model.fit(x, x, batch_size=16, verbose=0)
    after = numpy(layer.codebook)
    assert (after != before).any()
    np.testing.assert_allclose(np.linalg.norm(after, axis=-1), 1, rtol=1e-5)


@pytest.mark.each_backend
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_constraint_holds_with_and_without_ema_decay(x, ema_decay):
    layer, _ = build(ema_decay=ema_decay, embeddings_constraint=keras.constraints.MaxNorm(0.5, axis=-1))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layer])
    compiled(model, keras.optimizers.Adam(0.1), "mse")
    model.fit(x, x, batch_size=16, verbose=0)
    assert np.linalg.norm(numpy(layer.codebook), axis=-1).max() < 0.5001
    layer.adapt(5 * x, verbose=0)
    np.testing.assert_allclose(np.linalg.norm(numpy(layer.codebook), axis=-1), 0.5, rtol=1e-4)


def test_set_codebook_constrains_only_the_codes_that_change():
    layer, codebook = build(distance="cosine", ema_decay=0.9)
    before = 2 * codebook  # The constraint would change these values.
    layer.embeddings.assign(before)
    values = before.copy()
    values[1, 0] += 0.5
    layer.set_codebook(values)
    expected = before.copy()
    expected[1] = unit(values[1])
    np.testing.assert_array_equal(np.delete(numpy(layer.codebook), 1, 0), np.delete(expected, 1, 0))
    np.testing.assert_allclose(numpy(layer.codebook)[1], expected[1], rtol=1e-6)


def test_a_regularizer_adds_its_loss():
    layer, codebook = build(embeddings_regularizer="l2")
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], [0.01 * np.square(codebook).sum()], rtol=1e-5)


def test_contradictory_regularizers_and_constraints_are_errors():
    with pytest.raises(ValueError, match="embeddings_regularizer.*Received"):
        keras_vqvae.VectorQuantizer(ema_decay=0.9, embeddings_regularizer="l2")
    with pytest.raises(ValueError, match="embeddings_constraint.*Received"):
        keras_vqvae.VectorQuantizer(distance="cosine", embeddings_constraint="max_norm")


@pytest.mark.parametrize(
    "kind",
    [keras_vqvae.VectorQuantizer, keras_vqvae.GumbelQuantizer, keras_vqvae.IndexBackpropagationQuantizer],
)
@pytest.mark.parametrize(
    "wrong", [keras_vqvae.AssignmentEntropy(), lambda vectors, codebook, valid: 0.0], ids=["entropy", "function"]
)
def test_an_assignment_regularizer_passed_as_embeddings_regularizer_is_refused(kind, wrong):
    with pytest.raises(ValueError, match="is an `assignment_regularizer`.*Received: embeddings_regularizer="):
        kind(8, embeddings_regularizer=wrong)


@pytest.mark.parametrize("estimator", ["rotation", "diveq", "nsvq"])
def test_estimators_act_in_training_and_inference_returns_the_codes(x, estimator):
    layer, codebook = build(estimator=estimator)
    codes = codebook[oracle.nearest_code(x, codebook)]
    np.testing.assert_array_equal(numpy(layer(x)), codes)
    trained, again = numpy(layer(x, training=True)), numpy(layer(x, training=True))
    if estimator == "rotation":
        np.testing.assert_array_equal(trained, codes)
        by_inputs, _ = layer_gradients(layer, x, np.ones_like(x))
        assert np.abs(by_inputs - 1).max() > 0.1
    else:
        # The noise is drawn again at every step. Its norm is the distance to the code.
        assert (trained != again).all(-1).all()
        distance = np.linalg.norm(x - codes, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(trained - x, axis=-1), distance, rtol=1e-4)


@pytest.mark.each_backend
def test_diveq_trains_the_codebook_without_codebook_loss(x):
    layer, before = build(estimator="diveq", codebook_weight=0, commitment_weight=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    compiled(model, keras.optimizers.Adam(0.01), "mse")
    losses = model.fit(x, x, batch_size=64, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert (numpy(layer.codebook) != before).any()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_adapt_sets_the_codebook_with_k_means(x, ema_decay, distance):
    layer = keras_vqvae.VectorQuantizer(6, ema_decay=ema_decay, distance=distance, seed=3)
    layer.adapt(x.reshape(8, 8, 4), verbose=0)
    codes, counts = keras_vqvae.kmeans(x, 6, distance=distance, seed=3, verbose=0)
    np.testing.assert_allclose(numpy(layer.codebook), numpy(codes), rtol=1e-5)
    if ema_decay is not None:
        np.testing.assert_allclose(numpy(layer.ema_counts), counts * 6 / 64, rtol=1e-5)
        # Training continues from these codes.
        before = numpy(layer.codebook).copy()
        layer(x, training=True)
        assert np.abs(numpy(layer.codebook) - before).max() < 0.2


@pytest.mark.each_backend
def test_a_model_adapts_to_its_encoders_outputs(x):
    encoder, decoder = keras_vqvae.build(4, embedding_dim=3)
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(6, seed=3), decoder)
    model.adapt(x, batch_size=16, verbose=0, epochs=4)
    codes, _ = keras_vqvae.kmeans(encoder(x), 6, epochs=4, seed=3, verbose=0)
    np.testing.assert_allclose(numpy(model.quantizer.codebook), numpy(codes), atol=1e-5)


def test_a_model_adapts_only_to_unmasked_vectors(rng):
    x = rng.normal(size=(8, 5, 3)).astype("float32")
    x[:, 3:] = 0
    encoder = keras.Sequential([keras.Input((5, 3)), layers.Masking(0.0), layers.Dense(2, bias_initializer="ones")])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(4, seed=3), layers.Dense(3))
    model.adapt(x, verbose=0)
    codes, _ = keras_vqvae.kmeans(encoder(x)[:, :3], 4, seed=3, verbose=0)
    np.testing.assert_allclose(numpy(model.quantizer.codebook), numpy(codes), atol=1e-5)
    model.adapt(x, verbose=0, seed=7)
    codes, _ = keras_vqvae.kmeans(encoder(x)[:, :3], 4, seed=7, verbose=0)
    np.testing.assert_allclose(numpy(model.quantizer.codebook), numpy(codes), atol=1e-5)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_pruning_keeps_only_used_codes(x, ema_decay):
    layer, _ = build(64, ema_decay=ema_decay, dead_code_threshold=0)
    layer(x, training=True)
    small, new_indices = layer.prune_unused()
    counts = numpy(layer.code_counts)
    used = np.flatnonzero(counts)
    assert small.num_embeddings == len(used) < 64
    np.testing.assert_array_equal(numpy(small.codebook), numpy(layer.codebook)[used])
    np.testing.assert_array_equal(numpy(small.code_counts), counts[used])
    np.testing.assert_array_equal(np.flatnonzero(new_indices >= 0), used)
    old = numpy(layer.encode(x))
    seen = new_indices[old] >= 0
    np.testing.assert_array_equal(numpy(small.encode(x))[seen], new_indices[old][seen])
    for old_weight, new_weight in zip(layer.weights, small.weights, strict=True):
        old_weight = numpy(old_weight)
        np.testing.assert_array_equal(numpy(new_weight), old_weight[used] if old_weight.ndim else old_weight)


def test_pruning_needs_counts():
    with pytest.raises(ValueError, match="`code_counts` is all zeros"):
        build()[0].prune_unused()


def test_resizing_keeps_the_most_used_codes_or_adds_more(x):
    layer, codebook = build(16, dead_code_threshold=0)
    layer(x, training=True)
    counts = numpy(layer.code_counts)
    small, new_indices = layer.resize(5)
    kept = np.flatnonzero(new_indices >= 0)
    assert counts[kept].min() >= np.delete(counts, kept).max()
    np.testing.assert_array_equal(new_indices[kept], np.arange(5))
    np.testing.assert_array_equal(numpy(small.codebook), codebook[kept])
    large, new_indices = layer.resize(24)
    np.testing.assert_array_equal(new_indices, np.arange(16))
    np.testing.assert_array_equal(numpy(large.codebook)[:16], codebook)
    assert (np.linalg.norm(numpy(large.codebook)[16:], axis=-1) > 0.1).all()
    with pytest.raises(ValueError, match="Received: num_embeddings=0"):
        layer.resize(0)


@pytest.mark.parametrize("kind", [keras_vqvae.SimVectorQuantizer, keras_vqvae.GumbelQuantizer])
def test_resizing_keeps_weights_that_do_not_depend_on_the_number_of_codes(x, kind):
    layer = kind(16, seed=2)
    layer(x, training=True)
    for weight in layer.trainable_weights:
        weight.assign(ops.convert_to_tensor(weight) + 0.5)
    small, new_indices = layer.resize(3)
    kept = np.flatnonzero(new_indices >= 0)
    np.testing.assert_allclose(numpy(small.decode([0, 1, 2])), numpy(layer.decode(kept)), rtol=1e-5)
    for name in ("temperature", "projection"):
        if hasattr(layer, name):
            np.testing.assert_array_equal(numpy(getattr(small, name)), numpy(getattr(layer, name)))


@pytest.mark.parametrize(
    "keywords",
    [
        {"ema_decay": 0.9},
        pytest.param({"ema_decay": 0.9, "estimator": "nsvq"}, marks=pytest.mark.each_backend(slow=True)),
        {"estimator": "straight_through"},
    ],
)
def test_training_resumed_from_a_checkpoint_equals_an_uninterrupted_run(x, tmp_path, keywords):
    """The checkpoint includes statistics and random state, which Keras's own files leave out."""

    def train(folder, seed, *callbacks):
        keras.utils.set_random_seed(seed)
        encoder, decoder = keras_vqvae.build(4, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
        model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(64, **keywords), decoder)
        model.build(x.shape)
        compiled(model, "adam")
        callbacks = [keras.callbacks.BackupAndRestore(folder), *callbacks]
        model.fit(x, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    def copy(epoch, logs=None):
        """Copies the checkpoint, as if the run were killed here."""
        if epoch == 2:
            shutil.copytree(tmp_path / "unbroken", tmp_path / "killed")

    unbroken = train(tmp_path / "unbroken", 5, keras.callbacks.LambdaCallback(on_epoch_begin=copy))
    resumed = train(tmp_path / "killed", 6)
    for one, other in zip(resumed.variables, unbroken.variables, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other), err_msg=one.path)


def test_the_error_of_a_failing_initializer_names_its_weight():
    def failing(shape, dtype):
        raise ValueError("no values")

    layer = keras_vqvae.VectorQuantizer(6, embeddings_initializer=failing, name="codes")
    with pytest.raises(ValueError, match="The weight `codebook` of `codes` could not be created: no values"):
        layer.build((None, 4))
