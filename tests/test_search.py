import keras
import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keras import ops

import keras_vqvae
from keras_vqvae.backend import backend

pytestmark = pytest.mark.each_backend

BLOCKS = [(50, 7), (640, 64), (1 << 20, 1024)]
"""Numbers of scores and codes per block."""


def by_xla(function):
    """Compiles `function` with XLA on TensorFlow, as JAX always does for the search."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def set_blocks(patch, blocks):
    patch.setattr(backend, "BLOCK_SCORES", blocks[0])
    patch.setattr(backend, "BLOCK_CODES", blocks[1])


@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    num_embeddings=st.sampled_from([1, 3, 40, 64, 128, 300]),
    dim=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    blocks=st.sampled_from(BLOCKS),
    seed=st.integers(0, 2**16),
)
# A regression: XLA may compute scores again for a comparison and round them differently, so that none is the best.
@example(leading=[], num_embeddings=40, dim=1, dtype="float16", blocks=BLOCKS[1], seed=3)
def test_the_nearest_code_is_found_for_any_shape_dtype_and_block(leading, num_embeddings, dim, dtype, blocks, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(*leading, dim)).astype(dtype)
    codes = rng.normal(size=(num_embeddings, dim)).astype("float32")
    with pytest.MonkeyPatch.context() as patch:
        set_blocks(patch, blocks)
        indices = keras_vqvae.nearest_code(vectors, codes)
    assert keras.backend.standardize_dtype(indices.dtype) == "int32"
    assert tuple(indices.shape) == tuple(leading)
    oracle.assert_nearest(ops.convert_to_numpy(indices), vectors, codes)


def test_the_block_size_does_not_change_the_result(rng, monkeypatch):
    vectors, codes = rng.normal(size=(101, 8)), rng.normal(size=(192, 8))
    found = []
    for blocks in BLOCKS:
        set_blocks(monkeypatch, blocks)
        found.append(ops.convert_to_numpy(keras_vqvae.nearest_code(vectors, codes)))
        np.testing.assert_array_equal(found[-1], oracle.nearest_code(vectors, codes))


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("copies", [1, 16, 33])
def test_the_first_of_equally_near_codes_is_taken(blocks, copies, monkeypatch):
    set_blocks(monkeypatch, blocks)
    codes = np.tile(
        np.array([[5, 5], [1, 0], [-1, 0], [1, 0], [4, 4], [0, -1], [7, 7], [0, 1]], "float32"), (copies, 1)
    )
    indices = keras_vqvae.nearest_code(np.zeros((3, 2), "float32"), codes)
    np.testing.assert_array_equal(ops.convert_to_numpy(indices), [1, 1, 1])


@pytest.mark.parametrize("num_embeddings", [257, 319, 1000])
def test_an_incomplete_last_group_finds_only_its_own_codes(num_embeddings, rng):
    codes = rng.normal(size=(num_embeddings, 5)).astype("float32")
    found = ops.convert_to_numpy(keras_vqvae.nearest_code(codes, codes))
    np.testing.assert_array_equal(found, np.arange(num_embeddings))
    bad = np.array([np.nan, np.inf, -np.inf, 1e30], "float32")[:, None] * np.ones(5, "float32")
    found = ops.convert_to_numpy(keras_vqvae.nearest_code(bad, codes))
    assert ((found >= 0) & (found < num_embeddings)).all()


def test_cosine_distance_compares_only_directions(rng):
    vectors, codes = rng.normal(size=(200, 6)), rng.normal(size=(50, 6))
    cosines = vectors @ codes.T / np.linalg.norm(codes, axis=-1)
    scales = rng.uniform(0.01, 100, size=(50, 1))
    found = keras_vqvae.nearest_code(vectors, codes * scales, distance="cosine")
    np.testing.assert_array_equal(ops.convert_to_numpy(found), cosines.argmax(-1))
    with pytest.raises(ValueError, match="`distance`.*Received: distance='manhattan'"):
        keras_vqvae.nearest_code(vectors, codes, distance="manhattan")


def test_the_search_is_as_exact_as_the_inputs_far_from_the_origin(rng):
    """A naive `z e - |e|^2 / 2` loses distances below 1e-7 of `|z|^2`, which here are all of them."""
    codes = (1000 + 0.1 * rng.normal(size=(64, 4))).astype("float32")
    vectors = (1000 + 0.1 * rng.normal(size=(500, 4))).astype("float32")
    indices = ops.convert_to_numpy(keras_vqvae.nearest_code(vectors, codes))
    oracle.assert_nearest(indices, vectors - np.float32(1000), codes - np.float32(1000), rtol=1e-5)


def test_nonfinite_vectors_get_some_code():
    vectors = np.array([[np.nan, 0], [np.inf, 0], [-np.inf, np.inf], [1e30, 1e30]], "float32")
    for num_embeddings in (3, 128):
        codes = np.eye(num_embeddings, 2, dtype="float32")
        for search in (keras_vqvae.nearest_code, by_xla(keras_vqvae.nearest_code)):
            indices = ops.convert_to_numpy(search(vectors, codes))
            assert indices[0] == 0
            assert ((indices >= 0) & (indices < num_embeddings)).all()


def test_trap_zeros_of_both_signs_are_equal():
    """JAX's and TensorFlow's `ops.argmax` distinguish them."""
    x = np.array([[-1, -0.0, 0.0], [-1, 0.0, -0.0], [0, 1, 1], [-np.inf, -np.inf, -np.inf]], "float32")
    for argmax in (backend.argmax, by_xla(backend.argmax)):
        np.testing.assert_array_equal(ops.convert_to_numpy(argmax(ops.convert_to_tensor(x))), [1, 1, 1, 0])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only on JAX can code set the precision")
def test_trap_accelerators_multiply_float32_in_fewer_bits():
    import jax

    for traced in (keras_vqvae.nearest_code, jax.jit(keras_vqvae.nearest_code)):
        program = str(jax.make_jaxpr(traced)(np.zeros((5, 4), "float32"), np.zeros((3, 4), "float32")))
        assert "precision=(Precision.HIGHEST, Precision.HIGHEST)" in program.replace("lax.", "")


@pytest.mark.parametrize(("vectors", "codes"), [((4, 3), (5, 2)), ((4, 3), (3,)), ((), (5, 3)), ((3,), (2, 5, 3))])
def test_shapes_that_do_not_fit_are_named_in_errors(vectors, codes):
    with pytest.raises(ValueError, match="Received: vectors of shape .*, codebook of shape"):
        keras_vqvae.quantize(np.zeros(vectors, "float32"), np.zeros(codes, "float32"))
