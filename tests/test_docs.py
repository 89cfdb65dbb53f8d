"""Runs every example in a docstring, in the README or on a page of `docs/`."""

import doctest
import functools
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_vqvae

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(keras_vqvae.__path__, "keras_vqvae.")
    # The other backend modules import packages that may be missing.
    if not module.name.startswith("keras_vqvae.backend.")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    names = {"keras": keras, "np": np, **{name: getattr(keras_vqvae, name) for name in dir(keras_vqvae)}}
    result = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert result.failed == 0


def test_public_names_have_examples():
    lacking = []
    for name, value in vars(keras_vqvae).items():
        is_base = value in (keras_vqvae.Quantizer, keras_vqvae.CodebookQuantizer, keras_vqvae.Prior)
        if callable(value) and not name.startswith("_") and not is_base and ">>>" not in (value.__doc__ or ""):
            lacking.append(name)
    assert lacking == []


BACKENDS = {"JAX": "jax", "PyTorch": "torch", "TensorFlow": "tensorflow"}
SPEAK_OF_A_MODEL = ("docs/guides/priors.md", "docs/guides/distributed.md")
"""Pages whose examples continue with a model that they do not create."""
MODEL = """
import keras, numpy as np, keras_vqvae
x, labels = np.ones((16, 8, 2), "float32"), np.arange(16) % 10
def make_model():
    sizes = {"embedding_dim": 4, "filters": (4,), "num_residual_blocks": 1}
    encoder, decoder = keras_vqvae.build_conv_encoder((8, 2), **sizes), keras_vqvae.build_conv_decoder((8, 2), **sizes)
    model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(16, ema_decay=0.9), decoder)
    model.compile()
    return model
model = make_model()
"""


def blocks(page, backend):
    """Returns a page's examples for a backend.

    Examples under headings that name no backend run on PyTorch, or on every backend if they are the README's.
    """
    found, owner = [], None
    for heading, block in re.findall(r"^## ([^\n]*)$|^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        if heading:
            owner = BACKENDS.get(heading)
        elif backend == (owner or (backend if page == "README.md" else "torch")):
            found.append(re.sub(r"epochs=\d+", "epochs=1", block))
    return [MODEL, *found] if found and page in SPEAK_OF_A_MODEL else found


PAGES = [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]


@pytest.mark.parametrize(
    "page",
    [
        # Other tests cover what the README shows on each backend.
        pytest.param(page, marks=() if page == "README.md" else pytest.mark.each_backend(slow=True))
        for page in PAGES
        if blocks(page, keras.backend.backend())
    ],
)
def test_examples_in_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(page, keras.backend.backend())
    if page == "docs/guides/distributed.md" and keras.backend.backend() == "jax":
        # Eight devices, which must be requested before the process starts.
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        environment = {**os.environ, "XLA_FLAGS": flags}
        subprocess.run([sys.executable, "-c", "".join(found)], env=environment, check=True)
        return
    if page == "README.md" and keras.backend.backend() != "torch":
        # Only the fastest backend runs whole epochs.
        monkeypatch.setattr(keras.Model, "fit", functools.partialmethod(keras.Model.fit, steps_per_epoch=2))
    names = {}
    for block in found:
        exec(block, names)


def test_the_readme_of_the_benchmarks_is_complete_and_its_links_work():
    folder = ROOT / "benchmarks"
    text = (folder / "README.md").read_text()
    assert {path.stem for path in folder.glob("*.py")} <= set(re.findall(r"`(\w+)`", text))
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text)
    assert len(links) > 15
    for file, anchor in links:
        headings = re.findall("^#+ (.*)$", (folder / file).read_text(), re.M)
        # GitHub derives anchors from headings in this way.
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors


def test_every_picture_and_data_file_is_linked():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)", page.read_text())]
    linked = {(page.parent / link).resolve() for page, link in links}
    files = [path for kind in ("pictures/*", "*/data/*.csv") for path in (ROOT / "docs").glob(kind)]
    assert len(files) > 20
    assert [path.name for path in files if path.resolve() not in linked] == []


def test_the_version_is_the_same_everywhere():
    version = keras_vqvae.__version__
    assert re.findall(r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_tests_named_in_reliability_md_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 40
    lacking = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()]
    assert lacking == []
