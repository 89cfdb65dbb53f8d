"""Tests that code depends on the device of its tensors, not on other devices in the machine, which are faked."""

import keras
import numpy as np
import pytest
from helpers import assert_same_weights, draw, numpy, restore, weights
from keras import ops
from quantizers import DIM, EVERY, SHAPE

from keras_vqvae.backend import backend

BACKEND = keras.backend.backend()


@pytest.fixture
def accelerator(monkeypatch):
    """Fakes an accelerator in the machine, next to the CPU that Keras computes on."""
    if BACKEND == "torch":
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    elif BACKEND == "jax":
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        import tensorflow as tf

        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["a GPU"])


@pytest.mark.each_backend
def test_tensors_on_the_cpu_get_blocks_for_the_cpu(accelerator):
    assert backend.block_scores(ops.ones((2, 3))) == backend.BLOCK_SCORES


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has the device `meta`")
def test_tensors_on_an_accelerator_get_blocks_for_an_accelerator():
    import torch

    assert backend.block_scores(torch.ones(2, 3, device="meta")) == backend.ACCELERATOR_SCORES


@pytest.mark.each_backend
@pytest.mark.skipif(BACKEND == "torch", reason="on PyTorch, tensors always have a device")
def test_blocks_in_a_program_are_those_of_the_named_device(accelerator):
    """If no device is named, the blocks are those of the program's default device."""
    found = {}

    def look(x):
        found["unnamed"] = backend.block_scores(x + 1)
        with keras.device("cpu:0"):
            found["named"] = backend.block_scores(x + 1)
        return x

    if BACKEND == "jax":
        import jax

        jax.jit(look)(ops.ones((2, 3)))
    else:
        import tensorflow as tf

        tf.function(look)(tf.ones((2, 3)))
    assert found == {"unnamed": backend.ACCELERATOR_SCORES, "named": backend.BLOCK_SCORES}


@pytest.fixture
def mps(monkeypatch):
    """Treats tensors as if they were on Apple's GPU, where some PyTorch operations are avoided."""
    if BACKEND != "torch":
        pytest.skip("only PyTorch supports MPS")
    monkeypatch.setattr(backend, "_on_mps", lambda x: True)


@pytest.mark.parametrize("name", ["ema", "residual", "gumbel", "scales"])
def test_the_replacements_for_mps_give_the_same_results(request, name):
    layer = EVERY[name]()
    layer.build((None, 3, DIM))
    x, before = draw(32, 3, DIM), weights(layer)
    # The mask leaves some rows that dead codes cannot move onto.
    mask = ops.convert_to_tensor(draw(32, 3, seed=1) > 0)

    def step():
        restore(layer, before)
        return [numpy(found) for found in layer(x, mask=mask, training=True, return_indices=True)], weights(layer)

    expected, state = step()
    request.getfixturevalue("mps")
    found, again = step()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert_same_weights(*({path: np.round(value, 5) for path, value in each.items()} for each in (state, again)))


@pytest.mark.parametrize("num_embeddings", [8, 192])
def test_nan_vectors_get_index_0_on_mps(mps, num_embeddings):
    vectors, codes, bias = draw(6, DIM), draw(num_embeddings, DIM, seed=1), draw(num_embeddings, seed=2)
    expected = (vectors @ codes.T + bias).argmax(-1)
    vectors[2], expected[2] = np.nan, 0
    _, indices = backend.best_code(*map(ops.convert_to_tensor, (vectors, codes, bias)))
    np.testing.assert_array_equal(numpy(indices), expected)


@pytest.mark.skipif(BACKEND != "torch", reason="it uses PyTorch's dispatch modes")
@pytest.mark.parametrize("name", EVERY)
def test_a_step_neither_copies_from_the_host_nor_waits_for_the_device(name):
    """Checks the operations: none makes a tensor from Python numbers, and none has a result that Python reads."""
    from torch.utils._python_dispatch import TorchDispatchMode

    layer, x = EVERY[name](), ops.convert_to_tensor(draw(8, *SHAPE)).requires_grad_()
    layer.build(x.shape)
    found = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    def step():
        (layer(x, training=True).sum() + sum(layer.losses)).backward()

    # The first steps create constants and read the seeds.
    step(), step()
    with Look():
        step()
    assert not {"lift_fresh", "_local_scalar_dense", "nonzero"} & set(found)
