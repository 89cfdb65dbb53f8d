"""Tests `VQGAN` against an alternating game in NumPy, and in `fit`, `evaluate` and files."""

import helpers
import keras
import numpy as np
import pytest
from helpers import numpy
from keras import layers, ops

import keras_vqvae

DIM, LATENTS = 8, 3


@pytest.fixture
def x(rng):
    return rng.normal(size=(12, DIM)).astype("float32")


def judge(several=False, features=False):
    """Returns a two-layer discriminator with one logit, or with a dict of one logit and of a grid of four.

    The features are the outputs of the first layer.
    """
    inputs = keras.Input((DIM,))
    hidden = layers.Dense(5, activation="tanh", name="discriminator_hidden")(inputs)
    one = layers.Dense(1, name="discriminator_one")(hidden)
    outputs = one
    if several:
        four = layers.Dense(4, name="discriminator_four")(hidden)
        outputs = {"one": one, "four": layers.Reshape((2, 2))(four)}
    if features:
        outputs = {"logits": outputs, "features": [hidden]}
    return keras.Model(inputs, outputs, name="discriminator")


def make(discriminator=None, weight=0.5, model=keras_vqvae.VQGAN, **keywords):
    """Returns a model of linear networks. Its quantizer adds no losses, so all gradients are of the reconstruction."""
    encoder = keras.Sequential([keras.Input((DIM,)), layers.Dense(LATENTS)])
    decoder = keras.Sequential([keras.Input((LATENTS,)), layers.Dense(DIM)])
    quantizer = keras_vqvae.VectorQuantizer(8, ema_decay=0.9, commitment_weight=0.0, dead_code_threshold=0, seed=1)
    return model(encoder, quantizer, decoder, discriminator or judge(), weight, **keywords)


class Reference:
    """Computes a model's game in NumPy, the gradients of one player at a time."""

    def __init__(self, model, x, features=False):
        self.x, self.r, self.features = x, model.predict(x, verbose=0), features
        self.first, self.bias, *heads = model.discriminator.get_weights()
        # Keras sorts the heads by name: four before one.
        self.heads = list(zip(heads[::2], heads[1::2], strict=True))

    def logits(self, x):
        hidden = np.tanh(x @ self.first + self.bias)
        return hidden, [hidden @ kernel + bias for kernel, bias in self.heads]

    def backward(self, x, cotangents, into_features=0.0):
        """Returns the gradients by `x` and by all weights, given those by each head's logits and by the features."""
        hidden, _ = self.logits(x)
        into_hidden = into_features + sum(c @ kernel.T for c, (kernel, _) in zip(cotangents, self.heads, strict=True))
        into_hidden = into_hidden * (1 - hidden**2)
        of_heads = [gradient for c in cotangents for gradient in (hidden.T @ c, c.sum(0))]
        return into_hidden @ self.first.T, [x.T @ into_hidden, into_hidden.sum(0), *of_heads]

    def discriminator(self):
        """Returns the losses and accuracies, averaged over the heads, and the gradients by the weights."""
        total, parts = [], []
        for x, sign in ((self.x, 1), (self.r, -1)):
            _, logits = self.logits(x)
            margins = [sign * each for each in logits]
            losses = [np.maximum(0, 1 - each).mean() for each in margins]
            cotangents = [-sign * (each < 1) / each.size / len(logits) for each in margins]
            parts.append((np.mean(losses), np.mean([(each > 0).mean() for each in margins])))
            total.append(self.backward(x, cotangents)[1])
        (real, real_accuracy), (fake, fake_accuracy) = parts
        logs = {"discriminator_loss": real + fake, "real_accuracy": real_accuracy, "fake_accuracy": fake_accuracy}
        return logs, [one + other for one, other in zip(*total, strict=True)]

    def feature_loss(self):
        """Returns the feature loss, and its gradient by the features of the reconstructions."""
        data, made = self.logits(self.x)[0], self.logits(self.r)[0]
        return np.abs(made - data).sum() / np.abs(data).sum(), np.sign(made - data) / np.abs(data).sum()

    def generator(self):
        """Returns the loss of the logits, and the gradient of all losses by the reconstructions."""
        _, logits = self.logits(self.r)
        loss = -np.mean([each.mean() for each in logits])
        cotangents = [np.full_like(each, -1 / each.size / len(logits)) for each in logits]
        return loss, self.backward(self.r, cotangents, self.feature_loss()[1] if self.features else 0.0)[0]


