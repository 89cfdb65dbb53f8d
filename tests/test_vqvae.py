import helpers
import keras
import numpy as np
import oracle
import pytest
from helpers import numpy
from keras import layers

import keras_vqvae
from keras_vqvae.models.reconstruction import RAMP, WEIGHT


@pytest.fixture
def x(rng):
    return rng.normal(size=(20, 8)).astype("float32")


def make(compiled=True, **keywords):
    encoder, decoder = keras_vqvae.build(8, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1, **keywords), decoder)
    if compiled:
        model.build((None, 8))
        helpers.compiled(model, keras.optimizers.Adam(0.01))
    return model


LOGS = [
    *("bits_per_index", "bits_per_sample", "codebook_usage", "commitment_loss", "explained_variance", "loss"),
    *("perplexity", "quantizer_loss", "reconstruction_loss"),
]


def expected_logs(model, x, commitment_weight=0.25, codebook_weight=1.0, training=False):
    z_e = numpy(model.encoder(x))
    codebook = numpy(model.quantizer.codebook)
    indices = oracle.nearest_code(z_e, codebook)
    distance = oracle.mean_square(z_e - codebook[indices])
    quantizer_loss = (commitment_weight + codebook_weight) * distance
    reconstruction_loss = oracle.mean_square(numpy(model.decoder(codebook[indices])) - x)
    variance, perplexity = x.var(0).mean(), oracle.perplexity(indices, 16)
    explained = 1 - reconstruction_loss / variance
    # In training, the commitment loss ramps up until a tenth of the variance is explained.
    withheld = (1 - np.clip(explained / RAMP, 0, 1)) * commitment_weight * distance if training else 0.0
    return {
        "loss": WEIGHT * (x.shape[1] / z_e.shape[1]) * reconstruction_loss / variance + quantizer_loss - withheld,
        "reconstruction_loss": reconstruction_loss,
        "explained_variance": explained,
        "bits_per_index": np.log2(perplexity),
        "bits_per_sample": np.log2(perplexity),
        "quantizer_loss": quantizer_loss,
        "commitment_loss": commitment_weight * distance,
        **({"codebook_loss": codebook_weight * distance} if codebook_weight else {}),
        "perplexity": perplexity,
        "codebook_usage": len(np.unique(indices)) / 16,
    }


@pytest.mark.parametrize("ema_decay", [None, pytest.param(0.9, marks=pytest.mark.each_backend)])
def test_logs_of_fit_and_evaluate_match_the_paper(x, ema_decay):
    model = make(ema_decay=ema_decay, dead_code_threshold=0)
    weight = 1.0 if ema_decay is None else 0.0
    model.build(x.shape)
    expected = expected_logs(model, x, codebook_weight=weight, training=True)
    # One step over all samples, so the logs are those of the initial weights.
    history = model.fit(x, batch_size=20, epochs=1, verbose=0).history
    assert sorted(history) == sorted(expected)
    for name, (value,) in history.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, err_msg=name)
    # Batches of 8, 8 and 4.
    expected = expected_logs(model, x, codebook_weight=weight)
    result = model.evaluate(x, batch_size=8, verbose=0, return_dict=True)
    for name, value in result.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, err_msg=name)


def test_metrics_are_reset_every_epoch(x):
    model = make(ema_decay=0.9)
    model.fit(x, batch_size=5, epochs=2, verbose=0)
    (counted,) = (metric for metric in model.metrics if metric.name == "codebooks")
    assert numpy(counted.counts).sum() == len(x)


def test_training_lowers_the_error(x):
    # Not built before `fit`, as in users' code.
    model = make(compiled=False, ema_decay=0.9)
    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(x, batch_size=20, epochs=60, verbose=0, validation_data=(x,)).history
    assert sorted(history) == sorted([*LOGS, *(f"val_{name}" for name in LOGS)])
    assert history["reconstruction_loss"][-1] < 0.7 * history["reconstruction_loss"][0]
    assert history["val_codebook_usage"][-1] > 0.5


def test_evaluate_and_predict_change_no_weight(x):
    model = make(ema_decay=0.9)
    model.fit(x, epochs=1, verbose=0)
    before = [numpy(weight).copy() for weight in model.weights]
    model.evaluate(x, verbose=0)
    model.predict(x, verbose=0)
    model.decode(model.encode(x, verbose=0), verbose=0)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(new), old)


