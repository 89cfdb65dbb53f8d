import keras
import numpy as np
import oracle
import pytest
from gradients import layer_gradients
from keras import layers, ops

import keras_vqvae


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 5, 4)).astype("float32")


def build(num_embeddings=6, dim=4, **keywords):
    layer = keras_vqvae.VectorQuantizer(num_embeddings, seed=3, **keywords)
    layer.build((None, dim))
    return layer, ops.convert_to_numpy(layer.codebook).copy()


def test_values_indices_and_losses_match_the_paper(x):
    layer, codebook = build(commitment_weight=0.5, codebook_weight=2.0)
    quantized, indices = layer(x, training=True, return_indices=True)
    expected = oracle.nearest_code(x, codebook)
    np.testing.assert_array_equal(ops.convert_to_numpy(indices), expected)
    np.testing.assert_array_equal(ops.convert_to_numpy(quantized), codebook[expected])
    commitment, learning = (ops.convert_to_numpy(loss) for loss in layer.losses)
    error = oracle.mean_square(x - codebook[expected])
    np.testing.assert_allclose([commitment, learning], [0.5 * error, 2.0 * error], rtol=1e-5)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_gradients_match_the_closed_form(x, rng, ema_decay):
    keywords = {"codebook_weight": 2.0} if ema_decay is None else {"ema_decay": ema_decay}
    layer, codebook = build(commitment_weight=0.5, **keywords)
    cotangent = rng.normal(size=x.shape).astype("float32")
    by_inputs, by_weights = layer_gradients(layer, x, cotangent)
    indices = oracle.nearest_code(x, codebook)
    pull = 2 / x.size * (x - codebook[indices])
    np.testing.assert_allclose(by_inputs, cotangent + 0.5 * pull, atol=1e-6)
    if ema_decay is None:
        (by_codebook,) = by_weights
        expected = -2.0 * oracle.one_hot(indices, 6).T @ pull.reshape(-1, 4)
        np.testing.assert_allclose(by_codebook, expected, atol=1e-6)
    else:
        assert by_weights == []


@pytest.mark.parametrize(("ema_decay", "owned"), [(None, ["codebook"]), (0.9, [])])
def test_the_codebook_is_trainable_only_without_ema_decay(ema_decay, owned):
    layer, _ = build(ema_decay=ema_decay)
    assert [weight.name for weight in layer.trainable_variables] == owned


@pytest.mark.each_backend
def test_trap_adam_is_right_if_a_code_occurs_twice(x):
    """On TensorFlow the gradient of a gather is a list of rows, and Adam is wrong if a row occurs twice."""
    layer, codebook = build(dead_code_threshold=0)
    model = keras.Sequential([keras.Input((5, 4)), layer])
    optimizer = keras.optimizers.Adam(0.1)
    model.compile(optimizer, lambda y, y_pred: 0.0 * ops.mean(y_pred))
    model.fit(x, x, batch_size=2, verbose=0)
    indices = oracle.nearest_code(x, codebook)
    assert np.bincount(indices.reshape(-1)).max() > 1
    gradient = -2 / x.size * oracle.one_hot(indices, 6).T @ (x - codebook[indices]).reshape(-1, 4)
    # Adam's first step: both moments are debiased, but Keras adds epsilon before that.
    expected = codebook - 0.1 * gradient / (np.abs(gradient) + optimizer.epsilon / (1 - optimizer.beta_2) ** 0.5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.codebook), expected, atol=1e-5)


@pytest.mark.each_backend
def test_trap_jax_keeps_what_call_writes_to_the_moving_average(rng):
    """JAX drops what `call` writes to trainable weights, so the moving average's codebook must not be trainable."""
    x = rng.normal(size=(40, 3)).astype("float32")
    layer, codebook = build(8, 3, ema_decay=0.8, dead_code_threshold=0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, kernel_initializer="identity"), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, x, batch_size=10, epochs=2, shuffle=False, verbose=0)
    expected = oracle.MovingAverage(codebook, 0.8)
    for batch in np.concatenate([x, x]).reshape(8, 10, 3):
        expected.update(batch)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.codebook), expected.codebook, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.ema_counts), expected.counts, rtol=1e-4)


