import keras
import numpy as np
import pytest

import keras_vqvae


@pytest.mark.each_backend(slow=True)
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="jax2onnx fixes the batch size")
# These warnings come from the exporters.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, lambda inner: keras_vqvae.GroupedQuantizer(inner, 2)], ids=["vector", "grouped"]
)
def test_an_exported_tokenizer_takes_any_number_of_samples(wrap, tmp_path):
    """A regression: with 64 codes, the search in groups of 64 scores once fixed the number of samples on PyTorch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = keras.Input((3, 4))
    tokenizer = keras.Model(inputs, wrap(keras_vqvae.VectorQuantizer(64, seed=0))(inputs, return_indices=True)[1])
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype("float32")
    expected = tokenizer.predict(x, verbose=0)
    tokenizer.export(tmp_path / "tokenizer.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "tokenizer.onnx")
    for samples in (1, 2, 5):
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:samples]})
        np.testing.assert_array_equal(found, expected[:samples])