@pytest.mark.each_backend
def test_encode_followed_by_decode_equals_predict(x):
    model = make()
    codes = model.encode(x, batch_size=8, verbose=0)
    assert isinstance(codes, np.ndarray)
    assert codes.dtype == "int32"
    np.testing.assert_array_equal(codes, numpy(model.quantizer.encode(model.encoder(x))))
    np.testing.assert_allclose(
        model.decode(codes, batch_size=8, verbose=0), model.predict(x, batch_size=8, verbose=0), atol=1e-6
    )


def test_encode_follows_the_weights(x):
    model = make()
    before = model.encode(x, verbose=0)
    model.quantizer.set_codebook(-numpy(model.quantizer.codebook))
    after = model.encode(x, verbose=0)
    assert (before != after).any()
    np.testing.assert_array_equal(after, numpy(model.quantizer.encode(model.encoder(x))))


@pytest.mark.parametrize("bad", [-1, 16])
def test_codes_outside_the_codebook_are_errors(x, bad):
    model = make()
    model(x)
    with pytest.raises(ValueError, match=rf"codes.*Received: codes with \[{bad}\]"):
        model.decode(np.array([0, bad]))


def test_the_reconstruction_is_compared_with_given_targets(x):
    model = make()
    model.build(x.shape)
    y = x[:, ::-1] * 3
    predicted = model.predict(x, verbose=0)
    result = model.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["reconstruction_loss"], oracle.mean_square(predicted - y), rtol=1e-4)
    model.fit(x, y, epochs=1, verbose=0)


def test_another_loss_and_additional_metrics_are_logged(x):
    model = make(compiled=False)
    model.compile("sgd", loss="mae", metrics=["mse"])
    predicted = model.predict(x, verbose=0)
    result = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["reconstruction_loss"], np.abs(predicted - x).mean(), rtol=1e-4)
    assert "loss" in result
    flat = {**result, **result.pop("compile_metrics", {})}
    np.testing.assert_allclose(flat["mse"], oracle.mean_square(predicted - x), rtol=1e-4)


def test_sample_weights_apply_to_the_reconstruction_loss(x):
    model = make()
    predicted = model.predict(x, verbose=0)
    weight = np.linspace(0, 2, len(x)).astype("float32")
    model.compile("sgd")
    expected = (np.square(predicted - x).mean(-1) * weight).mean()
    # Keras drops the sample weights of data without targets.
    for targets in ((x,), ()):
        result = model.evaluate(x, *targets, sample_weight=weight, batch_size=20, verbose=0, return_dict=True)
        np.testing.assert_allclose(result["reconstruction_loss"], expected, rtol=1e-4)
    history = model.fit(x, sample_weight=weight, batch_size=20, verbose=0).history
    np.testing.assert_allclose(history["reconstruction_loss"], expected, rtol=1e-4)


@pytest.mark.each_backend
def test_saving_needs_no_custom_objects_and_training_continues(x, tmp_path):
    model = make(ema_decay=0.9)
    model.fit(x, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(x, verbose=0), model.encode(x, verbose=0))
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations)
    loaded.fit(x, epochs=1, verbose=0)


def test_weights_survive_a_weights_file(x, tmp_path):
    model, other = make(ema_decay=0.9), make(compiled=False, ema_decay=0.9)
    model.fit(x, epochs=2, verbose=0)
    model.encode(x, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other(x)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_vqvae_can_be_part_of_a_functional_model(x):
    model = make()
    inputs = keras.Input((8,))
    whole = keras.Model(inputs, layers.Dense(2)(model(inputs)))
    assert whole.output_shape == (None, 2)
    whole.compile("sgd", "mse")
    whole.fit(x, x[:, :2], verbose=0)
    whole(x, training=True)
    assert len(whole.losses) == 2


def test_train_and_test_on_batch_return_all_logs(x):
    model = make()
    assert set(model.train_on_batch(x, return_dict=True)) == {*LOGS, "codebook_loss"}
    assert set(model.test_on_batch(x, return_dict=True)) == {*LOGS, "codebook_loss"}


@pytest.mark.each_backend
def test_trap_sublayers_have_no_losses_on_jax_within_compute_loss(x):
    """`quantizer_loss` belongs to the quantizer only. Regularizers elsewhere count only in `loss`."""
    encoder = keras.Sequential([keras.Input((8,)), layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))])
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(8)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), decoder)
    model.compile("sgd")
    model(x)
    expected, in_training = expected_logs(model, x), expected_logs(model, x, training=True)
    regularizer = 0.1 * np.square(numpy(encoder.layers[0].kernel)).sum()
    for result, loss in (
        (model.evaluate(x, batch_size=20, verbose=0, return_dict=True), expected["loss"]),
        (
            {name: values[0] for name, values in model.fit(x, batch_size=20, verbose=0).history.items()},
            in_training["loss"],
        ),
    ):
        np.testing.assert_allclose(result["quantizer_loss"], expected["quantizer_loss"], rtol=1e-4)
        np.testing.assert_allclose(result["reconstruction_loss"], expected["reconstruction_loss"], rtol=1e-4)
        np.testing.assert_allclose(result["loss"], loss + regularizer, rtol=1e-4)


