"""Tests that each of Keras's checkpoints resumes a stopped run to the same result; see `resume.py`."""

import shutil

import keras
import numpy as np
import pytest
from resume import EVERY, STEPS, WAYS, train

STOPPED_AT = STEPS + 3
"""A step within the second epoch, after the last checkpoint."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the final variables of an unbroken run, and a copy of its checkpoints at the step of the stop."""
    folder, copy = tmp_path_factory.mktemp("unbroken"), tmp_path_factory.mktemp("stopped") / "copy"

    def stop(callbacks):
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.OrbaxCheckpoint):
                callback.wait_until_finished()
        shutil.copytree(folder, copy)

    return train(folder, step=STOPPED_AT, stop=stop), copy


@pytest.mark.parametrize("way", WAYS)
# Orbax warns about arrays on one device.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_resumed_run_ends_like_an_uninterrupted_one(runs, way):
    unbroken, folder = runs
    assert STOPPED_AT % EVERY
    # Even two equal runs of TensorFlow differ in the last bit.
    allowed = 1e-5 if keras.backend.backend() == "tensorflow" else 0
    for one, other in zip(train(folder, way), unbroken, strict=True):
        np.testing.assert_allclose(one, other, rtol=allowed, atol=allowed)