def step(model, x, loss):
    """Returns what a step of gradient descent at learning rate 1 subtracts from each trainable weight."""
    helpers.compiled(model, keras.optimizers.SGD(1.0), loss, traced=False)
    before = [numpy(weight).copy() for weight in model.trainable_weights]
    model.train_on_batch(x)
    changes = [one - numpy(weight) for one, weight in zip(before, model.trainable_weights, strict=True)]
    return {id(weight): change for weight, change in zip(model.trainable_weights, changes, strict=True)}


@pytest.mark.parametrize(
    ("loss", "several", "features"),
    [
        ("mse", False, False),
        ("mse", True, False),
        ("normalized_mse", True, False),
        ("mse", False, True),
        ("normalized_mse", True, True),
    ],
)
def test_both_players_have_the_gradients_of_an_alternating_game(x, loss, several, features):
    of_discriminator = []
    for weight in (0.0, 50.0):
        keras.utils.set_random_seed(0)
        model = make(judge(several, features), weight)
        game, codes = Reference(model, x, features), numpy(model.quantizer(model.encoder(x)))
        # In units of the variance: an eighth of a sample's error, per element of the latents.
        factor = 1.0 if loss == "mse" else DIM / LATENTS / 8
        error = 2 * (game.r - x) / x.size * (1.0 if loss == "mse" else factor / x.var(0).mean())
        into_r = error + weight * factor * game.generator()[1]
        kernel = numpy(model.decoder.layers[-1].kernel)
        into_z = into_r @ kernel.T
        expected = [x.T @ into_z, into_z.sum(0), codes.T @ into_r, into_r.sum(0)]
        changes = step(model, x, loss)
        trained = [*model.encoder.trainable_weights, *model.decoder.trainable_weights]
        for each, gradient in zip(trained, expected, strict=True):
            np.testing.assert_allclose(changes[id(each)], gradient, rtol=1e-5, atol=2e-6 * max(1, weight))
        of_discriminator.append([changes[id(each)] for each in model.discriminator.trainable_weights])
        for change, gradient in zip(of_discriminator[-1], game.discriminator()[1], strict=True):
            np.testing.assert_allclose(change, gradient, rtol=1e-5, atol=1e-6)
    for one, other in zip(*of_discriminator, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("several", "features"), [(False, False), (True, False), (True, True)])
def test_logs_and_loss_match_the_alternating_game(x, several, features):
    model = helpers.compiled(
        make(judge(several, features), preprocessing=layers.Rescaling(2.0)), "sgd", "mse", traced=False
    )
    game = Reference(model, x)
    game.x = 2 * x
    expected = {**game.discriminator()[0], "generator_loss": game.generator()[0]}
    expected |= {"feature_loss": game.feature_loss()[0]} if features else {}
    # One batch for all samples.
    logs = model.evaluate(x, batch_size=12, verbose=0, return_dict=True)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5), name
    generator = expected["generator_loss"] + expected.get("feature_loss", 0.0)
    total = np.square(game.r - 2 * x).mean() + 0.5 * generator + expected["discriminator_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    assert ("feature_loss" in logs) == features
    in_parts = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)
    # The feature loss is relative to the magnitudes of each batch.
    for name in expected.keys() - {"feature_loss"}:
        assert in_parts[name] == pytest.approx(logs[name], rel=1e-5), name


