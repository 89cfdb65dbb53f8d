"""Several replicas learn what one learns from the whole batch, or say that they cannot."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

SCRIPT = pathlib.Path(__file__).with_name("replicas.py")


def start(*arguments):
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], env=environment)


def test_trap_replicas_do_not_drift_apart(tmp_path):
    alone = start(tmp_path / "alone.npz")
    replicas = [start(tmp_path / f"{rank}.npz", rank, tmp_path / "store") for rank in (0, 1)]
    # The last one is killed at the end, which is an error in the other.
    assert [process.wait(timeout=120) for process in (alone, *replicas)] == [0, 0, -signal.SIGKILL]
    alone = np.load(tmp_path / "alone.npz")
    first = np.load(tmp_path / "0.npz")
    other = np.load(tmp_path / "1.npz")
    for key in alone:
        np.testing.assert_array_equal(other[key], first[key], err_msg=key)
    for key in alone:
        # Where dead codes move is drawn from another part of the batch.
        if not key.endswith("-0.1"):
            np.testing.assert_allclose(first[key], alone[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert (first["codebook-0"][3:6] == 100).all()
    assert (first["codebook-0.1"][3:6] < 50).all()


def test_trap_tensorflow_replicas_are_refused():
    program = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, keras_vqvae, numpy as np
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.Input((4,)), keras_vqvae.VectorQuantizer(8)])
    model.compile("sgd", "mse")
x = np.zeros((8, 4))
model.predict(x, verbose=0)
try:
    model.fit(x, x, verbose=0)
except NotImplementedError as error:
    assert "a strategy of 2 replicas" in str(error), error
else:
    raise AssertionError("trained")
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "KERAS_BACKEND": "tensorflow"}, check=True)
