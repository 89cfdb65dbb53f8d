"""Runs the notebooks in a short form, and checks that they contain their outputs.

Run `python notebooks/run.py` after a change, to write the outputs again.
"""

import json
import pathlib
import re

import keras
import matplotlib
import pytest
from matplotlib import pyplot

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
SMALL = {
    "01_tour": {"EPOCHS": 1, "PRIOR_EPOCHS": 1, "IMAGES": 72},
    "02_where_each_fails": {"EPOCHS": 1, "VECTORS": 128, "DRAWN": 20, "GRID": 12, "SIZES": (2, 4), "LONGER": 1},
}
"""The values of each notebook's parameter cell in the tests."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(/[\w.-]+/|[A-Z]:\\)[\w.-]")


def cells(name):
    """Returns the code cells."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(cell):
    """Yields all text outputs of a cell."""
    for output in cell["outputs"]:
        yield from output.get("text", [])
        for kind, data in output.get("data", {}).items():
            if kind != "image/png":
                yield from data


@pytest.fixture(params=SMALL)
def notebook(request):
    return request.param


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="one backend is enough: its parts are tested on each backend"
)
def test_the_cells_run(notebook, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    pyplot.switch_backend("agg")
    namespace = {}
    with matplotlib.rc_context():
        for i, cell in enumerate(cells(notebook)):
            # Lines that begin with % are for Jupyter only.
            source = "".join(line for line in cell["source"] if not line.startswith("%"))
            exec(compile(source, f"{notebook}, cell {i}", "exec"), namespace)
            if i == 0:
                assert cell["metadata"]["tags"] == ["parameters"]
                assert namespace.keys() >= SMALL[notebook].keys()
                namespace.update(SMALL[notebook])
            # Render the figures of the cell.
            for number in pyplot.get_fignums():
                pyplot.figure(number).canvas.draw()
            pyplot.close("all")


def test_the_saved_outputs_are_of_one_run(notebook):
    found = cells(notebook)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    for cell in found:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            assert output.get("name") != "stderr"
        for text in texts(cell):
            assert not ABSOLUTE_PATH.search(text), text


def test_the_notebook_is_small_and_has_pictures(notebook):
    assert (FOLDER / f"{notebook}.ipynb").stat().st_size < 400_000
    pictures = sum("image/png" in output.get("data", {}) for cell in cells(notebook) for output in cell["outputs"])
    assert pictures >= 5


def test_absolute_paths_are_distinguished_from_other_slashes():
    assert all(ABSOLUTE_PATH.search(text) for text in ("in /usr/lib/x.py", "'/home/x'", r"C:\x"))
    assert not any(ABSOLUTE_PATH.search(text) for text in ("3/16 used", "docs/faq.md", "https://a.org/b", "a / b"))
