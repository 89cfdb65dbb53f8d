"""Tests the scale by which a `VQVAE` divides its data, and that training does not depend on it."""

import keras
import numpy as np
import pytest
from helpers import Batches, compiled, draw, numpy
from keras import layers

import keras_vqvae
from keras_vqvae.models.scaling import scale_of as scale_of_data
from keras_vqvae.models.scaling import settle_scale

SIZES = {"encoder_sizes": (6,), "decoder_sizes": (6,)}


def make(encoder=None, decoder=None, kind=keras_vqvae.VQVAE, **keywords):
    keras.utils.set_random_seed(0)
    networks = keras_vqvae.build(8, embedding_dim=3, **SIZES)
    quantizer = keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=1)
    return kind(encoder or networks[0], quantizer, decoder or networks[1], **keywords)


def scale_of(model):
    return float(numpy(model.data_scale.scale))


@pytest.mark.each_backend(slow=True)
def test_training_does_not_depend_on_the_scale_of_the_data():
    """Scaling by a power of two is exact in floating point, so all results must be equal to the last bit."""
    x, found = draw(24, 8), []
    for scale in (2.0**-10, 2.0**10):
        model = compiled(make(), keras.optimizers.Adam(0.01))
        model.adapt(scale * x, verbose=0, seed=2)
        logs = model.fit(scale * x, batch_size=12, epochs=2, shuffle=False, verbose=0).history
        assert 0.05 < scale / scale_of(model) < 0.2
        outputs = model.predict(scale * x, verbose=0) / scale
        found.append((outputs, logs["loss"], logs["explained_variance"], model.encode(scale * x, verbose=0)))
    for small, large in zip(*found, strict=True):
        np.testing.assert_array_equal(small, large)
    assert logs["explained_variance"][-1] > logs["explained_variance"][0]


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.03, 30, 1e3, 1e6])
def test_the_scale_is_a_power_of_two_that_brings_data_near_a_tenth(scale):
    x = scale * draw(24, 8)
    model = compiled(make(), "sgd", traced=False)
    model.fit(x, verbose=0)
    size = np.sqrt(np.square(x).mean()) / scale_of(model)
    assert 0.1 / np.sqrt(2) <= size <= 0.1 * np.sqrt(2)
    assert np.log2(scale_of(model)) == round(np.log2(scale_of(model)))
    assert numpy(model.data_scale.settled) == 1


@pytest.mark.parametrize(
    "x",
    [draw(24, 8), 1 / (1 + np.exp(-draw(24, 8))), np.tanh(draw(24, 8)), 0.08 * draw(24, 8)],
    ids=["normal", "sigmoid", "tanh", "small"],
)
def test_data_of_usual_scales_are_not_divided(x):
    model = compiled(make(), "sgd", traced=False)
    model.fit(x, verbose=0)
    assert scale_of(model) == 1
    np.testing.assert_array_equal(numpy(model(x)), numpy(model.decoder(model.quantizer(model.encoder(x)))))


