"""Several processes of JAX train as one, and a run that lost one of them goes on where it was."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "distributed_jax.py"
EPOCHS = 8


def start(folder, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    program = [sys.executable, SCRIPT, "--epochs", EPOCHS, "--output", folder, *arguments]
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(list(map(str, program)), env=environment, stdout=log, stderr=log)


def start_two(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(folder, "--processes", 2, "--process", rank, "--coordinator", address) for rank in (0, 1)]


def assert_equal_weights(one, other):
    with np.load(one) as one, np.load(other) as other:
        assert len(one.files) == len(other.files) >= 17
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_that_lost_a_process_goes_on_to_the_numbers_of_one_that_did_not(tmp_path):
    folder = tmp_path / "two"
    processes = start_two(folder)
    deadline = time.monotonic() + 120
    while not (folder / "backup-0" / "training_metadata.json").exists():
        assert time.monotonic() < deadline, folder.with_suffix(".log").read_text()
        time.sleep(0.05)
    processes[0].kill()
    processes[0].wait()
    # An error, and no wait without end for what the other one would send.
    assert processes[1].wait(timeout=120) != 0
    assert not (folder / "weights-1.npz").exists()

    assert [process.wait(timeout=120) for process in start_two(folder)] == [0, 0], folder.with_suffix(
        ".log"
    ).read_text()
    printed = folder.with_suffix(".log").read_text()
    assert f"Epoch {EPOCHS}/{EPOCHS}" in printed
    assert printed.count("Epoch 1/") == 1
    # One process with two devices, and never stopped.
    assert start(tmp_path / "one", devices=2).wait(timeout=120) == 0
    assert_equal_weights(folder / "weights-0.npz", folder / "weights-1.npz")
    assert_equal_weights(folder / "weights-0.npz", tmp_path / "one" / "weights-0.npz")
