"""Compares quantizers of other libraries with ours at equal weights."""

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
    """Returns the Descript codec's quantizer and ours, with equal random weights."""
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
    """Vectors `[batch, steps, DIM]`."""
    return torch.randn(4, 20, DIM, generator=torch.Generator().manual_seed(1))


def test_indices_outputs_and_losses_equal_those_of_the_descript_codec(pair, x):
    theirs, ours = pair
    with torch.no_grad():
        quantized, indices, _, commitment, codebook = theirs(x.transpose(1, 2))
    found, our_indices = ours(x, return_indices=True)
    np.testing.assert_array_equal(numpy(our_indices), indices.permute(0, 2, 1).numpy())
    np.testing.assert_allclose(numpy(found), quantized.transpose(1, 2).numpy(), atol=1e-5)
    losses = [float(numpy(loss)) for loss in ours.losses]
    # Each stage adds a commitment loss, weighted by 0.25, and a codebook loss.
    np.testing.assert_allclose(sum(losses[::2]), 0.25 * float(commitment[0]), rtol=1e-5)
    np.testing.assert_allclose(sum(losses[1::2]), float(codebook[0]), rtol=1e-5)
    restored = theirs.from_codes(indices)[0].detach().transpose(1, 2)
    np.testing.assert_allclose(numpy(ours.decode(our_indices)), restored.numpy(), atol=1e-5)


def gradients(theirs, ours, x, of):
    """Differentiates `of(output, losses)` of both quantizers by the inputs and by each stage's weights."""
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
        # Without a codebook loss, a codebook has no gradient.
        value, found = (torch.zeros(1) if each is None else each for each in (value, got[name]))
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["output", "commitment", "codebook"])
def test_gradients_equal_those_of_the_descript_codec(pair, x, weights):
    """Compares the gradients by the inputs and by every weight, through all stages."""
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def value(quantized, commitment, codebook):
        parts = (quantized * cotangent).sum(), commitment, codebook
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    expected, got = gradients(*pair, x, value)
    assert_equal(expected, got)
    taught = "codebook 0" if weights[2] else "down_kernel 0"
    assert expected[taught].abs().max() > 1e-3


F = torch.nn.functional


def test_indices_and_outputs_equal_those_of_the_snac_codec():
    """SNAC has strides, projections, area means and repetition."""
    torch.manual_seed(0)
    strides, codes = (8, 4, 2, 1), 64
    layers = [
        [torch.nn.Conv1d(DIM, INNER, 1), torch.nn.Conv1d(INNER, DIM, 1), torch.randn(codes, INNER)] for _ in strides
    ]
    inner = keras_vqvae.ProjectedQuantizer(keras_vqvae.VectorQuantizer(codes, distance="direction"), INNER)
    ours = keras_vqvae.MultiScaleQuantizer(inner, strides=strides, interpolation="nearest")
    ours.build((None, None, DIM))
    for stage, (down, up, codebook) in zip(ours.quantizers, layers, strict=True):
        stage.quantizer.set_codebook(codebook)
        for name, projection in (("down", down), ("up", up)):
            getattr(stage, f"{name}_kernel").assign(projection.weight.detach()[..., 0].T)
            getattr(stage, f"{name}_bias").assign(projection.bias.detach())
    sound = torch.randn(3, DIM, 40)
    rest, their_codes = sound, []
    with torch.no_grad():
        for stride, (down, up, codebook) in zip(strides, layers, strict=True):
            similarities = torch.einsum(
                "kd,bdt->btk", F.normalize(codebook), F.normalize(down(F.avg_pool1d(rest, stride)))
            )
            their_codes.append(similarities.argmax(-1))
            rest = rest - up(codebook[their_codes[-1]].mT).repeat_interleave(stride, -1)
    quantized, indices = ours(sound.mT, return_indices=True)
    np.testing.assert_allclose(numpy(quantized), (sound - rest).mT.numpy(), atol=1e-5)
    of_scales = np.split(numpy(indices), np.cumsum([1, 2, 4]), axis=-1)
    for found, expected in zip(of_scales, their_codes, strict=True):
        np.testing.assert_array_equal(found.reshape(3, -1), expected.numpy())


def test_indices_and_outputs_equal_those_of_the_var_tokenizer():
    """VAR, a model of images, has overlapping areas, bicubic interpolation, and convolutions shared by some scales."""
    torch.manual_seed(0)
    scales, numbers, ratio = (1, 2, 3, 4, 5, 6, 8), (0, 0, 1, 1, 1, 2, 2), 0.5
    codebook, convolutions = torch.randn(64, DIM), [torch.nn.Conv2d(DIM, DIM, 3, padding=1) for _ in range(3)]
    ours = keras_vqvae.MultiScaleQuantizer(
        keras_vqvae.VectorQuantizer(64), scales, shared_codebook=True, convolution=numbers, interpolation="cubic"
    )
    ours.build((None, 8, 8, DIM))
    ours.quantizers[0].set_codebook(codebook)
    kernels = np.stack([convolution.weight.detach().permute(2, 3, 1, 0).numpy() for convolution in convolutions])
    kernels[:, 1, 1] -= np.eye(DIM)
    ours.kernel.assign(ratio * kernels)
    ours.bias.assign(ratio * np.stack([convolution.bias.detach().numpy() for convolution in convolutions]))
    images = torch.randn(3, DIM, 8, 8)
    rest, their_codes = images, []
    with torch.no_grad():
        for size, number in zip(scales, numbers, strict=True):
            means = F.interpolate(rest, size=(size, size), mode="area").permute(0, 2, 3, 1)
            their_codes.append(torch.cdist(means.reshape(-1, DIM), codebook).argmin(-1).reshape(3, size, size))
            up = F.interpolate(codebook[their_codes[-1]].permute(0, 3, 1, 2), size=(8, 8), mode="bicubic")
            rest = rest - (1 - ratio) * up - ratio * convolutions[number](up)
    quantized, indices = ours(images.permute(0, 2, 3, 1), return_indices=True)
    expected = np.concatenate([codes.reshape(3, -1).numpy() for codes in their_codes], axis=1)
    np.testing.assert_array_equal(numpy(indices), expected)
    np.testing.assert_allclose(numpy(quantized), (images - rest).permute(0, 2, 3, 1).numpy(), atol=1e-4)
