"""A run that was stopped goes on from each of Keras's checkpoints to what it would have become; see `resume.py`."""

import keras
import numpy as np
import pytest
from resume import EVERY, STEPS, WAYS, train

STOPPED_AT = STEPS + 3
"""Within the second epoch, and behind the last checkpoint."""


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(tmp_path_factory.mktemp("unbroken"), "backup")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run left behind that was stopped."""

    def stop(callbacks):
        # Unlike a process that is killed, this one goes on, and so would its threads that write.
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.OrbaxCheckpoint):
                callback.wait_until_finished()
        raise StoppedError

    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(StoppedError):
        train(folder, step=STOPPED_AT, stop=stop)
    return folder


@pytest.mark.parametrize("way", WAYS)
# Of Orbax itself, where arrays lie on one device.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_run_that_was_stopped_goes_on_to_what_the_unbroken_one_became(unbroken, folder, way):
    assert STOPPED_AT % EVERY
    # Two equal runs of TensorFlow part in the last bit.
    allowed = 1e-5 if keras.backend.backend() == "tensorflow" else 0
    for one, other in zip(train(folder, way), unbroken, strict=True):
        np.testing.assert_allclose(one, other, rtol=allowed, atol=allowed)
