"""The files of `keras_vqvae/backend/`, which no type checker compares."""

import ast
import pathlib

import pytest

import keras_vqvae

FOLDER = pathlib.Path(keras_vqvae.__file__).parent / "backend"


def signatures(name):
    """The arguments of each function of a file."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    return {each.name: ast.unparse(each.args) for each in tree.body if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["jax", "tensorflow", "torch"])
def test_each_backend_has_the_signatures_of_the_common_one(name):
    common, own = signatures("common"), signatures(name)
    shared = common.keys() & own.keys()
    assert len(shared) >= 5
    assert {name: own[name] for name in shared} == {name: common[name] for name in shared}
    assert all(each.startswith("_") for each in own.keys() - common.keys())
