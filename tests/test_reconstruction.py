"""Tests the default loss, which does not depend on the scale of the data, and logs that show what went wrong."""

import keras
import numpy as np
import oracle
import pytest
from helpers import compiled, draw, numpy
from keras import layers, ops
from quantizers import QUANTIZERS, SHAPE

import keras_vqvae
from keras_vqvae.models import moments
from keras_vqvae.models.reconstruction import WEIGHT
from keras_vqvae.models.step import QUANTIZER_LOSSES


def make(quantizer=None, size=8, dim=3):
    encoder, decoder = keras_vqvae.build(size, embedding_dim=dim, encoder_sizes=(6,), decoder_sizes=(6,))
    return keras_vqvae.VQVAE(encoder, quantizer or keras_vqvae.VectorQuantizer(16, seed=1), decoder)


def targets_of(model):
    """Returns the moments of the first output's targets so far."""
    return [numpy(value) for value in model._parts.reconstruction.targets.values()[0]]


@pytest.mark.parametrize("offset", [0.0, pytest.param(1e3, marks=pytest.mark.each_backend)])
def test_the_variance_is_that_of_all_batches_so_far(offset):
    x = draw(40, 8) * np.arange(1, 9, dtype="float32") + np.float32(offset)
    model = compiled(make(), keras.optimizers.SGD(1e-3))
    model.fit(x, batch_size=16, epochs=2, shuffle=False, verbose=0)
    # One more epoch on part of the data.
    model.fit(x[:8], batch_size=8, verbose=0)
    seen = np.concatenate([x, x, x[:8]]).astype("float64")
    count, mean, variance = targets_of(model)
    assert count == 88
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, seen.var(0).mean(), rtol=1e-4)
    model.evaluate(-x, batch_size=8, verbose=0)
    model.predict(-x, batch_size=8, verbose=0)
    np.testing.assert_array_equal(targets_of(model)[2], variance)


@pytest.mark.each_backend
def test_the_default_loss_does_not_depend_on_the_scale_of_the_data():
    model = compiled(make(), keras.optimizers.SGD(0.0), traced=False)
    y, error = draw(20, 8), draw(20, 8, seed=1)
    found = []
    for scale in (1e-3, 1.0, 1e3):
        target = ops.convert_to_tensor(np.float32(scale) * y)
        y_pred = ops.convert_to_tensor(np.float32(scale) * (y + error))
        # Compiling again resets the variance.
        model.compile(keras.optimizers.SGD(0.0))
        found.append(float(model.compute_loss(target, None, y_pred)))
    expected = WEIGHT * 8 / 3 * np.square(error).mean() / y.var(0).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_explicit_loss_is_not_rescaled():
    x = 100 * draw(20, 8)
    model = compiled(make(), "sgd", "mse", traced=False)
    error = oracle.mean_square(model.predict(x, verbose=0) - x)
    logs = model.evaluate(x, batch_size=20, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], error + logs["quantizer_loss"], rtol=1e-5)
    np.testing.assert_allclose(logs["explained_variance"], 1 - error / x.var(0).mean(), rtol=1e-4)
    other = compiled(make(), "sgd", "mae", traced=False)
    other.set_weights(model.get_weights())
    logs = other.evaluate(x, batch_size=20, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reconstruction_loss"], np.abs(model.predict(x, verbose=0) - x).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["explained_variance"], 1 - error / x.var(0).mean(), rtol=1e-4)


@pytest.mark.parametrize("first", ["silent", "constant"])
def test_silent_and_constant_batches_do_no_harm(first):
    model = compiled(make(), "sgd", traced=False)
    constant = np.full((10, 8), 0.0 if first == "silent" else 1.5, "float32")
    error = oracle.mean_square(model.predict(constant, verbose=0) - constant)
    logs = model.train_on_batch(constant, return_dict=True)
    # The error is divided by the mean square of a nonzero constant.
    weight = WEIGHT * 8 / 3 / max(np.square(constant).mean(), 1e-6) if first == "constant" else WEIGHT * 8 / 3
    # A new model explains no variance, so the commitment loss is left out. Silence has no variance to explain.
    added = logs["codebook_loss" if first == "constant" else "quantizer_loss"]
    np.testing.assert_allclose(logs["loss"], weight * error + added, rtol=1e-4)
    assert logs["explained_variance"] == 0
    # From the next batch on, the error is divided by the variance of both batches.
    x = draw(10, 8)
    error = oracle.mean_square(model.predict(x, verbose=0) - x)
    logs = model.train_on_batch(x, return_dict=True)
    variance = np.concatenate([constant, x]).var(0).mean()
    expected = WEIGHT * 8 / 3 * error / variance + logs["codebook_loss"]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-3)
    np.testing.assert_allclose(targets_of(model)[2], variance, rtol=1e-4)