def test_the_weight_is_independent_of_the_scale_of_the_data(x):
    """Up to a factor, the decoder minimizes `1 - explained_variance` + generator loss, for any number of latents."""
    parts = {}
    for weight in (0.0, 1.0):
        keras.utils.set_random_seed(0)
        model = make(weight=weight)
        game = Reference(model, x)
        parts[weight] = step(model, x, "normalized_mse")[id(model.decoder.layers[-1].bias)]
    variance = x.var(0).mean()
    of_error = (2 * (game.r - x) / x.size / variance).sum(0)
    scale = parts[0.0] / of_error
    np.testing.assert_allclose(scale, scale[0], rtol=1e-4)
    np.testing.assert_allclose(parts[1.0] - parts[0.0], scale[0] * game.generator()[1].sum(0), rtol=1e-3, atol=1e-6)


def stateful(dropout=0.0):
    """Returns layers with state, whose outputs in training and inference differ."""
    spectral = layers.SpectralNormalization
    return keras.Sequential(
        [
            keras.Input((DIM,)),
            spectral(layers.Dense(16, use_bias=False)),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Dropout(dropout, seed=3),
            spectral(layers.Dense(1)),
        ],
        name="discriminator",
    )


@pytest.mark.each_backend(slow=True)
def test_a_loaded_model_continues_training_like_the_original(x, tmp_path):
    model = helpers.compiled(make(stateful(), start_step=3), "adam")
    model.fit(x, batch_size=6, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.adversarial_weight, loaded.start_step) == (0.5, 3)
    before = helpers.weights(model.discriminator)
    for each in (model, loaded):
        each.fit(x, batch_size=6, epochs=2, shuffle=False, verbose=0)
        assert int(each._steps) == 6
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        if one.dtype == np.float32:
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)
    # All of its layers are trained.
    for weight in model.discriminator.trainable_weights:
        assert (numpy(weight) != before[weight.path]).any(), weight.path


def test_the_discriminator_is_in_inference_mode_in_evaluation(x):
    model = helpers.compiled(make(stateful(dropout=0.5)), "sgd", traced=False)
    before = helpers.weights(model)
    logs = [model.evaluate(x, verbose=0, return_dict=True) for _ in range(2)]
    assert logs[0] == logs[1]
    helpers.assert_same_weights(before, helpers.weights(model))


