"""Tests that several replicas learn what one learns from the whole batch, or raise an error."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow
SCRIPT = pathlib.Path(__file__).with_name("replicas.py")


def start(*arguments):
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], env=environment)


def test_trap_replicas_do_not_drift_apart(tmp_path):
    alone = start(tmp_path / "alone.npz")
    replicas = [start(tmp_path / f"{rank}.npz", rank, tmp_path / "store") for rank in (0, 1)]
    # The last process is killed at the end, which is an error in the other.
    assert [process.wait(timeout=120) for process in (alone, *replicas)] == [0, 0, -signal.SIGKILL]
    alone = np.load(tmp_path / "alone.npz")
    first = np.load(tmp_path / "0.npz")
    other = np.load(tmp_path / "1.npz")
    for key in alone:
        np.testing.assert_array_equal(other[key], first[key], err_msg=key)
    for key in alone:
        # Replacements for dead codes are drawn from another part of the batch.
        if not key.endswith("-0.1"):
            np.testing.assert_allclose(first[key], alone[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert (first["codebook-0"][3:6] == 100).all()
    assert (first["codebook-0.1"][3:6] < 50).all()


def test_trap_inference_in_one_process_needs_no_other(tmp_path):
    arguments = [tmp_path / "store", tmp_path]
    script = [sys.executable, SCRIPT.with_name("alone.py")]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    with subprocess.Popen([*script, "1", *arguments], env=environment, stdin=subprocess.PIPE) as other:
        alone = subprocess.run([*script, "0", *arguments], env=environment, timeout=120, check=False)
        other.communicate()
    assert alone.returncode == other.returncode == 0


def test_trap_tensorflow_replicas_take_turns_where_they_exchange():
    subprocess.run(
        [sys.executable, SCRIPT.with_name("mirrored.py")], env={**os.environ, "KERAS_BACKEND": "tensorflow"}, check=True
    )