@pytest.mark.each_backend(slow=True)
def test_masked_positions_do_not_count_in_logs(rng):
    x = rng.normal(size=(6, 5, 4)).astype("float32")
    x[:, 3:] = 0
    encoder = keras.Sequential([layers.Masking(), layers.Dense(3)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), layers.Dense(4))
    model.compile("sgd")
    z_e = numpy(model.encoder(x))[:, :3]
    model(x)
    codebook = numpy(model.quantizer.codebook)
    indices = oracle.nearest_code(z_e, codebook)
    result = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["perplexity"], oracle.perplexity(indices, 16), rtol=1e-5)
    np.testing.assert_allclose(result["quantizer_loss"], 1.25 * oracle.mean_square(z_e - codebook[indices]), rtol=1e-4)
    # It would compare the error of the unmasked positions with the variance of all.
    assert "explained_variance" not in result
    model.fit(x, verbose=0)


def test_a_model_is_built_at_once_if_the_encoder_has_an_input_shape(x, tmp_path):
    model = make(compiled=False)
    model.compile("adam")
    assert model.built
    lines = []
    model.summary(print_fn=lambda line: lines.append(line))
    assert "?" not in "".join(lines)
    assert f"{sum(np.prod(w.shape) for w in model.weights):.0f}" in "".join(lines)
    # Keras reads the weights before the first step.
    model.fit(x, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])


def test_tokenizer_and_detokenizer_are_functional_models_over_its_layers(x, tmp_path):
    model = make()
    assert model.layers == [model.encoder, model.quantizer, model.decoder]
    model.fit(x, verbose=0)
    codes = model.encode(x, verbose=0)
    np.testing.assert_array_equal(numpy(model.tokenizer(x)), codes)
    reconstructions = model.decode(codes, verbose=0)
    np.testing.assert_allclose(numpy(model.detokenizer(codes)), reconstructions, atol=1e-6)
    for name, data, expected in (("tokenizer", x, codes), ("detokenizer", codes, reconstructions)):
        getattr(model, name).save(tmp_path / f"{name}.keras")
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        np.testing.assert_allclose(loaded.predict(data, verbose=0), expected, atol=1e-6)


# Keras with JAX 0.12 warns about NumPy's integers.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
def test_encoders_can_have_several_inputs(x):
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((1,), dtype="int32", name="b")}
    embedded = layers.Flatten()(layers.Embedding(4, 2)(inputs["b"]))
    encoder = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([inputs["a"], embedded])))
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(8)])
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, seed=1), decoder)
    data = {"a": x, "b": np.arange(20)[:, None] % 4}
    model.compile()
    model.fit(data, x, verbose=0)
    np.testing.assert_array_equal(model.encode(data, verbose=0), numpy(model.quantizer.encode(encoder(data))))


def data_sets(x):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return (x[5 * index : 5 * index + 5],)

    yield Batches()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        yield tf.data.Dataset.from_tensor_slices((x,)).batch(5)
    if keras.backend.backend() == "torch":
        import torch

        yield torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(x)), batch_size=5)


@pytest.mark.each_backend
def test_data_can_be_given_in_every_form(x):
    model = make()
    codes = model.encode(x, verbose=0)
    expected = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)
    for data in data_sets(x):
        np.testing.assert_array_equal(model.encode(data, verbose=0), codes)
        for name, value in model.evaluate(data, verbose=0, return_dict=True).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5)
        # A model that has seen no sample is built by the first ones.
        unbuilt = keras_vqvae.VQVAE(layers.Dense(3), keras_vqvae.VectorQuantizer(16), layers.Dense(8))
        assert unbuilt.encode(data, verbose=0).shape == (20,)


