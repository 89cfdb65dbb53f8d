"""PyTorch functions with their own gradients, which take fewer operations or have another precision."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from keras_vqvae.backend import torch_search
from keras_vqvae.types import Tensor


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context without autocast on the device of `like`."""
    kind = like.device.type
    # Only turns autocast off if it is on, so that programs traced without autocast do not contain this context. The
    # device "meta" of symbolic calls has no autocast.
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else contextlib.nullcontext()


@functools.lru_cache(maxsize=256)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values on a device, copied there once."""
    # Made outside of `torch.inference_mode`, because training could not use a cached inference tensor.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def array(make: Callable[..., Any], arguments: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`make(*arguments)` on a device, copied there once."""
    with torch.inference_mode(False):
        return torch.as_tensor(make(*arguments), dtype=dtype, device=device)


def masked(x: Tensor, valid: Tensor) -> Tensor:
    """`x` with zeros in the rows that are not valid."""
    return torch.where(valid[:, None], x, constants((0.0,), x.dtype, x.device))


class Product(torch.autograd.Function):
    """A matrix product whose gradients also have full precision, even if the backward pass runs in `torch.autocast`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        by_a, by_b = ctx.needs_input_grad
        with full_precision(gradient):
            return gradient @ b.mT if by_a else None, a.mT @ gradient if by_b else None


class CopiedGradient(torch.autograd.Function):
    """Implements `Backend.copy_gradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class GivenGradients(torch.autograd.Function):
    """Implements `Backend.with_gradients`. Its arguments are `value, x, gradient, x, gradient, ...`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *pairs: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2::2])

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad[1::2], strict=True)
        return None, *(each for found, needed in pairs for each in (by_value * found if needed else None, None))


class Relaxed(torch.autograd.Function):
    """Implements `Backend.relax`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(codes: Tensor, p: Tensor, codebook: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (codebook,) = ctx.saved_tensors
        with full_precision(gradient):
            return gradient, gradient @ codebook.mT if ctx.needs_input_grad[1] else None, None


def centred(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts vectors and codes so that the mean of the codes is 0. Elements without a finite square count as 0."""
    centre = codes.detach().mean(0)
    vectors = torch.where(vectors.abs() < 1e19, vectors, constants((0.0,), vectors.dtype, vectors.device))
    return vectors - centre, codes - centre


class Scores(torch.autograd.Function):
    """Implements `Backend.scores`. Also returns the two factors of the scores, for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, e = centred(vectors, codes)
        return torch.addmm(torch_search.search_bias(e), z, e.T, beta=2, alpha=2), z, e

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        vectors, codes, z, e = ctx.saved_tensors
        if gradient is None:
            return None, None
        if torch.is_grad_enabled():
            # A second derivative needs the factors as functions of the inputs, and the saved factors are constants.
            z, e = centred(vectors, codes)
        with full_precision(gradient):
            # With `beta=0` only the shape of the first argument matters.
            by_vectors = torch.addmm(z, gradient, e, beta=0, alpha=2) if ctx.needs_input_grad[0] else None
            by_codes = torch.addmm(e * gradient.sum(0)[:, None], gradient.T, z, beta=-2, alpha=2)
        return by_vectors, by_codes


class SquaredErrors(torch.autograd.Function):
    """Implements `Backend.squared_errors`. Also returns the slope of both losses, for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        vectors: Tensor, codes: Tensor, valid: Tensor, count: Tensor, weights: tuple[float, float]
    ) -> tuple[Tensor | None, ...]:
        differences = masked(vectors - codes, valid)
        slope = differences / count.clamp(min=1.0)
        error = differences.flatten().dot(slope.flatten())
        losses = (error * (weight / vectors.shape[-1]) if weight else None for weight in weights)
        return *losses, differences, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        vectors, codes, valid, count, weights = inputs
        *_, differences, slope = output
        ctx.factors = [sign * weight / vectors.shape[-1] for sign, weight in zip((2, -2), weights, strict=True)]
        ctx.save_for_backward(vectors, codes, valid, count, slope)
        ctx.mark_non_differentiable(differences, slope)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        vectors, codes, valid, count, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative needs the slope as a function of the inputs, and the saved slope is a constant.
            slope = masked(vectors - codes, valid) / count.clamp(min=1.0)
        entries = zip(gradients, ctx.needs_input_grad, ctx.factors, strict=False)
        found = [slope * (x * factor) if needed and x is not None else None for x, needed, factor in entries]
        return *found, None, None, None