@pytest.mark.each_backend
def test_dead_codes_are_replaced_by_vectors_of_the_batch(rng):
    x = rng.normal(size=(50, 3)).astype("float32")
    layer, _ = build(8, 3, ema_decay=0.9, embeddings_initializer=keras.initializers.Constant(100.0))
    layer(x, training=True)
    codebook = ops.convert_to_numpy(layer.codebook)
    # All codes tie, so the first one takes every vector and moves to their mean. The other seven are dead.
    np.testing.assert_allclose(codebook[0], x.mean(0), atol=1e-4)
    for code in codebook[1:]:
        assert (code == x).all(-1).any()
    # A tenth of uniform usage, which is (1 - decay) * 50 / 8. The first decay is that of ten vectors per code.
    np.testing.assert_allclose(ops.convert_to_numpy(layer.ema_counts)[1:], 0.1 * (50 / 80) * 50 / 8, rtol=1e-5)


def test_dead_codes_never_move_onto_masked_vectors(rng):
    x = rng.normal(size=(4, 10, 3)).astype("float32")
    mask = rng.random((4, 10)) < 0.5
    x[~mask] = 77
    layer, _ = build(16, 3, ema_decay=0.9)
    for _ in range(3):
        layer(x, mask=ops.convert_to_tensor(mask), training=True)
    assert (ops.convert_to_numpy(layer.codebook) < 50).all()


@pytest.mark.parametrize("repeats", [1, 8])
def test_revival_does_not_depend_on_the_batch_size(rng, repeats):
    x = rng.normal(size=(64, 3)).astype("float32")
    layer, before = build(8, 3, ema_decay=0.9)
    before[[2, 5]] = 100
    layer.set_codebook(before)
    dead = np.bincount(oracle.nearest_code(x, before), minlength=8) == 0
    assert dead[[2, 5]].all()
    layer(np.tile(x, (repeats, 1)), training=True)
    just_alive = 0.1 * min(64 * repeats / 80, 1) * 64 * repeats / 8
    np.testing.assert_array_equal(np.isclose(ops.convert_to_numpy(layer.ema_counts), just_alive), dead)


@pytest.mark.each_backend
def test_trap_dead_codes_draw_different_vectors_in_every_step(rng):
    """`keras.random` draws the same numbers at every step if it gets an integer seed."""
    x = rng.normal(size=(64, 3)).astype("float32")
    layer = keras_vqvae.VectorQuantizer(4, ema_decay=0.9, embeddings_initializer=keras.initializers.Constant(100.0))
    layer(x, training=True)
    first = ops.convert_to_numpy(layer.codebook)[1:].copy()
    layer.set_codebook(np.full((4, 3), 100.0))
    layer.ema_counts.assign(np.zeros(4))
    layer(x, training=True)
    assert (ops.convert_to_numpy(layer.codebook)[1:] != first).any()


def test_default_codes_have_norm_1():
    _, codebook = build(2000, 64)
    assert abs(np.linalg.norm(codebook, axis=-1).mean() - 1) < 0.01
    np.testing.assert_array_equal(build(2000, 64)[1], codebook)


