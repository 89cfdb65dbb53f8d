"""Checks any quantizer against its definition in NumPy and float64, within float32 rounding errors."""

import keras
import numpy as np
from gradients import layer_gradients
from helpers import books, numpy, weights
from keras import ops

import keras_vqvae

EPSILON = float(np.finfo("float32").eps)


def bounded(layer: keras_vqvae.Quantizer, z: np.ndarray) -> np.ndarray:
    """Computes `layer.bound(z)` in float64."""
    if isinstance(layer, keras_vqvae.ResidualQuantizer):
        return bounded(layer.quantizers[0], z)
    if isinstance(layer, keras_vqvae.GroupedQuantizer):
        groups = zip(layer.quantizers, np.split(z, layer.num_groups, -1), strict=True)
        return np.concatenate([bounded(*group) for group in groups], -1)
    if isinstance(layer, keras_vqvae.BinarySphericalQuantizer):
        length = np.linalg.norm(z, axis=-1, keepdims=True)
        return z / np.where(length > 0, length, 1)
    if isinstance(layer, keras_vqvae.FiniteScalarQuantizer):
        steps = np.array(layer.levels)
        half, offset = (steps - 1) * 1.001 / 2, np.where(steps % 2 == 0, 0.5, 0)
        return (
            np.tanh(z) if layer.symmetric else (np.tanh(z + np.arctanh(offset / half)) * half - offset) / (steps // 2)
        )
    return z


def check_indices(layer: keras_vqvae.Quantizer, z: np.ndarray, indices: np.ndarray, slack: np.ndarray) -> None:
    """Asserts that each index names the best code by the float64 definition, within float32 rounding errors.

    `z` is `[N, D]`. `slack`, `[N, 1]`, bounds the rounding error of each element of `z`.
    """
    if isinstance(layer, keras_vqvae.ResidualQuantizer):
        z = z if layer.stage is not None else bounded(layer, z)
        for stage, quantizer in enumerate(layer.quantizers):
            check_indices(quantizer, z, indices[:, stage], slack)
            z = z - numpy(quantizer.decode(indices[:, stage])).astype("float64")
            slack = slack + 4 * EPSILON * np.abs(z).max(-1, keepdims=True)
    elif isinstance(layer, keras_vqvae.GroupedQuantizer):
        for group, (quantizer, part) in enumerate(
            zip(layer.quantizers, np.split(z, layer.num_groups, -1), strict=True)
        ):
            check_indices(quantizer, part, indices[:, group], slack)
    elif isinstance(layer, keras_vqvae.ProjectedQuantizer):
        kernel = numpy(layer.down_kernel).astype("float64")
        moved = slack * np.abs(kernel).sum() + 8 * EPSILON * (np.abs(z) @ np.abs(kernel)).max(-1, keepdims=True)
        check_indices(layer.quantizer, z @ kernel + numpy(layer.down_bias), indices, moved)
    elif isinstance(layer, keras_vqvae.FiniteScalarQuantizer):
        z = z if layer.stage is not None else bounded(layer, z)
        steps, depth = np.array(layer.levels), layer.stage or 0
        bins = ((steps - 1) / 2 if layer.symmetric else steps // 2) * steps**depth
        place = ((z + 1) * bins if depth == 0 else z * bins + (steps - 1) / 2).clip(0, steps - 1)
        found = indices[:, None] // np.cumprod([1, *steps[:-1]]) % steps
        assert (np.abs(found - place) < 0.5 + (1e-6 + slack) * bins).all()
    elif isinstance(layer, keras_vqvae.LookupFreeQuantizer | keras_vqvae.BinarySphericalQuantizer):
        bits = indices[:, None] >> np.arange(layer.num_bits)[::-1] & 1
        assert ((bits == (z > 0)) | (np.abs(z) <= slack)).all()
    else:
        codes = numpy(layer.codebook).astype("float64")
        if layer.distance != "euclidean":
            length = np.linalg.norm(z, axis=-1, keepdims=True)
            z, slack = z / np.where(length > 0, length, 1), slack / np.where(length > 0, length, 1)
            codes = codes / np.linalg.norm(codes, axis=-1, keepdims=True)
        center = 0 if isinstance(layer, keras_vqvae.IndexBackpropagationQuantizer) else codes.mean(0)
        z, codes = z - center, codes - center
        bias = 0 if isinstance(layer, keras_vqvae.IndexBackpropagationQuantizer) else np.square(codes).sum(-1) / 2
        scores = z @ codes.T - bias
        lengths = np.abs(codes).sum(-1).max()
        rounding = 8 * EPSILON * (np.abs(z).max(-1, keepdims=True) + np.abs(center).max() + lengths) + slack
        excess = scores.max(-1) - np.take_along_axis(scores, indices[:, None], -1)[:, 0]
        assert (excess <= (rounding * (2 * lengths))[:, 0] + 1e-37).all(), excess.max()


def check_losses(layer: keras_vqvae.VectorQuantizer, z: np.ndarray, codes: np.ndarray, losses: list[float]) -> None:
    if layer.distance == "cosine":
        length = np.linalg.norm(z, axis=-1, keepdims=True)
        z = z / np.where(length > 0, length, 1)
    square = np.square(z - codes).mean() if z.size else 0.0
    scale = (np.square(z) + np.square(codes)).mean() if z.size else 0.0
    expected = [w * square for w in (layer.commitment_weight, layer.codebook_weight * layer.codebook_trainable) if w]
    np.testing.assert_allclose(losses[: len(expected)], expected, rtol=1e-4, atol=1e-5 * scale + 1e-37)


def check(layer: keras_vqvae.Quantizer, x: np.ndarray, mask: np.ndarray | None, with_gradients: bool) -> None:
    given = ops.convert_to_tensor(x)
    if "float" in str(given.dtype):
        given = ops.cast(given, "float32")
    z = numpy(given).astype("float32").reshape(-1, x.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.square(z).sum(-1))
    kept = finite
    if mask is not None:
        whole = mask.reshape(mask.shape + (1,) * (x.ndim - 1 - mask.ndim))
        kept = finite & np.broadcast_to(whole, x.shape[:-1]).reshape(-1)
        mask = ops.convert_to_tensor(mask)

    quantized, indices = layer(x, mask=mask, return_indices=True)
    evaluated = [float(numpy(loss)) for loss in layer.losses]
    assert tuple(quantized.shape) == x.shape
    assert tuple(indices.shape) == (*x.shape[:-1], *layer.index_shape)
    assert keras.backend.standardize_dtype(indices.dtype) == "int32"
    again = numpy(layer.decode(layer.encode(x)))
    np.testing.assert_array_equal(again.reshape(z.shape)[finite], numpy(quantized).reshape(z.shape)[finite])
    columns = numpy(indices).reshape(len(z), *layer.index_shape)
    assert ((columns >= 0) & (columns < layer.num_embeddings)).all(), "indices"
    check_indices(layer, z[finite].astype("float64"), columns[finite], np.zeros((finite.sum(), 1)))
    before = weights(layer)
    trained = numpy(layer(x, mask=mask, training=True)).reshape(z.shape)
    assert np.isfinite(trained[finite]).all(), "output in training"
    losses = [float(numpy(loss)) for loss in layer.losses]
    assert np.isfinite(losses).all(), f"losses {losses}"
    if type(layer) is keras_vqvae.VectorQuantizer:
        check_losses(layer, z[kept].astype("float64"), numpy(quantized).reshape(z.shape)[kept], evaluated)
    if not drops(layer):
        np.testing.assert_allclose(losses, evaluated, rtol=1e-4, atol=1e-30)
        assert numpy(layer.code_counts).sum() == kept.sum() * books(layer), "counts"
    for path, value in weights(layer).items():
        assert np.isfinite(value).all(), path
        if not kept.any() and "seed" not in path:
            np.testing.assert_array_equal(value, before[path])
    if with_gradients and x.dtype == "float32":
        clean = np.where(finite[:, None], z, 0).reshape(x.shape)
        by_inputs, by_weights = layer_gradients(layer, clean, np.ones_like(clean))
        for gradient in (by_inputs, *by_weights):
            assert np.isfinite(gradient).all(), "gradients"


def drops(layer: keras.Layer) -> bool:
    """Whether the losses or indices in training are random."""
    if isinstance(layer, keras_vqvae.ProjectedQuantizer):
        return drops(layer.quantizer)
    stages = getattr(layer, "quantizers", ())
    drawn = isinstance(layer, keras_vqvae.IndexBackpropagationQuantizer) or getattr(layer, "quantizer_dropout", False)
    # Later stages quantize the residual of a random output.
    drawn = drawn or (not isinstance(layer, keras_vqvae.GroupedQuantizer) and any(map(draws, stages)))
    return bool(drawn) or any(map(drops, stages))


def draws(layer: keras.Layer) -> bool:
    """Whether the output in training is random."""
    parts = (*getattr(layer, "quantizers", ()), *filter(None, [getattr(layer, "quantizer", None)]))
    drawn = isinstance(layer, keras_vqvae.GumbelQuantizer) or getattr(layer, "noise", 0)
    drawn = drawn or getattr(layer, "estimator", None) in (keras_vqvae.diveq, keras_vqvae.nsvq)
    return bool(drawn) or any(map(draws, parts))
