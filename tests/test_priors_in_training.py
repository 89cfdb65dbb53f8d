"""Tests what every prior promises as a Keras model, in `fit` and `evaluate`."""

import math
import re

import keras
import numpy as np
import pytest
from helpers import Batches, compiled, numpy, softmax
from keras import ops

import keras_vqvae

PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}
K, SHAPE, CLASSES = 5, (2, 3), 3
SIZES = {"index_shape": (3,), "num_layers": 1, "num_heads": 1, "hidden_dim": 4, "seed": 1}


@pytest.fixture(params=PRIORS)
def kind(request):
    return request.param


@pytest.fixture
def codes(rng):
    return rng.integers(0, K, (6, *SHAPE)).astype("int32")


@pytest.fixture
def labels(rng):
    return rng.integers(0, CLASSES, 6).astype("int32")


def constant(kind, **keywords):
    """Returns a prior whose logits do not depend on its inputs, and these logits."""
    prior = PRIORS[kind](K, SHAPE, **SIZES, **keywords)
    prior.transformer.head.assign(ops.zeros(prior.transformer.head.shape))
    bias = np.random.default_rng(2).normal(size=(3, K)).astype("float32")
    prior.transformer.bias.assign(bias)
    return prior, np.broadcast_to(bias, (6, *SHAPE, K))


