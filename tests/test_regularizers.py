import json

import keras
import numpy as np
import pytest
from gradients import gradients
from helpers import compiled
from keras import ops

import keras_vqvae
from keras_vqvae.backend import backend
from keras_vqvae.ops.entropy import entropy_loss


def direct(z, e, valid, weight, diversity, temperature, inner_product):
    """Computes the definition with all `N x K` soft assignments."""
    scores = ops.matmul(z, ops.transpose(e)) if inner_product else -ops.sum(ops.square(z[:, None] - e), -1)
    log_p = ops.log_softmax(scores / temperature, -1)
    p = ops.exp(log_p)
    shares = ops.convert_to_tensor((valid / valid.sum())[:, None].astype("float32"))
    mean = ops.sum(p * shares, 0)
    return weight * (-ops.sum(shares * p * log_p) + diversity * ops.sum(mean * ops.log(mean)))


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("block_scores", [1 << 20, pytest.param(40, marks=pytest.mark.each_backend), 1])
def test_computing_in_blocks_gives_the_same_value_and_gradients(rng, monkeypatch, block_scores, inner_product):
    monkeypatch.setattr(backend, "BLOCK_SCORES", block_scores)
    z, e = rng.normal(size=(19, 3)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")
    valid = rng.random(19) < 0.7
    regularizer = keras_vqvae.AssignmentEntropy(0.2, 0.7, 0.3)

    def blocked(z, e):
        if inner_product:
            return 0.2 * entropy_loss(z, e, ops.convert_to_tensor(valid), 0.7, 1 / 0.3)
        return regularizer(z, e, ops.convert_to_tensor(valid))

    def whole(z, e):
        return direct(z, e, valid, 0.2, 0.7, 0.3, inner_product)

    tensors = ops.convert_to_tensor(z), ops.convert_to_tensor(e)
    np.testing.assert_allclose(
        ops.convert_to_numpy(blocked(*tensors)), ops.convert_to_numpy(whole(*tensors)), atol=1e-6
    )
    for one, other in zip(gradients(blocked, z, e), gradients(whole, z, e), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_entropy_is_exact_far_from_the_origin(rng):
    z, e = rng.integers(-8, 9, size=(19, 3)) / 8, rng.integers(-8, 9, size=(8, 3)) / 8
    regularizer = keras_vqvae.AssignmentEntropy(1.0, 0.7, 0.3)

    def loss(z, e):
        return regularizer(z, e, ops.ones((19,), dtype="bool"))

    def all_of(offset):
        z_and_e = (z + offset).astype("float32"), (e + offset).astype("float32")
        return loss(*map(ops.convert_to_tensor, z_and_e)), *gradients(loss, *z_and_e)

    for one, other in zip(all_of(0), all_of(1024), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-5)


def test_the_entropy_spreads_vectors_over_the_codes(rng):
    """All vectors start nearest to one of sixteen codes. Descent on the second entropy makes them use other codes."""
    x = (0.1 * rng.normal(size=(64, 2))).astype("float32")

    def used(weight):
        regularizer = keras_vqvae.AssignmentEntropy(weight, diversity_weight=2.0, temperature=1.0)
        start = np.concatenate([np.zeros((1, 2)), 1 + rng.random(size=(15, 2))])
        layer = keras_vqvae.VectorQuantizer(
            16,
            codebook_weight=0,
            dead_code_threshold=0,
            assignment_regularizer=regularizer,
            embeddings_initializer=lambda shape, dtype: ops.convert_to_tensor(start, dtype=dtype),
        )
        model = keras.Sequential([keras.Input((2,)), layer])
        compiled(model, keras.optimizers.Adam(0.05), lambda y, y_pred: 0.0 * ops.mean(y_pred))
        for _ in range(60):
            model.train_on_batch(x, x)
        return len(np.unique(ops.convert_to_numpy(layer.encode(x))))

    assert used(0.0) == 1
    assert used(1.0) > 4


@pytest.mark.parametrize("keywords", [{"codebook_weight": 0}, {"ema_decay": 0.9}])
def test_a_custom_regularizer_has_the_gradient_of_the_codes_before_the_step(rng, keywords):
    """This holds even if the layer overwrites its codebook before the gradient is computed."""
    layer = keras_vqvae.VectorQuantizer(
        8,
        commitment_weight=0,
        assignment_regularizer=lambda vectors, codebook, valid: ops.mean(ops.matmul(vectors, ops.transpose(codebook))),
        seed=1,
        **keywords,
    )
    dense = keras.layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((4,)), dense, layer])
    compiled(model, keras.optimizers.SGD(1.0), lambda y, y_pred: 0.0 * ops.mean(y_pred), traced=False)
    x = rng.normal(size=(12, 4)).astype("float32")
    kernel, codebook = (ops.convert_to_numpy(variable).copy() for variable in (dense.kernel, layer.codebook))
    model.train_on_batch(x, x[:, :3])
    # For each `z_n`, the mean of all `z_n e_k` has the gradient `mean(e_k) / N`.
    expected = kernel - x.T @ np.tile(codebook.mean(0) / len(x), (len(x), 1))
    np.testing.assert_allclose(ops.convert_to_numpy(dense.kernel), expected, atol=1e-6)
    assert (ops.convert_to_numpy(layer.codebook) != codebook).any()


def test_the_config_survives_a_round_trip_within_a_layer():
    layer = keras_vqvae.VectorQuantizer(8, assignment_regularizer=keras_vqvae.AssignmentEntropy(0.3, 0.2, 0.1))
    # Only numbers and names.
    config = json.loads(json.dumps(layer.get_config()))
    again = keras_vqvae.VectorQuantizer.from_config(config)
    assert again.assignment_regularizer.get_config() == {"weight": 0.3, "diversity_weight": 0.2, "temperature": 0.1}


@pytest.mark.parametrize(("name", "value"), [("weight", -1), ("diversity_weight", None), ("temperature", 0)])
def test_wrong_arguments_are_named_in_errors(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        keras_vqvae.AssignmentEntropy(**{name: value})
