"""Tests what all priors promise, and each prior's definition."""

import itertools
import math
import re

import keras
import numpy as np
import pytest
from helpers import numpy, softmax
from keras import ops

import keras_vqvae
from keras_vqvae.backend import backend
from keras_vqvae.models import sampling

PRIORS = {"autoregressive": keras_vqvae.AutoregressivePrior, "masked": keras_vqvae.MaskedPrior}
K, SHAPE, CLASSES = 5, (2, 2, 3), 3
LENGTH = math.prod(SHAPE)
ALL_OPTIONS = {"guidance_scale": 2.0, "temperature": 1.5, "top_k": 4, "top_p": 0.9}


def small(kind, **keywords):
    sizes = {"num_classes": CLASSES, "index_shape": (3,), "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "seed": 1}
    prior = PRIORS[kind](K, SHAPE, **{**sizes, **keywords})
    # Logits far from uniform, so that each draw depends on the earlier ones.
    for seed, weight in enumerate(prior.trainable_variables):
        weight.assign(weight + keras.random.normal(weight.shape, stddev=0.5, seed=seed))
    return prior


@pytest.fixture(scope="module", params=PRIORS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def prior(kind):
    keras.utils.set_random_seed(0)
    return small(kind)


@pytest.fixture(scope="module")
def autoregressive():
    keras.utils.set_random_seed(0)
    return small("autoregressive")


@pytest.fixture
def codes(rng):
    return rng.integers(0, K, (7, *SHAPE)).astype("int32")


@pytest.fixture
def labels(rng):
    return rng.integers(0, CLASSES, 7).astype("int32")


def some(codes):
    """Replaces some codes by -1: none in the first sample, all in the last, and about half in between."""
    share = np.linspace(0, 1, len(codes)).reshape(-1, *(1,) * (codes.ndim - 1))
    return np.where(np.random.default_rng(1).random(codes.shape) < share, -1, codes)


def test_weights_have_the_names_of_their_attributes(prior):
    found = [prior.transformer, *prior.transformer.blocks]
    weights = [(layer, weight) for layer in found for weight in layer._trainable_variables]
    assert len(weights) > 1
    assert all(getattr(layer, weight.name) is weight for layer, weight in weights)


def logits_of(prior, codes, labels=None):
    """Computes logits in one program. Otherwise JAX would compile a program for each operation."""
    codes = codes.reshape(-1, *SHAPE)
    return prior.predict_on_batch(codes if labels is None else (codes, labels)).reshape(len(codes), LENGTH, K)


def uniforms_of(seed, *shape):
    bits = np.random.default_rng(seed).integers(2**sampling.RANDOM_BITS, size=shape, dtype="int32")
    return (bits + 0.5) / 2**sampling.RANDOM_BITS


def inverse(logits, uniforms):
    """Samples by inverting the distribution in float64."""
    sums = np.cumsum(softmax(logits.astype("float64")), axis=-1)
    return (sums <= uniforms[..., None] * sums[..., -1:]).sum(-1)


def test_there_are_logits_for_each_code_that_depend_on_the_label(prior, codes, labels):
    outputs = prior.predict_on_batch((codes, labels))
    assert outputs.shape == (7, *SHAPE, K)
    assert outputs.dtype == "float32"
    logits, other = outputs.reshape(7, LENGTH, K), logits_of(prior, codes, (labels + 1) % CLASSES)
    # The network is random, and the logits of some codes may be saturated.
    assert np.abs(other - logits).max(axis=-1).max(axis=0).min() > 1e-2
    assert np.abs(logits_of(prior, codes) - logits).max() > 1e-4


@pytest.mark.each_backend("autoregressive", slow=True)
def test_the_loss_is_in_nats_per_code(prior, kind, codes, labels):
    prior.compile(optimizer="sgd")
    logs = prior.evaluate(codes, labels, verbose=0, return_dict=True)
    assert logs["perplexity"] == pytest.approx(math.exp(logs["loss"]), rel=1e-5)
    if kind == "autoregressive":
        shares = softmax(logits_of(prior, codes, labels).astype("float64"))
        own = np.take_along_axis(shares, codes.reshape(7, LENGTH, 1), -1)
        assert logs["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
        weights = np.arange(7.0)
        weighted = prior.evaluate(codes, labels, sample_weight=weights, verbose=0)[0]
        assert weighted == pytest.approx((-np.log(own).mean((1, 2)) * weights).mean(), rel=1e-5)


def test_only_masked_codes_are_predicted():
    prior = small("masked")
    # Make the logits equal the bias for any other codes, so that any mask gives the same mean.
    prior.transformer.head.assign(ops.zeros(prior.transformer.head.shape))
    prior.compile(optimizer="sgd")
    codes = np.full((9, *SHAPE), 2)
    shares = softmax(numpy(prior.transformer.bias))[:, 2]
    few, many = (prior.evaluate(np.repeat(codes, n, 0), verbose=0)[0] for n in (1, 20))
    assert -np.log(shares.max()) < few < -np.log(shares.min())
    assert many == pytest.approx(-np.log(shares).mean(), rel=0.1)
    prior.transformer.bias.assign(np.broadcast_to([0.0, 0, 1, 0, 0], (3, K)))
    assert prior.evaluate(codes, verbose=0)[0] == pytest.approx(math.log(math.e + 4) - 1, rel=1e-5)


def test_codes_depend_only_on_earlier_codes(autoregressive, codes, labels):
    prior = autoregressive
    flat = codes.reshape(7, LENGTH)
    before = logits_of(prior, flat, labels)
    for place in (0, 3, LENGTH - 1):
        changed = flat.copy()
        changed[:, place] = (changed[:, place] + 1) % K
        after = logits_of(prior, changed, labels)
        np.testing.assert_allclose(after[:, : place + 1], before[:, : place + 1], atol=1e-5)
        assert place == LENGTH - 1 or np.abs(after - before)[:, place + 1 :].max(axis=(0, 2)).min() > 1e-4


def test_a_position_is_passed_on_as_the_sum_of_its_codes(codes, labels):
    """If all stages share their vectors, later positions cannot tell in which order a position lists its codes."""
    prior = small("autoregressive")
    reversed_codes = codes.copy()
    reversed_codes[:, 0, 0] = codes[:, 0, 0, ::-1]
    differ = codes[:, 0, 0, 0] != codes[:, 0, 0, 2]
    assert differ.sum() > 2

    def change():
        before, after = (logits_of(prior, each, labels) for each in (codes, reversed_codes))
        return np.abs(after - before)[differ].max(axis=2)

    assert change()[:, 3:].max(axis=1).min() > 1e-3
    vectors = numpy(prior.transformer.codes)
    prior.transformer.codes.assign(np.concatenate([*[vectors[:K]] * 3, vectors[3 * K :]]))
    np.testing.assert_allclose(change()[:, 3:], 0, atol=1e-4)
    assert change()[:, 1].min() > 1e-3


@pytest.mark.parametrize(
    ("index_shape", "options"),
    [
        ((), {}),
        ((3,), {}),
        ((), ALL_OPTIONS),
        pytest.param((3,), ALL_OPTIONS, marks=pytest.mark.each_backend(slow=True)),
    ],
)
def test_draws_with_and_without_cache_are_equal(autoregressive, codes, labels, options, index_shape):
    """The cache changes only the cost: each code is drawn as from logits computed from all codes so far."""
    prior = autoregressive if index_shape else small("autoregressive", index_shape=())
    guidance, restrictions = options.get("guidance_scale"), {k: v for k, v in options.items() if k != "guidance_scale"}
    # Known codes can be anywhere. Those after a code do not change how it is drawn.
    known = some(codes) if options else np.full_like(codes, -1)
    given = known.reshape(7, LENGTH)
    expected = np.zeros((7, LENGTH), "int32")
    uniforms = uniforms_of(3, 7, LENGTH)
    for place in range(LENGTH):
        logits = logits_of(prior, expected, labels)[:, place]
        if guidance is not None:
            without = logits_of(prior, expected)[:, place]
            logits = without + guidance * (logits - without)
        drawn = inverse(numpy(sampling.restrict(logits, **restrictions)), uniforms[:, place])
        expected[:, place] = np.where(given[:, place] < 0, drawn, given[:, place])
    new = prior.generate(7, labels, known=known if options else None, seed=3, verbose=0, **options)
    np.testing.assert_array_equal(new.reshape(7, -1), expected)


@pytest.mark.parametrize("inpainting", [False, pytest.param(True, marks=pytest.mark.each_backend)])
def test_filling_in_matches_its_definition(codes, labels, inpainting):
    prior, steps = small("masked"), 4
    numbers = uniforms_of(3, 7, steps, 2, LENGTH)
    known = some(codes) if inpainting else np.full_like(codes, -1)
    given = known.reshape(7, LENGTH)
    expected = np.where(given < 0, K, given)
    unknown = (given < 0).sum(1)
    for step in range(steps):
        masked = expected == K
        logits = logits_of(prior, expected, labels)
        drawn = inverse(logits, numbers[:, step, 0])
        sureness = np.take_along_axis(np.log(softmax(logits)), drawn[..., None], -1)[..., 0]
        sureness = sureness + 4.5 * (1 - (step + 1) / steps) * -np.log(-np.log(numbers[:, step, 1]))
        order = np.argsort(np.where(masked, sureness, np.inf), axis=1)
        expected = np.where(masked, drawn, expected)
        for row, count in enumerate(unknown):
            remaining = math.floor(count * math.cos(math.pi / 2 * (step + 1) / steps) + 1e-9)
            expected[row, order[row, :remaining]] = K
    options = {"num_steps": steps, "choice_temperature": 4.5, "known": known if inpainting else None}
    new = prior.generate(7, labels, seed=3, verbose=0, **options)
    np.testing.assert_array_equal(new.reshape(7, -1), expected)


def test_samples_depend_only_on_the_seed(prior, labels):
    new = prior.generate(7, labels, seed=5, verbose=0)
    assert new.shape == (7, *SHAPE)
    assert new.dtype == "int32"
    np.testing.assert_array_equal(prior.generate(7, labels, seed=5, batch_size=4, verbose=0), new)
    assert (prior.generate(7, labels, seed=6, verbose=0) != new).any()
    keras.utils.set_random_seed(2)
    first = prior.generate(7, labels, verbose=0)
    assert (prior.generate(7, labels, verbose=0) != first).any()
    keras.utils.set_random_seed(2)
    np.testing.assert_array_equal(prior.generate(7, labels, verbose=0), first)


def test_a_saved_prior_draws_the_same(prior, kind, tmp_path, labels):
    prior.save(tmp_path / "prior.keras")
    loaded = keras.models.load_model(tmp_path / "prior.keras")
    assert type(loaded) is PRIORS[kind]
    assert loaded.get_config() == prior.get_config()
    np.testing.assert_array_equal(
        loaded.generate(7, labels, seed=5, verbose=0), prior.generate(7, labels, seed=5, verbose=0)
    )


def chain(rng, n, length, transitions):
    """Returns samples of a Markov chain from state 0, and its entropy in nats per code."""
    states, entropies = np.zeros((n, length + 1), int), -np.sum(transitions * np.log(transitions), axis=1)
    for place in range(length):
        sums = np.cumsum(transitions[states[:, place]], axis=1)
        states[:, place + 1] = np.minimum((sums < rng.random((n, 1))).sum(1), len(transitions) - 1)
    at, entropy = np.eye(len(transitions))[0], 0.0
    for _ in range(length):
        entropy += at @ entropies / length
        at = at @ transitions
    return states[:, 1:], entropy


@pytest.mark.slow
def test_markov_chains_are_learned(kind, rng):
    """The loss reaches the entropy of Markov chains, one per class, and new samples have their transitions."""
    transitions = softmax(2 * rng.normal(size=(2, 3, 3)))
    parts, entropies = zip(*(chain(rng, 2048, 5, each) for each in transitions), strict=True)
    order = rng.permutation(4096)
    codes, labels = np.concatenate(parts)[order], np.repeat([0, 1], 2048)[order]
    prior = PRIORS[kind](3, (5,), num_classes=2, num_layers=1, num_heads=2, hidden_dim=32, dropout=0.0)
    options = {"batch_size": 1000, "verbose": 0, **({} if kind == "autoregressive" else {"num_steps": 5})}
    # Compile the sampler before training: it must use the trained weights.
    prior.generate(1000, 0, **options)
    prior.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 384)))
    data = {"batch_size": 64, "validation_data": (codes, labels), "validation_batch_size": 1024}
    history = prior.fit(codes, labels, epochs=6, verbose=0, **data).history
    assert sorted(history) == ["loss", "perplexity", "val_loss", "val_perplexity"]
    assert np.mean(entropies) - 0.04 < history["val_loss"][-1] < np.mean(entropies) + 0.04
    for label, expected in enumerate(transitions):
        new = prior.generate(1000, label, seed=label, **options)
        pairs = np.zeros((3, 3))
        for before, after in itertools.pairwise(new.T):
            np.add.at(pairs, (before, after), 1)
        visits = pairs.sum(1)
        distances = np.abs(pairs / visits[:, None] - expected).sum(1)
        # Codes filled in at the same step are drawn independently. If all were, the distance would exceed 0.5.
        assert visits @ distances / visits.sum() < 0.25


