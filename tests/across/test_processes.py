"""Tests that several processes train as one, and that a JAX run resumes after it lost a process."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
EPOCHS = 8


def start(folder, *arguments, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    program = [sys.executable, EXAMPLES / "distributed_jax.py", "--epochs", EPOCHS, "--output", folder, *arguments]
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(list(map(str, program)), env=environment, stdout=log, stderr=log)


def start_two(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(folder, "--processes", 2, "--process", rank, "--coordinator", address) for rank in (0, 1)]


def assert_equal_weights(one, other):
    with np.load(one) as one, np.load(other) as other:
        assert len(one.files) == len(other.files) >= 16
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_resumed_after_losing_a_process_ends_like_an_uninterrupted_one(tmp_path):
    folder = tmp_path / "two"
    processes = start_two(folder)
    deadline = time.monotonic() + 120
    saved = [folder / f"backup-{rank}" / "training_metadata.json" for rank in (0, 1)]
    # Keras writes this file last, and not atomically: if a process ends meanwhile, the file may be empty.
    while not all(path.exists() and path.read_text().endswith("}") for path in saved):
        assert time.monotonic() < deadline, folder.with_suffix(".log").read_text()
        time.sleep(0.01)
    processes[0].kill()
    processes[0].wait()
    # The process must fail instead of waiting forever for the other one.
    assert processes[1].wait(timeout=120) != 0
    assert not (folder / "weights-1.npz").exists()

    assert [process.wait(timeout=120) for process in start_two(folder)] == [0, 0], folder.with_suffix(
        ".log"
    ).read_text()
    printed = folder.with_suffix(".log").read_text()
    assert f"Epoch {EPOCHS}/{EPOCHS}" in printed
    assert printed.count("Epoch 1/") == 1
    # The reference: one process with two devices that is never stopped.
    assert start(tmp_path / "one", devices=2).wait(timeout=120) == 0
    assert_equal_weights(folder / "weights-0.npz", folder / "weights-1.npz")
    assert_equal_weights(folder / "weights-0.npz", tmp_path / "one" / "weights-0.npz")


def test_processes_of_pytorch_train_as_one(tmp_path):
    def train(processes):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        # Dead codes move onto vectors of the first process's part of a batch, so one process would move them elsewhere.
        options = ["--dead-code-threshold", 0, "--epochs", 1, "--output", tmp_path / str(processes)]
        program = map(str, [*launch, EXAMPLES / "distributed_torch.py", *options])
        subprocess.run(program, env={**os.environ, "KERAS_BACKEND": "torch"}, check=True, timeout=120)

    train(2)
    assert_equal_weights(tmp_path / "2" / "weights-0.npz", tmp_path / "2" / "weights-1.npz")
    train(1)
    with np.load(tmp_path / "1" / "weights-0.npz") as one, np.load(tmp_path / "2" / "weights-0.npz") as two:
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6, err_msg=name)
