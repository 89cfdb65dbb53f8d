"""Tests that all backends compute the same results, and that each reads another's files."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from quantizers import DRAW_OUTPUTS, EVERY, NO_LOSSES
from worker import WRITERS

WORKER = pathlib.Path(__file__).with_name("worker.py")
BACKENDS = tuple(WRITERS)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Runs a phase on one backend after the other, each in a process that stays alive between phases."""
    folder, workers = tmp_path_factory.mktemp("across"), {}
    for backend in BACKENDS:
        environment = {**os.environ, "KERAS_BACKEND": backend}
        workers[backend] = subprocess.Popen(
            [sys.executable, WORKER, folder], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(phase):
        found = {}
        for backend, worker in workers.items():
            worker.stdin.write(f"{phase}\n")
            worker.stdin.flush()
            assert any(line == f"done {phase}\n" for line in worker.stdout), worker.wait()
            with np.load(folder / f"{phase}-{backend}.npz") as file:
                found[backend] = dict(file)
        return found

    yield run
    for worker in workers.values():
        worker.communicate()


@pytest.fixture(scope="session")
def trained(run):
    return run("train")


@pytest.fixture(scope="session")
def loaded(run, trained):
    return run("load")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_step_is_the_same(trained, name, backend):
    keys = {key for key in trained["jax"] if key.startswith(f"{name}/") and not key.endswith("/codes")}
    assert keys == {key for key in trained[backend] if key.startswith(f"{name}/") and not key.endswith("/codes")}
    expected = {"quantized", "indices"}
    if name not in DRAW_OUTPUTS:
        expected |= {"by_inputs"} if name in NO_LOSSES else {"by_inputs", "loss_0"}
    assert {f"{name}/{key}" for key in expected} <= keys
    for key in sorted(keys):
        reference, value = trained["jax"][key], trained[backend][key]
        if value.dtype.kind in "iu":
            np.testing.assert_array_equal(value, reference, err_msg=key)
        else:
            np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_discriminator_trains_alike(trained, backend):
    reference, found = (
        {key: each[key] for key in each if key.startswith("VQGAN/")} for each in (trained["jax"], trained[backend])
    )
    assert found.keys() == reference.keys() >= {"VQGAN/feature_loss", "VQGAN/discriminator_loss"}
    for key, value in found.items():
        np.testing.assert_allclose(value, reference[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("reader", BACKENDS)
def test_a_file_gives_equal_indices_on_another_backend(trained, loaded, name, reader):
    expected = trained[WRITERS[reader]][f"{name}/codes"]
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(loaded[reader][f"{name}/codes"], expected)


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_priors_draw_the_same_everywhere(trained, loaded, name):
    """With equal weights and seeds, and from a file that another backend wrote."""
    expected = trained["jax"][f"{name}/draws"]
    assert len(np.unique(expected.reshape(50, -1), axis=0)) > 25
    for backend in BACKENDS:
        np.testing.assert_array_equal(trained[backend][f"{name}/draws"], expected)
        np.testing.assert_array_equal(loaded[backend][f"{name}/draws"], expected)
