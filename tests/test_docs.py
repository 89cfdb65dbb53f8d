"""Every example in a docstring or in the README runs."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest

import keras_vqvae

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(keras_vqvae.__path__, "keras_vqvae.")
    # Those of the other backends import what need not be there.
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
        if callable(value) and not is_base and ">>>" not in (value.__doc__ or ""):
            lacking.append(name)
    assert lacking == []


def test_examples_in_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)


def test_each_benchmark_and_its_table_is_in_their_readme():
    folder = ROOT / "benchmarks"
    text = (folder / "README.md").read_text()
    assert {path.stem for path in folder.glob("*.py")} <= set(re.findall(r"`(\w+)`", text))
    links = re.findall(r"\]\(([^)#]*)#([^)]*)\)", text)
    assert len(links) > 15
    for file, anchor in links:
        headings = re.findall("^#+ (.*)$", (folder / file).read_text(), re.M)
        # As a forge makes an anchor of a heading.
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