def test_mixed_precision_gives_similar_logits_and_draws(prior, kind, codes, labels):
    mixed = PRIORS[kind].from_config({**prior.get_config(), "dtype": "mixed_bfloat16"})
    mixed.set_weights(prior.get_weights())
    errors = np.abs(logits_of(mixed, codes, labels) - logits_of(prior, codes, labels))
    # Allow larger errors for 1% of a random network's logits, because bfloat16 has 8 significant bits.
    np.testing.assert_array_less(np.quantile(errors, [0.5, 0.95, 0.99]), [0.03, 0.15, 0.3])
    assert mixed.compute_dtype == mixed.transformer.blocks[0].compute_dtype == "bfloat16"
    assert {weight.dtype for weight in mixed.trainable_variables} == {"float32"}
    new = mixed.generate(64, 1, seed=0, verbose=0)
    assert 0 <= new.min() <= new.max() < K
    assert np.mean(new == prior.generate(64, 1, seed=0, verbose=0)) > 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_label_dropout_drops_the_given_fraction(kind, rate):
    prior = small(kind) if rate == 0.1 else small(kind, label_dropout=rate)
    labels = numpy(prior._drop_labels(ops.ones((10_000,), "int32")))
    assert set(labels.tolist()) == {1, CLASSES}
    assert np.mean(labels == CLASSES) == pytest.approx(rate, abs=0.02)
    assert PRIORS[kind].from_config(prior.get_config()).label_dropout == rate


