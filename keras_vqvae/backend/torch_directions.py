"""Directions and rotations of vectors on PyTorch, with gradients in closed form."""

from typing import Any

import torch

from keras_vqvae.types import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis: `[..., D]` -> `[..., 1]`."""
    return (a * b).sum(-1, keepdim=True)


def norms(x: Tensor) -> Tensor:
    """Norms of vectors: `[..., D]` -> `[..., 1]`. In float64, no square of a float32 underflows or overflows."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64).float()


class Normalized(torch.autograd.Function):
    """Implements `Backend.normalize`: directions and norms of vectors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Replaces NaN and infinity by 0.
        x = x.nan_to_num(0.0, 0.0, 0.0)
        length = norms(x)
        # Replaces 0 by 1.
        divisor = torch.nn.functional.threshold(length, 0.0, 1.0)
        return x / divisor, length, divisor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, by_unit: Tensor | None, by_length: Tensor | None, _: None) -> Tensor | None:
        unit, length, divisor = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative needs the divisor as a function of `x`, and the saved divisor is a constant.
            divisor = torch.nn.functional.threshold(length, 0.0, 1.0)
        found = None if by_length is None else unit * by_length
        if by_unit is None:
            return found
        # The component along the vector does not change its direction.
        across = torch.addcmul(by_unit, unit, dot(unit, by_unit), value=-1)
        across = across / divisor
        return across if found is None else across + found


class Rotated(torch.autograd.Function):
    """Implements `Backend.rotate`. Its backward pass multiplies the gradient by the transposed rotation matrix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Constants, also for second derivatives.
        z, q = (x.detach() for x in ctx.saved_tensors)
        z_length, q_length = norms(z), norms(q)
        u, c = z / z_length, q / q_length
        w = u + c
        w_length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        w = w / w_length
        rotated = torch.addcmul(gradient, w, dot(w, gradient), value=-2)
        rotated = torch.addcmul(rotated, u, dot(c, gradient), value=2)
        # Without a rotation, some of these numbers are NaN, and comparisons with NaN are false.
        rotates = (z_length > 1e-18 * q_length) & (w_length > 1e-6)
        return torch.where(rotates, rotated * (q_length / z_length), gradient), None
