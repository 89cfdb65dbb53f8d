"""Directions and rotations of vectors on PyTorch, with gradients in closed form."""

from typing import Any

import torch

from keras_vqvae.types import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner products of the last axes, `[..., D]` -> `[..., 1]`."""
    return (a * b).sum(-1, keepdim=True)


def lengths(x: Tensor) -> Tensor:
    """The lengths of vectors, `[..., D]` -> `[..., 1]`. No square of a float32 vanishes or overflows in float64."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64).float()


class Normalized(torch.autograd.Function):
    """The directions and lengths of `Backend.normalize`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # 0 in place of what is no number.
        x = x.nan_to_num(0.0, 0.0, 0.0)
        length = lengths(x)
        # 1 in place of 0.
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
            # Gradients of gradients are wanted, and the saved divisor is a constant.
            divisor = torch.nn.functional.threshold(length, 0.0, 1.0)
        found = None if by_length is None else unit * by_length
        if by_unit is None:
            return found
        # What is along the vector has no effect on its direction.
        across = torch.addcmul(by_unit, unit, dot(unit, by_unit), value=-1)
        across = across / divisor
        return across if found is None else across + found


class Rotated(torch.autograd.Function):
    """The values of `q` with the gradient of `Backend.rotate`, which is rotated back by the transposed matrix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Constants, also of a gradient of this gradient.
        z, q = (x.detach() for x in ctx.saved_tensors)
        z_length, q_length = lengths(z), lengths(q)
        u, c = z / z_length, q / q_length
        w = u + c
        w_length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        w = w / w_length
        rotated = torch.addcmul(gradient, w, dot(w, gradient), value=-2)
        rotated = torch.addcmul(rotated, u, dot(c, gradient), value=2)
        # Where there is no rotation these are no numbers, and compared with them nothing is true.
        rotates = (z_length > 1e-18 * q_length) & (w_length > 1e-6)
        return torch.where(rotates, rotated * (q_length / z_length), gradient), None