def test_samples_of_a_single_code_are_generated(kind):
    """Each sample has one code, as for a `VQVAE` of vectors."""
    prior = PRIORS[kind](K, (), num_layers=1, num_heads=1, hidden_dim=4)
    assert prior.generate(3, seed=0, verbose=0).shape == (3,)


def test_training_refuses_replicas_that_are_trained_separately(prior, codes, labels, monkeypatch):
    asked = []
    monkeypatch.setattr(backend, "refuse_separate_training", asked.append)
    prior.compile(optimizer="sgd")
    prior.train_on_batch(codes, labels)
    assert asked == [prior]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings=0"),
        ({"shape": 3}, "shape=3"),
        ({"shape": (2, 0)}, "shape[1]=0"),
        ({"index_shape": (3,)}, "shape=(2, 2), index_shape=(3,)"),
        ({"index_shape": (2, 2, 2)}, "shape=(2, 2), index_shape=(2, 2, 2)"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_heads": 3}, "hidden_dim=128, num_heads=3"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"label_dropout": 1.5, "num_classes": 2}, "label_dropout=1.5"),
        ({"label_dropout": 1, "num_classes": 2}, "label_dropout=1"),
        ({"label_dropout": 0.3}, "label_dropout=0.3"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_named_in_errors(kind, arguments, message):
    with pytest.raises(ValueError, match=re.escape(f"Received: {message}")):
        PRIORS[kind](**{"num_embeddings": 4, "shape": (2, 2), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"labels": 3}, "labels with [3]"),
        ({"labels": [0, 1]}, "labels of shape (2,) for 4 samples"),
        ({"labels": 0.5}, "labels of dtype float32"),
        ({"temperature": 0}, "temperature=0"),
        ({"top_k": 6}, "top_k=6"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"guidance_scale": -1}, "guidance_scale=-1"),
        ({"known": np.zeros((4, 1, 2, 3), int)}, "known of shape (4, 1, 2, 3)"),
        ({"known": np.zeros((3, *SHAPE), int)}, "known of shape (3, 2, 2, 3)"),
        ({"known": np.zeros(SHAPE, int)}, "known of shape (2, 2, 3)"),
        ({"known": np.full((4, *SHAPE), 5)}, "known with [5]"),
        ({"known": np.full((4, *SHAPE), -2)}, "known with [-2]"),
        # JAX has no int64, so this number would become 0.
        pytest.param({"known": np.full((4, *SHAPE), 2**32)}, "known with [4294967296]", marks=pytest.mark.each_backend),
        ({"known": np.zeros((4, *SHAPE))}, "known of dtype float"),
        ({"known": np.zeros((4, *SHAPE), bool)}, "known of dtype bool"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_invalid_arguments_of_generate_are_named_in_errors(prior, arguments, message):
    with pytest.raises(ValueError, match=re.escape(f"Received: {message}")):
        prior.generate(**{"num_samples": 4, **arguments})


def test_invalid_steps_are_named_in_errors(codes):
    prior = small("masked")
    for name in ("num_steps", "choice_temperature"):
        with pytest.raises(ValueError, match=f"Received: {name}=-1"):
            prior.generate(1, **{name: -1})


def test_invalid_codes_and_labels_are_refused(prior, kind, codes, labels):
    prior.compile(optimizer="sgd")
    for method in (prior.fit, prior.evaluate):
        with pytest.raises(ValueError, match=r"Received: codes with \[7\]"):
            method(np.where(codes == 4, 7, codes), labels)
        with pytest.raises(ValueError, match=re.escape("Received: codes of shape (7, 2, 2)")):
            method(codes[..., 0], labels)
        with pytest.raises(ValueError, match=r"Received: labels with \[3, 4\]"):
            method(codes, labels + 2)
        with pytest.raises(ValueError, match="Received: labels of shape"):
            method(codes, labels[:3])
    with pytest.raises(ValueError, match="Received: y=None"):
        prior.fit(codes, verbose=0)
    classless = PRIORS[kind](K, SHAPE, num_layers=1, num_heads=1, hidden_dim=4)
    with pytest.raises(ValueError, match=r"Received: labels of shape \(7,\), num_classes=None"):
        classless(((codes), labels))
    with pytest.raises(ValueError, match="Received: guidance_scale=2"):
        classless.generate(1, guidance_scale=2)


# These warnings come from the exporters.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_classes", [None, pytest.param(CLASSES, marks=pytest.mark.each_backend)])
def test_a_loaded_prior_is_exported(tmp_path, num_classes):
    """Exports to ONNX on PyTorch, which has no SavedModel."""
    small("masked", num_layers=1, num_classes=num_classes).save(tmp_path / "prior.keras")
    prior = keras.saving.load_model(tmp_path / "prior.keras")
    codes, labels = np.arange(LENGTH, dtype="int32").reshape(1, *SHAPE) % K, np.array([1], "int32")
    inputs = {"codes": codes} if num_classes is None else {"codes": codes, "labels": labels}
    if keras.backend.backend() == "torch":
        import onnxruntime

        prior.export(tmp_path / "prior.onnx", format="onnx", verbose=False, batch_size=1)
        (logits,) = onnxruntime.InferenceSession(tmp_path / "prior.onnx").run(None, inputs)
    else:
        import tensorflow as tf

        prior.export(str(tmp_path / "prior"), verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "prior"))
        logits = loaded.serve(codes if num_classes is None else [codes, labels]).numpy()
    expected = logits_of(prior, codes, None if num_classes is None else labels)
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=1e-5)


def test_samples_are_decoded_draws(kind, codes):
    encoder = keras.Sequential([keras.Input((2, 2, 2)), keras.layers.Identity()])
    quantizer = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(K), 3)
    decoder = keras.Sequential([keras.Input((2, 2, 2)), keras.layers.Dense(4)])
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    prior = small(kind, num_layers=1)
    new = model.sample(prior, 5, labels=1, temperature=2.0, seed=0, verbose=0)
    assert new.shape == (5, 2, 2, 4)
    drawn = prior.generate(5, 1, temperature=2.0, seed=0, verbose=0)
    np.testing.assert_array_equal(new, model.decode(drawn, verbose=0))
    for other, message in (
        (PRIORS[kind](K + 1, SHAPE, hidden_dim=4), "prior with num_embeddings=6, shape=(2, 2, 3)"),
        (PRIORS[kind](K, (2, 2), hidden_dim=4), "prior with num_embeddings=5, shape=(2, 2)"),
        (model, "prior=<VQVAE"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"Received: {message}")):
            model.sample(other, 1)