def test_every_method_of_the_model_uses_the_scale(tmp_path):
    sizes = {"embedding_dim": 3, "filters": (4,), "num_residual_blocks": 0, "causal": True}
    networks = [build((None, 2), **sizes) for build in (keras_vqvae.build_conv_encoder, keras_vqvae.build_conv_decoder)]
    model = compiled(make(*networks), "sgd")
    x = 1e3 * draw(4, 12, 2)
    model.fit(x, verbose=0)
    scale = scale_of(model)
    assert scale > 1e3
    outputs, codes = model.predict(x, verbose=0), model.encode(x, verbose=0)
    np.testing.assert_allclose(
        outputs, scale * numpy(model.decoder(model.quantizer(model.encoder(x / scale)))), rtol=1e-4
    )
    np.testing.assert_array_equal(codes, numpy(model.quantizer.encode(model.encoder(x / scale))))
    np.testing.assert_allclose(model.decode(codes, verbose=0), outputs, rtol=1e-5)
    streamed = list(model.encode_stream([x[:, :5], x[:, 5:]]))
    np.testing.assert_array_equal(np.concatenate(streamed, 1), codes)
    np.testing.assert_allclose(np.concatenate(list(model.decode_stream(streamed)), 1), outputs, rtol=1e-4)
    model.save(tmp_path / "model.keras")
    model.tokenizer.save(tmp_path / "tokenizer.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), outputs, rtol=1e-5)
    tokenizer = keras.saving.load_model(tmp_path / "tokenizer.keras")
    np.testing.assert_array_equal(tokenizer.predict(x, verbose=0), codes)
    # A trained model keeps its scale if it is trained on other data.
    for trained in (model, loaded):
        compiled(trained, "sgd").fit(1e-3 * x, verbose=0)
        assert scale_of(trained) == scale


def test_the_scale_follows_the_encoder_into_another_model():
    x = 1e3 * draw(24, 8)
    model = compiled(make(), "sgd", traced=False)
    model.fit(x, verbose=0)
    smaller, _ = model.quantizer.resize(8)
    other = keras_vqvae.VQVAE(model.encoder, smaller, model.decoder)
    assert scale_of(other) == scale_of(model) > 1
    np.testing.assert_array_equal(other.encode(x, verbose=0), numpy(smaller.encode(model.encoder(x / scale_of(model)))))


def sparse(*shape):
    return (np.random.default_rng(0).random(shape) < 0.0005).astype("float32")


def network(*parts, size=8):
    return keras.Sequential([keras.Input((size,)), *parts])


NETWORKS = {
    "rescaling": lambda: (network(layers.Rescaling(1 / 255), layers.Dense(3)), network(layers.Dense(8), size=3)),
    "rescaled outputs": lambda: (None, network(layers.Dense(8), layers.Rescaling(255), size=3)),
    "normalization": lambda: (network(layers.Normalization(mean=0, variance=1e4), layers.Dense(3)), None),
    "division": lambda: (network(layers.Lambda(lambda x: x / 255), layers.Dense(3)), None),
    "product": lambda: (None, network(layers.Dense(8, "sigmoid"), layers.Lambda(lambda x: x * 255), size=3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_their_own_scaling_get_unscaled_data(name):
    x = 127 + 60 * draw(24, 8)
    model = compiled(make(*NETWORKS[name]()), "sgd", traced=False)
    model.fit(x, verbose=0)
    assert scale_of(model) == 1


def trained(encoder):
    """Moves the weights as a few training steps would: biases start at zero."""
    encoder.set_weights([weight + 0.01 for weight in encoder.get_weights()])
    return encoder


def frozen(encoder):
    encoder.trainable = False
    return encoder


PRETRAINED = {
    "frozen": lambda: frozen(network(layers.Dense(3))),
    "partly frozen": lambda: network(frozen(network(layers.Dense(5))), layers.Dense(3)),
    "to be tuned": lambda: network(trained(network(layers.Dense(5))), layers.Dense(3)),
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_encoders_get_unscaled_data(name):
    model = compiled(make(PRETRAINED[name]()), "sgd", traced=False)
    model.fit(1e3 * draw(24, 8), verbose=0)
    assert scale_of(model) == 1


def test_models_with_bounded_decoders_get_unscaled_data():
    bounded = network(layers.Dense(800, "sigmoid"), size=3)
    model = compiled(make(network(layers.Dense(3), size=800), bounded), "sgd", traced=False)
    model.fit(sparse(64, 800), verbose=0)
    assert scale_of(model) == 1


def test_data_are_not_scaled_if_the_targets_are_not_the_inputs():
    x = 1e3 * draw(24, 8)
    for y, alike in ((x.copy(), True), (x / 1e3, False)):
        model = compiled(make(), "sgd", traced=False)
        model.fit(x, y, verbose=0)
        assert (scale_of(model) == 1) != alike
    model = compiled(make(), "sgd", traced=False)
    model.fit(Batches(12, x, x / 1e3), verbose=0)
    assert scale_of(model) == 1


class WithHead(keras_vqvae.VQVAE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = layers.Dense(2)

    def call(self, inputs, training=None):
        outputs, latents, _ = self.autoencode(inputs, training=training)
        return {"data": outputs, "label": self.head(latents)}


@pytest.mark.parametrize("scale", [1, 1e3])
def test_data_are_scaled_if_one_of_several_targets_is_the_inputs(scale):
    x = 1e3 * draw(24, 8)
    model = compiled(make(kind=WithHead), "sgd", {"data": "mse", "label": "mse"}, traced=False)
    model.fit(x, {"data": x / scale, "label": draw(24, 2)}, verbose=0)
    assert (scale_of(model) > 1e3) == (scale == 1)


class Own(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        return self.decoder(self.quantizer(self.encoder(inputs), training=training))


class Normalizing(keras_vqvae.VQVAE):
    def call(self, inputs, training=None):
        return 255.0 * self.autoencode(inputs / 255.0, training=training)[0]


@pytest.mark.parametrize("kind", [Own, Normalizing])
def test_a_custom_call_gets_unscaled_data(kind):
    model = compiled(make(kind=kind), "sgd", traced=False)
    model.fit(255 * draw(24, 8), verbose=0)
    assert scale_of(model) == 1


def test_the_scale_is_measured_after_preprocessing():
    model = compiled(make(preprocessing=layers.Rescaling(1 / 255)), "sgd", traced=False)
    model.fit(255 * draw(24, 8), verbose=0)
    assert scale_of(model) == 1
    model = compiled(make(preprocessing=layers.Rescaling(255)), "sgd", traced=False)
    model.fit(draw(24, 8), verbose=0)
    assert scale_of(model) > 255


def test_measuring_the_scale_loses_no_batch_of_a_generator():
    x, seen = 1e3 * draw(24, 8), []

    class Seeing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    model = compiled(make(), "sgd", traced=False)
    model.fit(
        ((x[start : start + 4],) for start in range(0, 24, 4)),
        steps_per_epoch=6,
        shuffle=False,
        callbacks=[Seeing()],
        verbose=0,
    )
    assert len(seen) == 6
    assert scale_of(model) > 1e3


def test_targets_are_compared_with_preprocessed_inputs():
    x = draw(24, 8)
    for y, alike in ((x, False), (1e3 * x, True)):
        model = compiled(make(preprocessing=layers.Rescaling(1e3)), "sgd", traced=False)
        model.fit(x, y, verbose=0)
        assert (scale_of(model) > 1) == alike


def test_zeros_and_outliers_do_not_change_the_scale():
    x = draw(1000, 8)
    outlier = x.copy()
    outlier[0, 0] = 1e6
    padded = np.concatenate([np.zeros((9000, 8), "float32"), 0.5 * x])
    one_hot = np.eye(2000, dtype="float32")[:50]
    assert scale_of_data(outlier) == scale_of_data(padded) == scale_of_data(one_hot) == 1
    assert scale_of_data(1e37 * x) == 1


def test_padding_is_still_masked():
    x = 100 * draw(12, 5, 4)
    x[:, 3:] = -1
    encoder = keras.Sequential([keras.Input((5, 4)), layers.Masking(-1.0), layers.Dense(3)])
    model = compiled(make(encoder, layers.Dense(4)), "sgd", traced=False)
    model.fit(x, verbose=0)
    assert (model.encode(x, verbose=0)[:, 3:] == -1).all()


def test_the_scale_is_measured_on_part_of_any_data_source():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    found = []
    for x in (1e3 * draw(24, 8), scipy_sparse.csr_matrix(1e3 * draw(24, 8)), Batches(12, 1e3 * draw(24, 8))):
        model = compiled(make(), "sgd", traced=False)
        assert settle_scale(model, x) is x
        found.append(scale_of(model))
    assert found[0] == found[1] > 1e3
    assert found[2] > 1e3

    class Stored:
        """Imitates a data set in a file: reading rows copies them."""

        shape, read = (10**6, 8), 0

        def __getitem__(self, rows):
            self.read = len(range(*rows.indices(self.shape[0])))
            return draw(self.read, 8)

    stored = Stored()
    settle_scale(compiled(make(), "sgd", traced=False), stored)
    assert 0 < stored.read <= 1100


def test_scales_beyond_float16_work_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(make(), "sgd", traced=False)
        x = 2e4 * np.tanh(draw(24, 8))
        model.fit(x, verbose=0)
        assert scale_of(model) > 65504
        assert np.isfinite(model.predict(x, verbose=0)).all()
    finally:
        keras.config.set_dtype_policy("float32")


def test_zeros_settle_no_scale_and_nonfinite_samples_do_not_count():
    model = compiled(make(), "sgd", traced=False)
    settle_scale(model, np.zeros((24, 8), "float32"))
    assert not numpy(model.data_scale.settled)
    x = 1e3 * draw(24, 8)
    x[3, 2], x[5, 1] = np.nan, np.inf
    model.adapt(x, verbose=0)
    assert 1e3 < scale_of(model) < 2e4


def test_train_on_batch_settles_the_scale():
    model = compiled(make(), "sgd", traced=False)
    model.train_on_batch(1e3 * draw(12, 8))
    assert scale_of(model) > 1e3


def test_scaling_adds_no_rounding_in_bfloat16():
    x, found = draw(24, 8), []
    for scale in (2.0**-8, 2.0**8):
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = compiled(make(), keras.optimizers.Adam(0.01), traced=False)
            model.fit(scale * x, shuffle=False, verbose=0)
            found.append(model.predict(scale * x, verbose=0).astype("float32") / scale)
        finally:
            keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(*found)


def test_the_default_loss_equals_a_weighted_loss_sum():
    """`LossSum` documents which weight of the squared error gives the default loss."""
    x, latents = draw(24, 8), 3
    weight = x[0].size / (8 * latents * np.mean(np.var(x, axis=0)))
    found = []
    for loss in ("normalized_mse", keras_vqvae.LossSum([keras.losses.MeanSquaredError()], [weight])):
        model = compiled(make(), "sgd", loss, traced=False)
        found.append(model.evaluate(x, batch_size=24, return_dict=True, verbose=0)["loss"])
    np.testing.assert_allclose(*found, rtol=1e-5)
