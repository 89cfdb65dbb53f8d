"""Checks that two replicas of TensorFlow's `MirroredStrategy` learn what one learns, or raise an error."""
# ruff: noqa: E402

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
import numpy as np
import pytest

import keras_vqvae
from keras_vqvae.backend import backend

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
# One strategy each: two strategies over the same devices mix up TensorFlow's collectives.
ALONE, BOTH = (tf.distribute.MirroredStrategy(devices) for devices in (["CPU:0"], ["CPU:0", "CPU:1"]))


def with_discriminator(encoder, quantizer, decoder):
    parts = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    return keras_vqvae.VQGAN(encoder, quantizer, decoder, keras.Sequential(parts), start_step=1)


def spectral_and_perceptual():
    features = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
    # With the default floor, logarithms of small magnitudes would amplify rounding.
    spectral = keras_vqvae.SpectralLoss((4,), floor=0.1)
    return keras_vqvae.LossSum([spectral, keras_vqvae.PerceptualLoss(features)])


def train(make, data, strategy, make_model=keras_vqvae.VQVAE, make_loss=lambda: "normalized_mse"):
    """Returns the model, each replica's variables, and the logs of training and evaluation."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        encoder, decoder = keras_vqvae.build(4, embedding_dim=2, encoder_sizes=(4,), decoder_sizes=(4,))
        model = make_model(encoder, make(), decoder)
        # Keras itself divides this loss by the number of replicas.
        model.encoder.layers[-1].activity_regularizer = keras.regularizers.L2(0.1)
        model.compile(keras.optimizers.SGD(0.1), make_loss())
    history = model.fit(data, batch_size=16, shuffle=False, verbose=0).history
    logs = {name: values[-1] for name, values in history.items()}
    logs |= {f"val_{name}": value for name, value in model.evaluate(data, verbose=0, return_dict=True).items()}
    replicas = [
        {variable.path: np.asarray(variable.value.values[replica]) for variable in model.variables}
        for replica in range(strategy.num_replicas_in_sync)
    ]
    return model, replicas, logs


def vectors(**keywords):
    return keras_vqvae.VectorQuantizer(16, ema_decay=0.9, seed=0, **keywords)


for make, settings in (
    (lambda: keras_vqvae.ResidualQuantizer(vectors(dead_code_threshold=0), 2), {}),
    (lambda: keras_vqvae.VectorQuantizer(16, dead_code_threshold=0, seed=0), {}),
    (lambda: vectors(dead_code_threshold=0), {"make_model": with_discriminator}),
    (lambda: vectors(dead_code_threshold=0), {"make_loss": spectral_and_perceptual}),
):
    _, (alone,), expected = train(make, x, ALONE, **settings)
    _, (first, other), logs = train(make, x, BOTH, **settings)
    assert logs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    for value, one, two in zip(alone.values(), first.values(), other.values(), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, value, rtol=1e-5, atol=1e-6)


def exchange():
    own = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, "float32") + 5
    # The values of other replicas must be ignored, even NaN.
    return backend.of_first_replica(tf.where(own > 5, float("nan"), own)), backend.sum_over_replicas(own)


assert [tuple(map(float, BOTH.experimental_local_results(each))) for each in BOTH.run(exchange)] == [(5, 5), (11, 11)]

# A prior's mean over codes is over all replicas, and sampling works within their scope.
results = []
for strategy in (ALONE, BOTH):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        prior = keras_vqvae.AutoregressivePrior(6, (5,), num_layers=1, num_heads=1, hidden_dim=8, dropout=0.0)
        prior.compile(keras.optimizers.SGD(0.1))
    codes = np.random.default_rng(0).integers(0, 6, (64, 5))
    logs = prior.fit(codes, batch_size=16, shuffle=False, verbose=0).history
    with strategy.scope():
        draws = prior.generate(9, seed=0, verbose=0)
    results.append([*logs.values(), *prior.get_weights(), draws])
for one, other in zip(*results, strict=True):
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)

# Replacements for dead codes are drawn from a replica's part of the batch. The last batch has one sample.
model, (first, other), _ = train(vectors, x[:49], BOTH)
for path, value in first.items():
    np.testing.assert_array_equal(value, other[path], err_msg=path)
assert model.decode(model.encode(x, verbose=0), verbose=0).shape == x.shape

# Outside of a step all replicas hold the same values.
with BOTH.scope():
    layer = keras_vqvae.LookupFreeQuantizer(4)
    layer(x)
    assert np.isfinite(sum(layer.losses))
with pytest.raises(NotImplementedError, match="Entropy losses .* a strategy of 2 replicas"):
    train(lambda: keras_vqvae.LookupFreeQuantizer(2), x, BOTH)
with BOTH.scope():
    model = keras.Sequential([keras.Input((4,)), vectors()])
    model.compile("sgd", "mse")
model.predict(x, verbose=0)
with pytest.raises(NotImplementedError, match=r"only `VQVAE.fit`.* a strategy of 2 replicas"):
    model.fit(x, x, verbose=0)