def test_using_an_unbuilt_model_is_an_error(x):
    model = keras_vqvae.VQVAE(layers.Dense(3), keras_vqvae.VectorQuantizer(16), layers.Dense(8))
    for use in (lambda: model.tokenizer, lambda: model.detokenizer, lambda: model.encode(iter([x]), verbose=0)):
        with pytest.raises(ValueError, match="must be built.*Received: built=False"):
            use()


def test_subclassed_parts_need_no_shapes(x):
    class Part(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.dense = layers.Dense(size)

        def call(self, inputs):
            return self.dense(inputs)

    model = keras_vqvae.VQVAE(Part(3), keras_vqvae.VectorQuantizer(16), Part(8))
    model.compile()
    model.fit(x, verbose=0)
    assert model.encode(x, verbose=0).shape == (20,)
    assert model.predict(x, verbose=0).shape == (20, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_data_without_finite_vectors_do_not_change_the_codebook(x, ema_decay, bad):
    # No activation in between: on a CPU, XLA may compile `relu` so that NaN becomes 0.
    quantizer = keras_vqvae.VectorQuantizer(16, ema_decay=ema_decay)
    model = keras_vqvae.VQVAE(layers.Identity(), quantizer, layers.Dense(8))
    model.build(x.shape)
    helpers.compiled(model, keras.optimizers.Adam(0.01))
    before = numpy(quantizer.codebook).copy()
    model.fit(np.full_like(x, bad), verbose=0)
    np.testing.assert_array_equal(numpy(quantizer.codebook), before)
    np.testing.assert_array_equal(numpy(quantizer.code_counts), 0)


@pytest.mark.parametrize("name", ["encoder", "quantizer", "decoder"])
def test_wrong_parts_are_named_in_errors(name):
    parts = {"encoder": layers.Dense(3), "quantizer": keras_vqvae.VectorQuantizer(8), "decoder": layers.Dense(8)}
    with pytest.raises(ValueError, match=f"`{name}` must be a .*Received: {name}="):
        keras_vqvae.VQVAE(**{**parts, name: "part"})
    with pytest.raises(ValueError, match="`quantizer` must be a quantizer, such as `VectorQuantizer`"):
        keras_vqvae.VQVAE(**{**parts, "quantizer": layers.Dense(3)})


@pytest.mark.parametrize(
    ("quantizer", "names"),
    [
        (
            keras_vqvae.VectorQuantizer(16, assignment_regularizer=keras_vqvae.AssignmentEntropy()),
            {"codebook_loss", "assignment_loss"},
        ),
        (keras_vqvae.LookupFreeQuantizer(3, entropy_weight=0.1), {"entropy_loss"}),
        (
            keras_vqvae.IndexBackpropagationQuantizer(16, entropy_weight=0.1),
            {"codebook_loss", "entropy_loss", "output_loss"},
        ),
    ],
)
def test_each_loss_of_the_quantizer_has_its_log(x, quantizer, names):
    encoder, decoder = keras_vqvae.build(8, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
    model = helpers.compiled(keras_vqvae.VQVAE(encoder, quantizer, decoder), "sgd", traced=False)
    logs = model.test_on_batch(x, return_dict=True)
    assert logs.keys() == names | set(LOGS)
    parts = [logs[name] for name in names | {"commitment_loss"}]
    np.testing.assert_allclose(logs["quantizer_loss"], sum(parts), rtol=1e-5)


def test_a_gumbel_quantizer_has_only_the_log_of_its_divergence(x):
    encoder, decoder = keras_vqvae.build(8, embedding_dim=3, encoder_sizes=(6,), decoder_sizes=(6,))
    quantizer = keras_vqvae.GumbelQuantizer(16, kl_weight=0.1)
    model = helpers.compiled(keras_vqvae.VQVAE(encoder, quantizer, decoder), "sgd", traced=False)
    logs = model.test_on_batch(x, return_dict=True)
    np.testing.assert_allclose(logs["kl_loss"], logs["quantizer_loss"], rtol=1e-6)