def test_adversarial_training_waits_for_start_step(x):
    models = []
    for keywords in ({"start_step": 2}, {"weight": 0.0}):
        keras.utils.set_random_seed(0)
        models.append(helpers.compiled(make(**keywords), keras.optimizers.SGD(0.1)))
    before = models[0].discriminator.get_weights()
    for model in models:
        model.fit(x, batch_size=6, shuffle=False, verbose=0)
    # The first two steps train without the discriminator, the third one with it.
    for one, other in zip(models[0].discriminator.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(models[0].decoder.get_weights(), models[1].decoder.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    # Evaluation does not count as a step.
    models[0].evaluate(x, verbose=0)
    assert float(models[0]._steps) == 2
    models[0].fit(x, verbose=0)
    assert any((one != other).any() for one, other in zip(models[0].discriminator.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_float16", marks=pytest.mark.each_backend(slow=True)), "mixed_bfloat16"]
)
def test_both_players_train_in_mixed_precision(x, policy):
    keras.config.set_dtype_policy(policy)
    model = helpers.compiled(make(), keras.optimizers.SGD(0.01), traced=False)
    before = helpers.weights(model)
    for _ in range(2):
        logs = model.train_on_batch(x, return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    for weight in model.trainable_weights:
        assert weight.dtype == "float32"
    moved = [path for path, value in helpers.weights(model).items() if (value != before[path]).any()]
    # If the initial loss scale were too large, no weight would have changed.
    assert {weight.path for weight in model.decoder.trainable_weights} <= set(moved)


@keras.saving.register_keras_serializable(package="tests")
class HeadAndGame(keras_vqvae.VQGAN):
    """A model whose `call` has a second output with a loss of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = layers.Dense(2)

    def call(self, inputs, training=None):
        reconstruction, latents, _ = self.autoencode(inputs, training=training)
        return {"image": reconstruction, "label": self.head(latents)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y["image"], y_pred["image"], sample_weight, training)
        return loss + ops.mean(keras.losses.mean_squared_error(y["label"], y_pred["label"]))


def test_a_subclass_can_have_more_outputs(x):
    model = helpers.compiled(make(model=HeadAndGame), "sgd", "mse", traced=False)
    logs = model.train_on_batch(x, {"image": x, "label": x[:, :2]}, return_dict=True)
    assert {"generator_loss", "explained_variance"} <= logs.keys()


def test_models_without_input_shapes_are_trained_and_saved(x, tmp_path):
    discriminator = keras.Sequential([layers.Dense(4), layers.Dense(1)])
    quantizer = keras_vqvae.VectorQuantizer(8, ema_decay=0.9)
    model = keras_vqvae.VQGAN(layers.Dense(LATENTS), quantizer, layers.Dense(DIM), discriminator)
    model.compile("adam", run_eagerly=keras.backend.backend() == "tensorflow")
    model.fit(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.each_backend(slow=True)
@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="since Keras 3.15")
def test_the_discriminator_can_have_its_own_learning_rate(x, tmp_path):
    sgd, own = keras.optimizers.SGD(0.1, 0.9), keras.optimizers.SGD(0.0, 0.9)
    optimizers = keras.optimizers.OptimizerMap(sgd, {".*discriminator.*": own})
    model = helpers.compiled(make(), keras.optimizers.MultiOptimizer(optimizers))
    before = helpers.weights(model)
    model.fit(x, verbose=0)
    after = helpers.weights(model)
    for weight in model.trainable_weights:
        of_discriminator = any(weight is each for each in model.discriminator.trainable_weights)
        assert (after[weight.path] == before[weight.path]).all() == of_discriminator
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def several_outputs():
    inputs = keras.Input((LATENTS,))
    return keras.Model(inputs, [layers.Dense(DIM)(inputs), layers.Dense(2)(inputs)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"discriminator": "conv"}, "`discriminator` must be a Keras layer.* Received: discriminator='conv'"),
        ({"adversarial_weight": -0.1}, r"`adversarial_weight` .* Received: adversarial_weight=-0\.1"),
        ({"start_step": 1.5}, r"`start_step` .* Received: start_step=1\.5"),
        ({"decoder": several_outputs()}, r"`decoder` must have a single output .*\[\(None, 8\), \(None, 2\)\]"),
        (
            {"discriminator": keras.Sequential([keras.Input((DIM + 1,)), layers.Dense(1)])},
            r"`discriminator` must accept the decoder's outputs\. .* \(None, 8\), .*\.input_shape=\(None, 9\)",
        ),
    ],
)
def test_wrong_arguments_are_named_in_errors(changed, message):
    encoder = keras.Sequential([keras.Input((DIM,)), layers.Dense(LATENTS)])
    parts = {"encoder": encoder, "quantizer": keras_vqvae.VectorQuantizer(8), "decoder": layers.Dense(DIM)}
    with pytest.raises(ValueError, match=message):
        keras_vqvae.VQGAN(**{**parts, "discriminator": judge(), **changed})


def with_logits(*last):
    return keras.Sequential([keras.Input((DIM,)), layers.Dense(4, activation="relu"), *last])


def nested(model):
    inputs = keras.Input((DIM,))
    return keras.Model(inputs, [layers.Dense(1)(inputs), model(inputs)])


def with_features(activation):
    inputs = keras.Input((DIM,))
    hidden = layers.Dense(4, activation="relu")(inputs)
    return keras.Model(inputs, {"logits": layers.Dense(1, activation=activation)(hidden), "features": [hidden]})


@pytest.mark.parametrize(
    ("discriminator", "name"),
    [
        (layers.Dense(1, activation="sigmoid"), "sigmoid"),
        (with_logits(layers.Dense(1, activation="sigmoid")), "sigmoid"),
        (with_logits(layers.Dense(2), layers.Softmax()), "softmax"),
        (with_logits(layers.Dense(1), layers.Activation("relu")), "relu"),
        (keras.Sequential([layers.Dense(1, activation="hard_sigmoid")]), "hard_sigmoid"),
        (nested(with_logits(layers.Dense(1, activation="softplus"))), "softplus"),
        (with_features("sigmoid"), "sigmoid"),
    ],
)
def test_a_discriminator_without_logits_is_refused(discriminator, name):
    with pytest.raises(ValueError, match=f"`discriminator` must return logits.* Received: .* activation '{name}'"):
        make(discriminator=discriminator)


@pytest.mark.parametrize(
    ("outputs", "received"),
    [
        (lambda logits, hidden: {"score": logits, "features": [hidden]}, r"'score': \(None, 1\)"),
        (lambda logits, hidden: {"logits": logits, "feature": [hidden]}, r"'feature': \[\(None, 4\)\]"),
        (lambda logits, hidden: {"logits": logits, "hidden": hidden}, r"'hidden': \(None, 4\)"),
        (lambda logits, hidden: (logits, [hidden]), r"\(None, 1\), \[\(None, 4\)\]"),
    ],
)
def test_features_under_other_names_are_refused(outputs, received):
    inputs = keras.Input((DIM,))
    discriminator = keras.Model(inputs, outputs(layers.Dense(1)(inputs), layers.Dense(4)(inputs)))
    with pytest.raises(ValueError, match=f"`discriminator` must return logits.* Received: .*{received}"):
        make(discriminator=discriminator)


def test_features_can_have_any_activation():
    assert make(discriminator=with_features(None)).built


@pytest.mark.parametrize("last", [layers.Dense(1), layers.Dense(1, activation="tanh"), layers.LeakyReLU()])
def test_a_discriminator_with_outputs_of_both_signs_is_accepted(last):
    assert make(discriminator=nested(with_logits(last))).built


class OtherOutputs(keras_vqvae.VQGAN):
    def call(self, inputs, training=None):
        return self.autoencode(inputs, training=training)[0][:, 1:]


def test_outputs_other_than_the_reconstruction_are_refused(x):
    model = helpers.compiled(make(model=OtherOutputs), "sgd", "mse", traced=False)
    with pytest.raises(
        ValueError, match=r"`y_pred` must be the decoder's output, .* Received: y_pred of shape \(12, 7\)"
    ):
        model.evaluate(x, x[:, 1:], verbose=0)


def test_training_both_players_does_not_depend_on_the_scale_of_the_data():
    """Scaling by a power of two is exact in floating point, so all results must be equal to the last bit."""
    found = []
    for scale in (2.0**-10, 2.0**10):
        keras.utils.set_random_seed(0)
        model = helpers.compiled(make(), keras.optimizers.Adam(0.01), traced=False)
        x = scale * helpers.draw(12, DIM)
        logs = model.fit(x, epochs=3, shuffle=False, verbose=0).history
        found.append((model.predict(x, verbose=0) / scale, logs["generator_loss"], logs["discriminator_loss"]))
    assert found[0][1][0] != found[0][1][-1]
    for small, large in zip(*found, strict=True):
        np.testing.assert_array_equal(small, large)


def test_a_discriminator_for_other_channels_is_refused_by_the_constructor():
    sizes = {"embedding_dim": 4, "filters": (8,), "num_residual_blocks": 0}
    networks = [build((8, 8, 3), **sizes) for build in (keras_vqvae.build_conv_encoder, keras_vqvae.build_conv_decoder)]
    gray = keras_vqvae.build_conv_discriminator((8, 8, 1), filters=(4,))
    with pytest.raises(ValueError, match=r"`discriminator` must accept .* \(None, 8, 8, 3\), .*\(None, 8, 8, 1\)"):
        keras_vqvae.VQGAN(networks[0], keras_vqvae.VectorQuantizer(8), networks[1], gray)