@pytest.mark.each_backend
def test_a_nonfinite_batch_shows_in_the_logs_but_not_in_the_variance():
    model = compiled(make(), keras.optimizers.SGD(0.0))
    x = draw(20, 8)
    model.train_on_batch(x)
    before = targets_of(model)
    for bad in (np.nan, np.inf, 1e25):
        wrong = x.copy()
        wrong[3, 2] = bad
        assert not np.isfinite(model.train_on_batch(wrong, return_dict=True)["explained_variance"])
        for value, expected in zip(targets_of(model), before, strict=True):
            np.testing.assert_array_equal(value, expected)
        model.reset_metrics()


@pytest.mark.each_backend
def test_large_quantizer_losses_do_not_hide_the_error():
    x = np.float32(1e5) * draw(20, 8)
    for loss in ("normalized_mse", "mse"):
        model = compiled(make(), "sgd", loss, traced=False)
        error = oracle.mean_square(model.predict(x, verbose=0) - x)
        logs = model.evaluate(x, verbose=0, return_dict=True)
        np.testing.assert_allclose(logs["reconstruction_loss"], error, rtol=1e-4)
        np.testing.assert_allclose(logs["explained_variance"], 1 - error / x.var(0).mean(), rtol=1e-3, atol=1e-3)


@pytest.mark.each_backend(slow=True)
def test_an_encoder_without_an_input_shape_accepts_batches_of_any_size():
    encoder = keras.Sequential([layers.Dense(6), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), keras.Sequential([layers.Dense(8)]))
    model.compile("sgd")
    x = draw(50, 8)
    model.fit(x, verbose=0, validation_data=(x[:7],))
    assert model.tokenizer.input_shape == (None, 8)
    assert targets_of(model)[0] == 50
    error = oracle.mean_square(model.predict(x[:9], verbose=0) - x[:9])
    found = model.evaluate(x[:9], verbose=0, return_dict=True)
    np.testing.assert_allclose(found["explained_variance"], 1 - error / x[:9].var(0).mean(), rtol=1e-3)


def test_sample_weights_do_not_scale_the_explained_variance():
    model = compiled(make(), "sgd", traced=False)
    x = draw(20, 8)
    one, ten = (
        model.evaluate(x, sample_weight=np.full(20, weight), verbose=0, return_dict=True) for weight in (1.0, 10.0)
    )
    np.testing.assert_allclose(ten["explained_variance"], one["explained_variance"], rtol=1e-5)
    np.testing.assert_allclose(ten["reconstruction_loss"], 10 * one["reconstruction_loss"], rtol=1e-5)


def test_batches_of_a_custom_training_loop_are_counted():
    model = compiled(make(), "sgd", traced=False)
    x = ops.convert_to_tensor(draw(20, 8))
    for _ in range(2):
        model.compute_loss(x, None, model(x, training=True))
    model.compute_loss(x, None, model(x), training=False)
    assert targets_of(model)[0] == 40


def test_moments_are_right_for_empty_batches_and_single_samples():
    x = draw(5, 4)
    shape = (None, 4)
    found = moments.moments_of(ops.convert_to_tensor(x[:0]), shape)
    for sample in x:
        found = moments.merged(found, moments.moments_of(ops.convert_to_tensor(sample[None]), shape))
    found = moments.merged(found, moments.moments_of(ops.convert_to_tensor(x[:0]), shape))
    for value, expected in zip(found, (5, x.mean(0), x.var(0).mean()), strict=True):
        np.testing.assert_allclose(numpy(value), expected, rtol=1e-5)


def test_the_variance_of_equal_targets_is_exactly_0():
    found = moments.moments_of(ops.full((50, 4), 0.1), (None, 4))
    assert float(found.variance) == 0


def test_the_loss_weight_is_right_for_sounds_of_any_length():
    """The weight uses the number of latent elements of the current batch."""
    encoder = keras.Sequential([keras.Input((None, 1)), layers.Conv1D(3, 4, strides=4)])
    decoder = keras.Sequential([keras.Input((None, 3)), layers.Conv1DTranspose(1, 4, strides=4)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), decoder)
    model.compile("sgd")
    for length in (8, 40):
        x = draw(5, length, 1)
        error = oracle.mean_square(model.predict(x, verbose=0) - x)
        logs = model.evaluate(x, verbose=0, return_dict=True)
        expected = WEIGHT * 4 / 3 * error / x.var() + logs["quantizer_loss"]
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    model.fit(draw(5, 8, 1), verbose=0)
    count, mean, _ = targets_of(model)
    assert (count, mean.shape) == (40, (1,))


