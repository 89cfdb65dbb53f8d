import numpy as np
import pytest
from gradients import gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

import keras_vqvae
from keras_vqvae import estimators


@given(
    hnp.arrays("float32", (3, 2), elements=st.floats(-1e6, 1e6, width=32)),
    hnp.arrays("float32", (3, 2), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_straight_through_is_exactly_the_codes(z_e, z_q):
    """`z_e + (z_q - z_e)`, as it is mostly written, is off by a rounding."""
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_vqvae.straight_through(z_e, z_q)), z_q)


def test_straight_through_has_the_gradient_of_the_identity(rng):
    z_e, z_q, cotangent = rng.normal(size=(3, 5, 2)).astype("float32")
    by_encoder, by_codes = gradients(
        lambda z_e, z_q: ops.sum(keras_vqvae.straight_through(z_e, z_q) * ops.convert_to_tensor(cotangent)), z_e, z_q
    )
    np.testing.assert_array_equal(by_encoder, cotangent)
    np.testing.assert_array_equal(by_codes, 0)


def test_the_registry_takes_names_and_functions():
    assert estimators.get("straight_through") is keras_vqvae.straight_through
    assert estimators.get(np.add) is np.add
    assert estimators.serialize(keras_vqvae.straight_through) == "straight_through"
    with pytest.raises(ValueError, match="one of .'straight_through'.*Received: estimator='nonsense'"):
        estimators.get("nonsense")