@pytest.mark.each_backend
def test_trap_autocast_does_not_round_the_codebook(rng):
    """Within `call`, autocast casts weights to bfloat16, where 1.0 + 1e-4 is 1.0."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer, _ = build(2, 1)
    layer.set_codebook([[1.0], [1.0001]])
    by_hand = keras_vqvae.nearest_code(np.array([[1.0001]], "float32"), layer.codebook)
    assert int(by_hand[0]) == 1

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def call(self, inputs):
            return ops.cast(self.layer.lookup(ops.cast(ops.sum(inputs * 0, -1) + 1, "int32")), "float32")

    assert Model()(np.zeros((1, 1)))[0, 0] == np.float32(1.0001)


@pytest.mark.each_backend
def test_trap_float16_squares_overflow(rng):
    keras.config.set_dtype_policy("mixed_float16")
    layer, _ = build(2, 64)
    codebook = np.stack([np.full(64, 100), np.full(64, -100)]).astype("float32")
    layer.set_codebook(codebook)
    quantized, indices = layer(np.concatenate([codebook, -codebook]).astype("float16"), return_indices=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(indices), [0, 1, 1, 0])
    assert np.isfinite(ops.convert_to_numpy(quantized)).all()
    layer(np.full((2, 64), 90, "float16"), training=True)
    np.testing.assert_allclose([ops.convert_to_numpy(loss) for loss in layer.losses], [25, 100])


@pytest.mark.each_backend
def test_trap_added_losses_are_float32_under_float16_training(x):
    """TensorFlow cannot add float16 and float32 losses."""
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((5, 4))
    quantizer = keras_vqvae.VectorQuantizer(6)
    model = keras.Model(inputs, layers.Dense(1, dtype="float32")(quantizer(quantizer(inputs))))
    model.compile("sgd", "mse")
    model.fit(x, x[..., :1], verbose=0)


def test_trap_a_layer_called_twice_adds_its_losses_twice(x):
    inputs = keras.Input((5, 4))
    quantizer = keras_vqvae.VectorQuantizer(6)
    model = keras.Model(inputs, [quantizer(inputs), quantizer(2 * inputs)])
    model(x, training=True)
    assert len(model.losses) == 4


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "num_embeddings": [0, -1, 2.5, "8", None, True],
        "embedding_dim": [0, -1, 2.5, "8", True],
        "commitment_weight": [-0.1, float("nan"), float("inf"), "1", None],
        "codebook_weight": [-0.1, float("nan"), None],
        "ema_decay": [0, 1, 1.5, -0.1, float("nan"), "0.9", True],
        "estimator": ["rotate", 3, None],
        "dead_code_threshold": [-1, float("nan"), None],
        "distance": ["l1", None],
        "assignment_regularizer": ["l2", 3, keras.regularizers.L2(), lambda codebook: 0.0],
    }.items(),
)
def test_wrong_arguments_are_named_in_errors(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
            keras_vqvae.VectorQuantizer(**{name: value})


@pytest.mark.parametrize(
    ("keywords", "length"),
    [
        ({}, 1),
        ({"ema_decay": 0.9}, 1 / 4),
        ({"estimator": "rotation"}, 1 / 8),
        ({"estimator": keras_vqvae.rotation, "ema_decay": 0.9}, 1 / 8),
    ],
)
def test_initial_codes_have_the_documented_norm(keywords, length):
    """With the rotation, the initial norm is `sqrt(D / K) / 4`."""
    _, codebook = build(256, 64, **keywords)
    np.testing.assert_allclose(np.sqrt(np.square(codebook).sum(-1).mean()), length, rtol=0.03)


def test_wrong_initializers_and_keywords_are_named_in_errors():
    with pytest.raises(ValueError, match="nonsense"):
        keras_vqvae.VectorQuantizer(embeddings_initializer="nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        keras_vqvae.VectorQuantizer(nonsense=1)


def test_an_embedding_dim_unlike_the_inputs_is_an_error():
    with pytest.raises(ValueError, match="Received: embedding_dim=3, input_shape"):
        keras_vqvae.VectorQuantizer(8, embedding_dim=3)(np.zeros((2, 4), "float32"))
    layer = keras_vqvae.VectorQuantizer(8)
    layer(np.zeros((2, 4), "float32"))
    assert layer.embedding_dim == 4


@keras.saving.register_keras_serializable(package="tests")
def no_gradient(z_e, z_q):
    return ops.stop_gradient(z_q)


def test_an_estimator_can_be_a_function(x, tmp_path):
    layer, _ = build(estimator=no_gradient, commitment_weight=0)
    by_inputs, _ = layer_gradients(layer, x, np.ones_like(x))
    np.testing.assert_array_equal(by_inputs, 0)
    assert keras_vqvae.VectorQuantizer.from_config(layer.get_config()).estimator is no_gradient
    model = keras.Sequential([keras.Input((5, 4)), layer])
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").layers[0].estimator is no_gradient
