"""Tests that an untrusted `.keras` file can contain only numbers and the names of registered objects."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers import draw, numpy

import keras_vqvae

REFUSED = (TypeError, ValueError)
"""Keras may wrap the error of a nested part in an error of its own."""


def double(inputs):
    return keras.layers.Lambda(lambda x: 2 * x)(inputs)


def model_of(quantizer, before=None, after=None):
    inputs, codes = keras.Input((4,)), keras.Input((4,))
    encoder = keras.Model(inputs, keras.layers.Dense(4)(before(inputs) if before else inputs))
    decoder = keras.Model(codes, keras.layers.Dense(4)(after(codes) if after else codes))
    return keras_vqvae.VQVAE(encoder, quantizer, decoder)


def vector(**keywords):
    return keras_vqvae.VectorQuantizer(8, seed=1, **keywords)


def estimating():
    return vector(estimator=lambda z_e, z_q: z_q + 0 * z_e)


WITH_CODE = {
    "encoder": lambda: model_of(vector(), before=double),
    "decoder": lambda: model_of(vector(), after=double),
    "estimator": lambda: model_of(estimating()),
    "regularizer": lambda: model_of(vector(assignment_regularizer=lambda z, codebook, valid: 0 * z[0, 0])),
    "within a model": lambda: keras.Sequential([keras.Input((4,)), model_of(vector(), before=double)]),
}


# Keras warns when it saves a function without a name.
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
@pytest.mark.parametrize("place", WITH_CODE)
def test_code_anywhere_in_a_file_is_refused(tmp_path, place):
    model, x = WITH_CODE[place](), draw(5, 4)
    model.save(tmp_path / "model.keras")
    with pytest.raises(REFUSED, match="safe_mode"):
        keras.saving.load_model(tmp_path / "model.keras")
    # Without safe mode it loads, so only the code was refused.
    trusted = keras.saving.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_allclose(trusted.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


@pytest.fixture
def file(tmp_path):
    """Saves a model of 8 codes with 4 dimensions."""
    model_of(vector(ema_decay=0.9)).save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def rewrite(file, name, change):
    """Replaces a part of a `.keras` file by `change(data)`."""
    with zipfile.ZipFile(file) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    parts[name] = change(parts[name])
    with zipfile.ZipFile(file, "w") as archive:
        for part, data in parts.items():
            archive.writestr(part, data)


def configure(file, **values):
    """Changes arguments of the quantizer in a file."""

    def change(data):
        config = json.loads(data)
        config["config"]["quantizer"]["config"].update(values)
        return json.dumps(config).encode()

    rewrite(file, "config.json", change)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_code_within_wrappers_is_refused(tmp_path):
    inner = keras_vqvae.ResidualQuantizer(vector(), 2)
    file = tmp_path / "model.keras"
    model_of(keras_vqvae.GroupedQuantizer(keras_vqvae.ProjectedQuantizer(inner, dim=2), 2)).save(file)
    code = keras.saving.serialize_keras_object(estimating())["config"]["estimator"]

    def change(data):
        config = json.loads(data)
        wrapped = config["config"]["quantizer"]
        while "quantizer" in wrapped["config"]:
            wrapped = wrapped["config"]["quantizer"]
        assert wrapped["config"]["estimator"] == "straight_through"
        wrapped["config"]["estimator"] = code
        return json.dumps(config).encode()

    rewrite(file, "config.json", change)
    with pytest.raises(REFUSED, match="safe_mode"):
        keras.saving.load_model(file)


FOREIGN = {"module": "os", "class_name": "function", "config": "abort", "registered_name": "abort"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, FOREIGN) for name in ("estimator", "assignment_regularizer", "embeddings_initializer")),
        *(("estimator", value) for value in ("os.abort", "abort", ["abort"], {"config": "abort"})),
        ("assignment_regularizer", "os.abort"),
        ("embeddings_initializer", "os.abort"),
    ],
)
def test_functions_of_other_modules_are_refused(file, name, value):
    configure(file, **{name: value})
    # If it were called, `os.abort` would end the process.
    with pytest.raises(REFUSED, match="abort"):
        keras.saving.load_model(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_embeddings", -1),
        ("num_embeddings", "8"),
        ("embedding_dim", 0),
        ("commitment_weight", -0.5),
        ("codebook_weight", float("nan")),
        ("ema_decay", 2.0),
        ("distance", "manhattan"),
        ("estimator", "none"),
        ("dead_code_threshold", None),
        ("seed", 2**40),
    ],
)
def test_wrong_arguments_in_a_file_are_named_in_errors(file, name, value):
    configure(file, **{name: value})
    with pytest.raises(REFUSED, match=f"(?s)`{name}` .*Received: {name}={value!r}"):
        keras.saving.load_model(file)


DAMAGES = {
    "another number of codes": ("0", np.zeros((16, 4), "float32")),
    "another dimension": ("0", np.zeros((8, 5), "float32")),
    "no codebook": ("0", None),
    "a weight more": ("9", np.zeros(3)),
    "another seed": ("seed", np.zeros(3, "uint32")),
}


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_refused(file, damage):
    name, value = DAMAGES[damage]

    def change(data):
        buffer = io.BytesIO(data)
        with h5py.File(buffer, "r+") as store:
            # Only the quantizer's group has a seed.
            (of_quantizer,) = [group for group in all_groups(store) if "seed" in group]
            if name in of_quantizer:
                del of_quantizer[name]
            if value is not None:
                of_quantizer[name] = value
        return buffer.getvalue()

    rewrite(file, "model.weights.h5", change)
    with pytest.raises(ValueError, match="could not be loaded.*VectorQuantizer"):
        keras.saving.load_model(file)


def all_groups(store):
    groups = [store]
    for group in groups:
        groups += [item for item in group.values() if isinstance(item, h5py.Group)]
    return groups


def test_a_truncated_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises((OSError, ValueError, zipfile.BadZipFile)):
        keras.saving.load_model(file)


def test_an_unchanged_file_is_loaded(file):
    """So the files of the other tests are refused only for their changes."""
    x = draw(5, 4)
    rewrite(file, "config.json", lambda data: data)
    configure(file)
    loaded = keras.saving.load_model(file)
    assert numpy(loaded.quantizer.codebook).shape == (8, 4)
    assert loaded.predict(x, verbose=0).shape == x.shape
