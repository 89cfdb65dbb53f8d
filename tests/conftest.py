"""Shared fixtures, and the choice of which tests run on which backend.

Tests named `test_trap_...` cover a *trap*: a behavior of Keras or of a backend that is easy to get wrong. See "Tests"
in `CONTRIBUTING.md`.
"""

import gc
import os
import pathlib

import hypothesis
import keras
import numpy as np
import pytest
from quantizers import EVERY, REPRESENTATIVES, SHAPE

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=20, database=None)
hypothesis.settings.load_profile("suite")


TESTS = pathlib.Path(__file__).parent


def pytest_configure():
    """Lets processes that tests start find the support modules, and the package of this folder."""
    paths = [os.environ.get("PYTHONPATH"), TESTS / "support", TESTS.parent]
    os.environ["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run every test on every backend, as `make test-all` does")


def pytest_collection_modifyitems(config, items):
    """Deselects what only `make test-all` runs: see "Tests" in `CONTRIBUTING.md`."""
    if keras.backend.backend() != "torch":
        for item in items:
            marker = item.get_closest_marker("each_backend")
            if marker is not None and marker.kwargs.get("slow"):
                item.add_marker("slow")
    if config.getoption("--all"):
        return
    left_out = [item for item in items if not _is_chosen(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_chosen(item):
    if item.path.parent.name == "across" or keras.backend.backend() == "torch":
        return True
    marker = item.get_closest_marker("each_backend")
    if marker is None:
        return False
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if marker.args:
        return any(isinstance(value, str) and value in marker.args for value in parameters.values())
    return parameters.get("name") not in EVERY or parameters["name"] in REPRESENTATIVES


def pytest_collection_finish():
    # Imported modules are never freed. Freezing them keeps the garbage collector from scanning them again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Clears JAX's caches, which keep over a megabyte per lowered operation, all scanned at each new lowering."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True)
def seeded():
    """Seeds every test alike, whatever ran before it, and resets the dtype policy afterwards."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=EVERY)
def name(request):
    return request.param


@pytest.fixture
def make(name):
    return EVERY[name]


@pytest.fixture
def layer(make):
    layer = make()
    layer.build((None, *SHAPE))
    return layer
