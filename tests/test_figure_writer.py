import io
import re

import keras
import matplotlib.image
import numpy as np
import pytest
from helpers import numpy
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import keras_vqvae


def test_figures_are_written_every_n_epochs(tmp_path, monkeypatch):
    """Figures are drawn at the end of an epoch, and written as files and for TensorBoard."""
    monkeypatch.setitem(matplotlib.rcParams, "savefig.format", "pdf")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    seen = []

    def weights(model):
        seen.append(numpy(model.layers[0].kernel).copy())
        return Figure(figsize=(2, 1))

    writer = keras_vqvae.FigureWriter(tmp_path / "new" / "folder", {"weights": weights}, every_n_epochs=2, dpi=50)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=4, callbacks=[writer], verbose=0)
    files = sorted(path for path in (tmp_path / "new" / "folder").glob("*.png"))
    assert [path.name for path in files] == ["weights_0002.png", "weights_0004.png"]
    assert len(seen) == 2
    assert 0 < np.abs(seen[0]).sum() < np.abs(seen[1]).sum()
    np.testing.assert_array_equal(seen[1], numpy(model.layers[0].kernel))

    (events,) = (tmp_path / "new" / "folder").glob("events*")
    found = [event for event in EventFileLoader(str(events)).Load() if event.summary.value]
    assert [event.step for event in found] == [1, 3]
    assert found[0].summary.value[0].tag == "weights"
    width, height, png = found[0].summary.value[0].tensor.string_val
    assert (width, height) == (b"100", b"50")
    assert png == files[0].read_bytes()
    assert matplotlib.image.imread(io.BytesIO(png)).shape == (50, 100, 4)


def test_wrong_arguments_are_named_in_errors(tmp_path):
    with pytest.raises(ValueError, match=re.escape("Received: figures=['use']")):
        keras_vqvae.FigureWriter(tmp_path, ["use"])
    with pytest.raises(ValueError, match="Received: every_n_epochs=0"):
        keras_vqvae.FigureWriter(tmp_path, {}, every_n_epochs=0)