def nats_of(logits, codes):
    return -np.log(np.take_along_axis(softmax(logits), codes[..., None], -1))[..., 0]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_sample_weights_count_as_in_keras(codes, labels, rng, axes, num_classes):
    """Keras divides losses by the number of codes, and metrics such as perplexity by the sum of the weights."""
    prior, logits = constant("autoregressive", num_classes=num_classes)
    compiled(prior, "sgd", traced=False)
    weights = rng.random(codes.shape[:axes]).astype("float32")
    # Set some weights to 0 in one batch, so that batches count differently.
    weights[:3] *= weights[:3] > 0.8
    nats = nats_of(logits, codes)
    full = np.broadcast_to(weights.reshape(*weights.shape, *(1,) * (3 - axes)), codes.shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(codes, logits, sample_weight=full)
    assert float(loss) == pytest.approx((nats * full).mean(), rel=1e-5)
    expected = {"loss": float(loss), "perplexity": math.exp((nats * full).sum() / full.sum())}
    y = None if num_classes is None else labels
    logs = prior.evaluate(codes, y, sample_weight=weights, batch_size=4, verbose=0, return_dict=True)
    assert logs == pytest.approx(expected, rel=1e-5)
    without = np.empty((6, 0), "int32")
    of_batches = Batches(4, codes, without if y is None else y, weights)
    assert prior.evaluate(of_batches, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
    # With positional arguments and without classes.
    assert prior.evaluate(codes, None, 4, 0, weights) == pytest.approx(list(expected.values()), rel=1e-5)


def test_sample_weights_apply_to_masked_codes(codes):
    prior, logits = constant("masked")
    compiled(prior, "sgd", traced=False)
    counted = (codes == 2) & (np.arange(3) == 1)
    counted[:, 0, 1], codes[:, 0, 1] = True, 2
    # Every counted code has the same nats, whichever codes are masked.
    expected = nats_of(logits, np.full_like(codes, 2))[0, 0, 1]
    logs = prior.evaluate(codes, sample_weight=counted, verbose=0, return_dict=True)
    assert math.log(logs["perplexity"]) == pytest.approx(expected, rel=1e-5)
    many, weights = (np.tile(each, (200, 1, 1)) for each in (codes, counted))
    loss, _ = prior.evaluate(many, sample_weight=weights, batch_size=1200, verbose=0)
    assert loss == pytest.approx(expected * counted.mean(), rel=0.1)


def test_each_step_masks_other_codes(codes):
    prior, _ = constant("masked")
    compiled(prior, keras.optimizers.SGD(0.0), traced=False)
    for step in (prior.train_on_batch, prior.test_on_batch):
        losses = [float(step(codes, return_dict=True)["loss"]) for _ in range(3)]
        assert len(set(losses)) == 3


def test_validation_uses_sample_weights(codes):
    prior, _ = constant("autoregressive")
    prior.compile(keras.optimizers.SGD(0.0))
    weights = (codes == 2).astype("float32")
    data = {"sample_weight": weights, "validation_data": (codes, None, weights), "verbose": 0}
    logs = {name: values[0] for name, values in prior.fit(codes, **data).history.items()}
    expected = prior.evaluate(codes, sample_weight=weights, verbose=0, return_dict=True)
    assert logs["val_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert logs["val_perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert logs["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)


@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_metrics_compare_codes_and_logits(kind, codes, labels, num_classes):
    prior, logits = constant(kind, num_classes=num_classes)
    compiled(prior, "sgd", metrics=["accuracy"], weighted_metrics=["sparse_categorical_accuracy"], traced=False)
    right = logits.argmax(-1) == codes
    assert 0 < right.mean() < 1
    y = None if num_classes is None else labels
    # The weighted metric counts only codes that are predicted correctly, masked or not.
    logs = prior.evaluate(codes, y, sample_weight=right, verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx(right.mean(), rel=1e-5)
    assert logs["sparse_categorical_accuracy"] == pytest.approx(1.0)


def test_compile_refuses_a_loss(kind):
    prior, _ = constant(kind)
    for name in ("loss", "loss_weights"):
        with pytest.raises(ValueError, match=f"override `compute_loss`. Received: {name}='mse'"):
            prior.compile("sgd", **{name: "mse"})
    with pytest.raises(ValueError, match="loss='mse'"):
        prior.compile("sgd", "mse")


def test_the_compiled_settings_survive_saving(kind, codes, tmp_path):
    prior, _ = constant(kind)
    compiled(prior, keras.optimizers.Adam(0.5), weighted_metrics=["sparse_categorical_accuracy"], traced=False)
    prior.train_on_batch(codes)
    prior.save(tmp_path / "prior.keras")
    loaded = keras.models.load_model(tmp_path / "prior.keras")
    for one, other in zip(loaded.optimizer.variables, prior.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))
    assert "sparse_categorical_accuracy" in loaded.evaluate(codes, verbose=0, return_dict=True)
    # In files of an earlier version, a compiled loss had no effect.
    loaded.compile_from_config({**prior.get_compile_config(), "loss": "mse"})
    assert loaded.optimizer.built


def test_compute_loss_gets_codes_and_logits(kind, codes, labels):
    seen = []

    class Watched(PRIORS[kind]):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            seen.append((x, y, y_pred, sample_weight))
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    prior = Watched(K, SHAPE, num_classes=CLASSES, **SIZES)
    prior.compile("sgd", run_eagerly=True)
    prior.test_on_batch(codes, labels, sample_weight=np.full(6, 2.0))
    (inputs, classes), targets, logits, weights = seen[-1]
    inputs, classes, targets, logits, weights = map(numpy, (inputs, classes, targets, logits, weights))
    np.testing.assert_array_equal(targets, codes)
    np.testing.assert_array_equal(classes, labels)
    np.testing.assert_allclose(logits, prior.predict((inputs, labels), verbose=0), atol=1e-5)
    if kind == "autoregressive":
        np.testing.assert_array_equal(inputs, codes)
        np.testing.assert_array_equal(weights, np.full(codes.shape, 2.0))
    else:
        np.testing.assert_array_equal(inputs, np.where(weights > 0, K, codes))
        np.testing.assert_allclose(weights.sum((1, 2)), 2 * math.prod(SHAPE), rtol=1e-5)


def test_equal_seeds_train_alike(kind, codes):
    start = PRIORS[kind](K, SHAPE, **SIZES).get_weights()

    def trained(seed, global_seed):
        keras.utils.set_random_seed(global_seed)
        prior = PRIORS[kind](K, SHAPE, **{**SIZES, "seed": seed}, dropout=0.5)
        prior.set_weights(start)
        compiled(prior, "sgd", traced=False).train_on_batch(codes)
        return np.concatenate([weight.ravel() for weight in prior.get_weights()])

    weights = trained(7, 1)
    np.testing.assert_array_equal(trained(7, 2), weights)
    assert np.abs(trained(8, 1) - weights).max() > 1e-5
    # All parts have different seeds.
    network = PRIORS[kind](K, SHAPE, **{**SIZES, "num_layers": 3}).transformer
    parts = [network, *network.blocks, *getattr(network, "stage_blocks", ())]
    seeds = [SIZES["seed"], *(part.dropout.seed for part in parts)]
    assert len(set(seeds)) == len(seeds) == 5 + 2 * (kind == "autoregressive")


def test_losses_added_by_layers_count(kind, codes):
    prior, _ = constant(kind)

    class Adding(PRIORS[kind]):
        def call(self, inputs, training=None):
            self.add_loss(ops.cast(3.0, "float32"))
            return super().call(inputs, training=training)

    adding = Adding.from_config(prior.get_config())
    adding.set_weights(prior.get_weights())
    logs = []
    for model in (prior, adding):
        compiled(model, "sgd", traced=False)
        logs.append(model.evaluate(codes, verbose=0, return_dict=True))
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"] + 3, rel=1e-5)
    assert logs[1]["perplexity"] == pytest.approx(logs[0]["perplexity"], rel=1e-5)


def extended(kind, own_build):
    """Returns a subclass that adds a layer, a metric and a weight, as any Keras model may."""

    class Extended(PRIORS[kind]):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            self.head = keras.layers.Dense(K, name="head")
            self.calls = keras.metrics.Mean(name="calls")
            self.scale = self.add_weight((), "ones", name="scale")

        if own_build:

            def build(self, input_shape):
                super().build(input_shape)
                self.head.build((None, *SHAPE, K))

        def call(self, inputs, training=None):
            return super().call(inputs, training=training) * self.scale + self.head(
                super().call(inputs, training=training)
            )

        def compute_loss(self, *args, **keywords):
            self.calls.update_state(7.0)
            return super().compute_loss(*args, **keywords)

    return Extended


@pytest.mark.parametrize(("num_classes", "own_build"), [(None, True), (CLASSES, False)])
def test_a_subclass_adds_layers_metrics_and_weights(kind, codes, labels, num_classes, own_build, tmp_path):
    cls = extended(kind, own_build)
    prior = cls(K, SHAPE, num_classes=num_classes, **SIZES)
    prior.compile(keras.optimizers.SGD(0.1))
    y = None if num_classes is None else labels
    history = prior.fit(codes, y, verbose=0).history
    assert history["calls"] == [7.0]
    assert numpy(prior.scale) != 1
    assert np.abs(numpy(prior.head.bias)).max() > 0
    prior.save(tmp_path / "prior.keras")
    loaded = keras.models.load_model(tmp_path / "prior.keras", custom_objects={"Extended": cls})
    assert len(loaded.weights) == len(prior.weights) > 0
    for one, other in zip(loaded.weights, prior.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(numpy(one), numpy(other))
    inputs = codes if y is None else (codes, y)
    expected = prior.predict(inputs, verbose=0)
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), expected)
    prior.save_weights(tmp_path / "prior.weights.h5")
    other = cls(K, SHAPE, num_classes=num_classes, **SIZES)
    other.build((None, *SHAPE))
    other.load_weights(tmp_path / "prior.weights.h5")
    np.testing.assert_array_equal(other.predict(inputs, verbose=0), expected)


def test_a_new_subclass_generates_samples(kind):
    new = extended(kind, own_build=False)(K, SHAPE, **SIZES).generate(3, seed=0, verbose=0)
    assert new.shape == (3, *SHAPE)


def test_the_label_num_classes_means_no_class(kind, codes):
    prior = PRIORS[kind](K, SHAPE, num_classes=CLASSES, **SIZES)
    unlabeled = prior.predict((codes, np.full(6, CLASSES)), verbose=0)
    np.testing.assert_array_equal(unlabeled, prior.predict(codes, verbose=0))
    with pytest.raises(ValueError, match=r"Received: labels with \[4\]"):
        prior((codes, np.full(6, CLASSES + 1)))


def test_arguments_that_would_be_ignored_are_refused(kind, codes, labels):
    prior, _ = constant(kind)
    with_classes, _ = constant(kind, num_classes=CLASSES)
    for model in (prior, with_classes):
        model.compile("sgd")
    for weights in (np.ones(5), np.ones((6, 3)), np.ones((6, *SHAPE, 1))):
        for method in (prior.fit, prior.evaluate):
            with pytest.raises(ValueError, match=re.escape(f"sample_weight of shape {weights.shape}")):
                method(codes, sample_weight=weights, verbose=0)
    with pytest.raises(ValueError, match=r"class_weight=\{0: 2.0\}, num_classes=None"):
        prior.fit(codes, class_weight={0: 2.0}, verbose=0)
    # The code for an unknown position is not a valid target.
    for data in ({"x": np.full_like(codes, K)}, {"x": codes, "validation_data": (np.full_like(codes, K), None)}):
        with pytest.raises(ValueError, match=r"Received: codes with \[5\]"):
            prior.fit(**data, verbose=0)
    with pytest.raises(ValueError, match="Received: guidance_scale=2.0, labels=None"):
        with_classes.generate(2, guidance_scale=2.0)
    name = "num_steps" if kind == "autoregressive" else "beam_width"
    with pytest.raises(ValueError, match=f"`{name}` is not an argument of .*. Received: {name}=3"):
        prior.generate(2, **{name: 3})


def test_without_label_dropout_every_sample_needs_a_label(kind, codes, labels):
    prior, _ = constant(kind, num_classes=CLASSES, label_dropout=0)
    compiled(prior, "sgd", traced=False)
    assert (numpy(prior._drop_labels(ops.ones((1000,), "int32"))) == 1).all()
    assert math.isfinite(prior.evaluate(codes, labels, verbose=0)[0])
    assert prior.generate(2, 1, seed=0, verbose=0).shape == (2, *SHAPE)
    for method, name in (
        (lambda: prior.evaluate(codes, verbose=0), "y"),
        (lambda: prior.fit(codes, labels, validation_data=(codes, None), verbose=0), "y"),
        (lambda: prior.generate(2), "labels"),
        (lambda: prior.log_likelihood(codes), "labels"),
    ):
        with pytest.raises(ValueError, match=f"`label_dropout=0`.*Received: {name}=None"):
            method()
    with pytest.raises(ValueError, match=r"Received: guidance_scale=2.0, labels=1, .*label_dropout=0.0"):
        prior.generate(2, 1, guidance_scale=2.0)
