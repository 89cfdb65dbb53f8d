"""Quantizers of other libraries beside ours with the same weights."""

import keras
import numpy as np
import pytest
from helpers import numpy

import keras_vqvae

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="compares PyTorch's gradients")

STAGES, DIM, INNER = 3, 16, 4


@pytest.fixture
def pair():
    """The Descript codec's quantizer and ours, with equal random weights."""
    dac = pytest.importorskip("transformers.models.dac.modeling_dac")
    config = dac.DacConfig(n_codebooks=STAGES, codebook_size=32, codebook_dim=INNER, hidden_size=DIM)
    torch.manual_seed(0)
    theirs = dac.DacResidualVectorQuantizer(config)
    inner = keras_vqvae.VectorQuantizer(32, distance="direction")
    ours = keras_vqvae.ResidualQuantizer(keras_vqvae.ProjectedQuantizer(inner, INNER), STAGES)
    ours.build((None, DIM))
    for stage, their_stage in zip(ours.quantizers, theirs.quantizers, strict=True):
        stage.quantizer.set_codebook(their_stage.codebook.weight.detach())
        for name, projection in (("down", their_stage.in_proj), ("up", their_stage.out_proj)):
            getattr(stage, f"{name}_kernel").assign(projection.weight.detach()[..., 0].T)
            getattr(stage, f"{name}_bias").assign(projection.bias.detach())
    return theirs, ours


@pytest.fixture
def x():
    """`[batch, steps, DIM]`."""
    return torch.randn(4, 20, DIM, generator=torch.Generator().manual_seed(1))


def test_the_descript_codecs_indices_outputs_and_losses_are_ours(pair, x):
    theirs, ours = pair
    with torch.no_grad():
        quantized, indices, _, commitment, codebook = theirs(x.transpose(1, 2))
    found, our_indices = ours(x, return_indices=True)
    np.testing.assert_array_equal(numpy(our_indices), indices.permute(0, 2, 1).numpy())
    np.testing.assert_allclose(numpy(found), quantized.transpose(1, 2).numpy(), atol=1e-5)
    losses = [float(numpy(loss)) for loss in ours.losses]
    # A stage adds its commitment, weighted by 0.25, and its codebook loss.
    np.testing.assert_allclose(sum(losses[::2]), 0.25 * float(commitment[0]), rtol=1e-5)
    np.testing.assert_allclose(sum(losses[1::2]), float(codebook[0]), rtol=1e-5)
    restored = theirs.from_codes(indices)[0].detach().transpose(1, 2)
    np.testing.assert_allclose(numpy(ours.decode(our_indices)), restored.numpy(), atol=1e-5)


def gradients(theirs, ours, x, of):
    """The gradients of both by the inputs and each stage's weights, of what `of` makes of output and losses."""
    inputs, our_inputs = (x.clone().requires_grad_() for _ in range(2))
    quantized, _, _, commitment, codebook = theirs(inputs.transpose(1, 2))
    of(quantized.transpose(1, 2), commitment[0], codebook[0]).backward()
    found = ours(our_inputs, training=True)
    of(found, sum(ours.losses[::2]) / 0.25, sum(ours.losses[1::2])).backward()
    expected, got = {"inputs": inputs.grad}, {"inputs": our_inputs.grad}
    for i, (stage, their_stage) in enumerate(zip(ours.quantizers, theirs.quantizers, strict=True)):
        got[f"codebook {i}"] = stage.quantizer.embeddings.value.grad
        expected[f"codebook {i}"] = their_stage.codebook.weight.grad
        for name, projection in (("down", their_stage.in_proj), ("up", their_stage.out_proj)):
            got[f"{name}_kernel {i}"] = getattr(stage, f"{name}_kernel").value.grad
            expected[f"{name}_kernel {i}"] = projection.weight.grad[..., 0].T
            got[f"{name}_bias {i}"] = getattr(stage, f"{name}_bias").value.grad
            expected[f"{name}_bias {i}"] = projection.bias.grad
    return expected, got


def assert_equal(expected, got):
    for name, value in expected.items():
        # A codebook without a codebook loss has none.
        value, found = (torch.zeros(1) if each is None else each for each in (value, got[name]))
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["output", "commitment", "codebook"])
def test_the_descript_codecs_gradients_are_ours(pair, x, weights):
    """By the inputs and by every weight: the chain rule through the stages."""
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def value(quantized, commitment, codebook):
        parts = (quantized * cotangent).sum(), commitment, codebook
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    expected, got = gradients(*pair, x, value)
    assert_equal(expected, got)
    taught = "codebook 0" if weights[2] else "down_kernel 0"
    assert expected[taught].abs().max() > 1e-3
