"""Tests codes of items that are made unique."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_vqvae


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1), st.integers(0, 2)), max_size=40),
    dtype=st.sampled_from(["int32", "int64", "uint8", "tensor"]),
)
def test_the_collision_index_counts_earlier_items_with_equal_codes(rows, dtype):
    codes = np.array(rows, "int32").reshape(-1, 3)
    if dtype == "uint8":
        codes = codes + 1
    seen = collections.Counter()
    expected = []
    for row in map(tuple, codes.tolist()):
        expected.append([*row, seen[row]])
        seen[row] += 1
    given_codes = ops.convert_to_tensor(codes) if dtype == "tensor" else codes.astype(dtype)
    found = keras_vqvae.append_collision_index(given_codes)
    assert found.dtype == "int32"
    assert found.tolist() == expected
    assert keras_vqvae.unique_fraction(given_codes) == (len(seen) / len(rows) if rows else 0)
    assert keras_vqvae.unique_fraction(found) == (1 if rows else 0)


@pytest.mark.parametrize("function", [keras_vqvae.append_collision_index, keras_vqvae.unique_fraction])
@pytest.mark.parametrize(
    "indices",
    [np.zeros(3, "int32"), np.zeros((3, 2)), np.zeros((2, 3, 4), "int32"), np.zeros((3, 0), "int32")],
    ids=["one axis", "floats", "three axes", "no columns"],
)
def test_anything_but_a_table_of_integers_is_refused(function, indices):
    with pytest.raises(ValueError, match="indices.*Received"):
        function(indices)