def test_several_outputs_share_one_scale():
    inputs = keras.Input((3,))
    decoder = keras.Model(inputs, {"a": layers.Dense(8)(inputs), "b": layers.Dense(2)(inputs)})
    encoder = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), decoder)
    model.compile("sgd")
    x, b = draw(20, 8), 5 * draw(20, 2, seed=1)
    y_pred = model.predict(x, verbose=0)
    errors = oracle.mean_square(y_pred["a"] - x) + oracle.mean_square(y_pred["b"] - b)
    variance = x.var(0).mean() + b.var(0).mean()
    logs = model.evaluate(x, {"a": x, "b": b}, batch_size=20, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reconstruction_loss"], errors, rtol=1e-4)
    np.testing.assert_allclose(logs["explained_variance"], 1 - errors / variance, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logs["loss"], WEIGHT * 10 / 3 * errors / variance + logs["quantizer_loss"], rtol=1e-4)


@pytest.mark.each_backend(slow=True)
def test_a_model_is_saved_with_the_default_loss_and_the_variance(tmp_path):
    x = 50 * draw(40, 8)
    model = compiled(make(), keras.optimizers.Adam(0.01))
    model.fit(x, batch_size=20, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(targets_of(model), targets_of(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    x = x[:20]
    for _ in range(2):
        one, other = (each.train_on_batch(x, return_dict=True) for each in (model, loaded))
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-6)


class Other(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        return self.autoencode(inputs, training=training)[1]


def test_outputs_other_than_the_decoders_need_an_explicit_loss():
    encoder, decoder = keras_vqvae.build(8, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
    model = Other(encoder, keras_vqvae.VectorQuantizer(16), decoder)
    model.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")
    with pytest.raises(ValueError, match="`loss` must be passed to `compile`.*Received: loss='normalized_mse'"):
        model.fit(draw(20, 8), draw(20, 3), verbose=0)


def test_masks_reach_the_loss():
    encoder = keras.Sequential([keras.Input((5, 4)), layers.Masking(), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), layers.Dense(4))
    model.compile("sgd")
    x = draw(6, 5, 4)
    x[:, 3:] = 0
    y_pred = model.predict(x, verbose=0)
    logs = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["reconstruction_loss"], oracle.mean_square(y_pred[:, :3] - x[:, :3]), rtol=1e-4)


def test_losses_of_a_quantizer_are_logged_by_name():
    """The losses are summed over stages and averaged over groups, in training and in evaluation."""
    x = draw(24, 8)
    model = compiled(make(keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(16, seed=1), 3), dim=4), "sgd")
    residual = numpy(model.encoder(x))
    indices = model.encode(x, verbose=0)
    errors = []
    for stage, quantizer in enumerate(model.quantizer.quantizers):
        residual = residual - numpy(quantizer.codebook)[indices[:, stage]]
        errors.append(np.square(residual).mean())
    trained = model.fit(x, batch_size=24, verbose=0, validation_data=(x,)).history
    after = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)
    for name, weight in {"commitment_loss": 0.25, "codebook_loss": 1.0, "quantizer_loss": 1.25}.items():
        np.testing.assert_allclose(trained[name], weight * sum(errors), rtol=1e-4)
        np.testing.assert_allclose(trained[f"val_{name}"], after[name], rtol=1e-4)
    assert "entropy_loss" not in trained
    grouped = make(keras_vqvae.GroupedQuantizer(keras_vqvae.VectorQuantizer(16, seed=1), 2), dim=4)
    grouped.compile("sgd")
    logs = grouped.evaluate(x, verbose=0, return_dict=True)
    z = numpy(grouped.encoder(x))
    codes = numpy(grouped.quantizer.decode(grouped.encode(x, verbose=0)))
    np.testing.assert_allclose(logs["commitment_loss"], 0.25 * np.square(z - codes).mean(), rtol=1e-4)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_logged_parts_of_the_quantizer_loss_add_up(name):
    encoder, decoder = layers.Dense(SHAPE[-1]), layers.Dense(5)
    model = keras_vqvae.VQVAE(encoder, QUANTIZERS[name](), decoder)
    model.compile("sgd")
    logs = model.evaluate(draw(6, SHAPE[0], 5), verbose=0, return_dict=True)
    parts = [value for key, value in logs.items() if key in QUANTIZER_LOSSES[1:]]
    np.testing.assert_allclose(sum(parts), logs["quantizer_loss"], rtol=1e-5, atol=1e-7)


def test_an_entropy_loss_is_logged():
    model = make(keras_vqvae.LookupFreeQuantizer(3))
    model.compile("sgd")
    logs = model.evaluate(draw(24, 8), verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["commitment_loss"] + logs["entropy_loss"], logs["quantizer_loss"], rtol=1e-5)
    assert "codebook_loss" not in logs


class TwoPasses(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        self.autoencode(-inputs, training=training)
        return self.autoencode(inputs, training=training)[0]


def test_losses_of_several_passes_add_up():
    model = make()
    model.compile("sgd")
    twice = TwoPasses(model.encoder, model.quantizer, model.decoder)
    twice.compile("sgd")
    x = draw(24, 8)
    logs = twice.evaluate(x, batch_size=24, verbose=0, return_dict=True)
    parts = [model.evaluate(each, batch_size=24, verbose=0, return_dict=True) for each in (x, -x)]
    for name in ("quantizer_loss", "commitment_loss", "codebook_loss"):
        np.testing.assert_allclose(logs[name], sum(part[name] for part in parts), rtol=1e-5)


# Failures, and the default logs that show them.


def test_ignored_codes_explain_no_variance():
    """A decoder that ignores the codes outputs the mean of the data, which is far from 0, so the error is small."""
    x = draw(64, 8) * np.float32(0.1) + np.float32(1)
    model = make()
    model.compile("sgd")
    model.adapt(x, verbose=0)
    last = [layer for layer in model.decoder.layers if layer.weights][-1]
    last.set_weights([np.zeros_like(last.get_weights()[0]), x.mean(0)])
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["reconstruction_loss"] < 0.02
    assert logs["perplexity"] > 1
    assert abs(logs["explained_variance"]) < 1e-3


def test_a_collapsed_codebook_has_no_bits():
    x = draw(64, 8)
    model = make(keras_vqvae.VectorQuantizer(16, embeddings_initializer="zeros"))
    model.compile("sgd")
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert (logs["codebook_usage"], logs["bits_per_index"], logs["bits_per_sample"]) == (1 / 16, 0, 0)
    assert logs["explained_variance"] < 1e-3


def test_a_collapsed_stage_is_the_worst_codebook():
    model = make(keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(16, seed=1), 3))
    model.compile("sgd")
    x = draw(256, 8)
    model.adapt(x, verbose=0)
    healthy = model.evaluate(x, verbose=0, return_dict=True)
    model.quantizer.quantizers[1].set_codebook(np.zeros((16, 3)))
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert healthy["min_codebook_usage"] > 0.9
    assert logs["min_codebook_usage"] == 1 / 16
    assert logs["min_perplexity"] == 1
    codes = model.encode(x, verbose=0)
    bits = [np.log2(oracle.perplexity(codes[:, stage], 16)) for stage in range(3)]
    np.testing.assert_allclose(logs["bits_per_sample"], sum(bits), rtol=1e-4)
    np.testing.assert_allclose(logs["bits_per_index"], np.mean(bits), rtol=1e-4)


def test_bits_of_grids_and_scales_count_all_indices():
    x = draw(16, 4, 4)
    for quantizer in (
        keras_vqvae.VectorQuantizer(8, seed=1),
        keras_vqvae.MultiScaleQuantizer(keras_vqvae.VectorQuantizer(8, seed=1), (1, 4)),
    ):
        encoder = keras.Sequential([keras.Input((4, 4)), layers.Dense(3)])
        model = keras_vqvae.VQVAE(encoder, quantizer, keras.Sequential([keras.Input((4, 3)), layers.Dense(4)]))
        model.compile("sgd")
        codes = model.encode(x, verbose=0)
        books = [codes] if codes.shape[1] == 4 else [codes[:, :1], codes[:, 1:]]
        expected = sum(book.shape[1] * np.log2(oracle.perplexity(book, 8)) for book in books)
        logs = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)
        np.testing.assert_allclose(logs["bits_per_sample"], expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_training_between_normalizations_does_not_depend_on_the_scale(scale):
    def explained(factor):
        keras.utils.set_random_seed(0)
        x = factor * (draw(64, 3) @ draw(3, 16, seed=1) + 2)
        scale = {"axis": None, "mean": float(x.mean()), "variance": float(x.var())}
        normalization, inverse = layers.Normalization(**scale), layers.Normalization(**scale, invert=True)
        encoder, decoder = keras_vqvae.build(16, embedding_dim=3, encoder_sizes=(16,), decoder_sizes=(16,))
        inputs, latents = keras.Input((16,)), keras.Input((3,))
        model = keras_vqvae.VQVAE(
            keras.Model(inputs, encoder(normalization(inputs))),
            keras_vqvae.VectorQuantizer(32, seed=1),
            keras.Model(latents, inverse(decoder(latents))),
        )
        compiled(model, keras.optimizers.Adam(0.01), traced=False)
        model.fit(x, batch_size=32, epochs=20, verbose=0, shuffle=False)
        return model.evaluate(x, verbose=0, return_dict=True)["explained_variance"]

    np.testing.assert_allclose(explained(np.float32(scale)), explained(np.float32(1)), atol=0.02)
