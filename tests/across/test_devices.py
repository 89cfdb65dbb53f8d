"""Tests that several JAX devices learn what one learns, and that they exchange no vectors."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow
SCRIPT = pathlib.Path(__file__).with_name("devices.py")
VECTORS_OF_A_DEVICE = 750
RUNS = {"one": (1,), "spread": (4,), "codebook": (4, "codebook")}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """For each run: the arrays at the end of a step, and the kinds and shapes of arrays that cross devices in it."""
    folder = tmp_path_factory.mktemp("devices")
    results = {}
    for name, (devices, *arguments) in RUNS.items():
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        process = subprocess.run(
            [sys.executable, SCRIPT, folder / f"{name}.npz", *arguments],
            env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert not process.returncode, process.stderr
        with np.load(folder / f"{name}.npz") as file:
            results[name] = dict(file), json.loads((folder / f"{name}.json").read_text())
    return results


@pytest.mark.parametrize("name", ["spread", "codebook"])
def test_several_devices_learn_what_one_does(found, name):
    alone, together = found["one"][0], found[name][0]
    assert len(together) >= 36
    for key, value in together.items():
        np.testing.assert_allclose(value, alone[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_adapt_is_for_all_devices(found):
    assert found["one"][1]["adapt"] == [4 * VECTORS_OF_A_DEVICE]
    assert found["spread"][1]["adapt"] == [VECTORS_OF_A_DEVICE]


def test_trap_no_vector_crosses_devices(found):
    """Only arrays of the size of weights cross: sums of gradients and statistics, drawn rows, counts and losses."""
    assert found["one"][1]["step"] == []
    largest = max(value.size for value in found["spread"][0].values())
    assert largest < VECTORS_OF_A_DEVICE
    assert len(found["spread"][1]["step"]) > 100
    for kind, shape in found["spread"][1]["step"]:
        assert np.prod(shape) <= (largest if kind == "all-reduce" else 4), (kind, shape)


def test_trap_a_search_in_groups_stays_on_each_device(found):
    """With sharded codes, only the best score and its index cross for each vector of a block, not a group's scores."""
    block_rows, crossing = 4096 // 256, found["codebook"][1]["grouped"]
    assert found["one"][1]["grouped"] == found["spread"][1]["grouped"] == []
    assert any(shape == [block_rows] for _, shape in crossing)
    for kind, shape in crossing:
        assert np.prod(shape) <= block_rows, (kind, shape)


def test_trap_a_codebook_stays_where_it_lies(found):
    """Each device searches its own codes. For each vector the best code, its index and its score cross devices."""
    vectors, dim, codes_of_a_device, crossing = 1500, 4, 8, found["codebook"][1]["step"]
    assert any(kind == "all-reduce" and shape == [codes_of_a_device, dim] for kind, shape in crossing)
    for kind, shape in crossing:
        # All-reduces fetch codes: all devices but one add zeros. No array is `N x K`, and no codebook moves.
        most = vectors * dim if kind == "all-reduce" else 2
        assert np.prod(shape) <= most, (kind, shape)


def test_trap_a_weight_that_does_not_divide_is_named(found):
    message = found["codebook"][1]["refused"]
    assert message.startswith("The weight `codebook` of `nine_0` could not be created: ")
    assert "(9, 4)" in message
