"""PyTorch functions with a gradient of their own: fewer operations than PyTorch would derive, or another precision."""

import contextlib
import functools
from typing import Any

import torch

from keras_vqvae.types import Tensor


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context without autocast on the device of `like`."""
    kind = like.device.type
    # Autocast is only turned off where it is on, so that programs traced outside of it do not contain this context.
    # The device "meta" of symbolic calls has no autocast.
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else contextlib.nullcontext()


@functools.lru_cache(maxsize=256)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values on a device, copied there once."""
    # A normal tensor even if the first call runs in `torch.inference_mode`, where later ones could not train with it.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def masked(x: Tensor, valid: Tensor) -> Tensor:
    """`x` with zeros in the rows that are not valid."""
    return torch.where(valid[:, None], x, constants((0.0,), x.dtype, x.device))


class Product(torch.autograd.Function):
    """A product whose gradients have full precision, too, if the backward pass runs in `torch.autocast`."""

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
    """The values of `q` with the gradient of `z`."""

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


class SquaredErrors(torch.autograd.Function):
    """Both losses of `Backend.squared_errors`, from the same differences, and their slope."""

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
            # Gradients of gradients are wanted, and the saved slope is a constant.
            slope = masked(vectors - codes, valid) / count.clamp(min=1.0)
        entries = zip(gradients, ctx.needs_input_grad, ctx.factors, strict=False)
        found = [slope * (x * factor) if needed and x is not None else None for x, needed, factor in entries]
        return *found, None, None, None
