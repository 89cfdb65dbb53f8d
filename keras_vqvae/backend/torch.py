"""PyTorch: operations run one by one, and replicas are processes, each with its own part of the batch."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch
from keras import ops
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensor

from keras_vqvae import backend
from keras_vqvae.backend import common
from keras_vqvae.backend.common import *

BLOCK_CODES = 1024


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = like.device.type
    # Only where there is something to switch off, so that programs made outside of `torch.autocast` hold nothing of it.
    # The device "meta" of symbolic calls has no mixed precision to ask for.
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else contextlib.nullcontext()


class _Product(torch.autograd.Function):
    """A product whose gradients are computed in full precision, too, if the backward pass runs in `torch.autocast`."""

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


def matmul(a: Tensor, b: Tensor) -> Tensor:
    a, b = ops.convert_to_tensor(a), ops.convert_to_tensor(b)
    with full_precision(a):
        # PyTorch makes the backward pass of a program that it compiles itself, and an exported one has none.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return a @ b
        return _Product.apply(a, b)


def on_accelerator(x: Tensor) -> bool:
    return x.device.type != "cpu"


def _on_mps(x: Tensor) -> bool:
    """Whether `x` lies on Apple's device, where some operations have been wrong without a word.

    Sums of integers so far (pytorch/pytorch#90635), places of maxima (#92311, #130295), and `index_add_` of transposed
    tensors (#176159).
    """
    return x.device.type == "mps"


@contextlib.contextmanager
def local_predict(model: keras.Model) -> Iterator[None]:
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return

    def predict_batches(batches: Sequence[Any]) -> Any:
        with torch.no_grad():
            outputs = [model.predict_step(batch) for batch in batches]
        return keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

    # Runs the model as it is. Keras 3.16 first wraps it in `DistributedDataParallel`, which waits for all processes and
    # takes no model without trainable weights.
    made, model.predict_function = model.predict_function, predict_batches
    try:
        yield
    finally:
        model.predict_function = made


def is_traced(x: Tensor) -> bool:
    made = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return made or x.device.type == "meta" or isinstance(x, FakeTensor)


def refuse_updates_in_call() -> None:
    # Code that runs a second time, for a gradient, would update twice. This is the number of the backward pass that
    # runs, as PyTorch's own checkpoints ask for it.
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "A quantizer cannot run again for its gradient, within `keras.remat` or a model made under "
            "`keras.RematScope`: it would be updated twice. Make the model that holds it outside, and its other layers "
            "inside."
        )


def constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    # Keras would go through the tuple several times. A copy from the host, so it is made only once.
    if is_traced(like):
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return _constants(values, like.dtype, like.device)


@functools.lru_cache(maxsize=256)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # A normal tensor even if the first call runs in `torch.inference_mode`, where later ones could not train with it.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def block_codes(num_embeddings: int) -> int:
    # Nothing is compiled.
    return backend.BLOCK_CODES


def best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    if _on_mps(vectors):
        return common.best_code(vectors, codes, bias)
    with full_precision(vectors):
        return _best_code(vectors, codes, bias)


def _best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    # What is exported runs elsewhere, and litert-torch does not convert what follows.
    if vectors.device.type != "cpu" or torch.compiler.is_exporting():
        best, places = torch.addmm(bias, vectors, codes.T).max(-1)
        return best, places
    # A product, written as a convolution of `n x 1` pixels: those run in oneDNN, and products in MKL, which takes
    # twice as long on processors not made by Intel.
    # `[n, D]` -> `[1, n, 1, D]` -> `[1, D, n, 1]` -> `[1, k, n, 1]` -> `[n, k]`, channels last and never copied
    pixels = vectors.reshape(1, -1, 1, vectors.shape[1]).permute(0, 3, 1, 2)
    scores = torch.nn.functional.conv2d(pixels, codes[:, :, None, None], bias)
    return _best_of(scores.permute(0, 2, 3, 1).reshape(-1, len(codes)))


def _best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the last axis and its first place: `[..., K]` -> `[...]` each."""
    if scores.shape[-1] % 64 or scores.device.type != "cpu":
        return scores.max(-1)
    # A maximum with its place takes ten times as long as a maximum. First the group of 64 that it is in, then the
    # place in the group.
    parts = scores.unflatten(-1, (-1, 64))
    best, part = parts.amax(-1).max(-1)
    index = part[..., None, None].expand(*part.shape, 1, 64)
    return best, torch.add(parts.gather(-2, index).squeeze(-2).argmax(-1), part, alpha=64)


def search_groups(groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor] | None:
    number, rows, size = len(groups), len(groups[0]), len(codebooks[0])
    # On a processor it is slower where the scores leave the cache.
    fits = size <= block_codes(size) and number * rows * size <= 4 * block_scores(groups[0])
    if is_tracing() or _on_mps(groups[0]) or not fits or not rows:
        return None
    # `[G, K, d]` and `[G, N, d]`, both around the codes' means
    codes, vectors = torch.stack(list(codebooks)), torch.stack(list(groups))
    centre = codes.mean(1, keepdim=True)
    codes, vectors = codes - centre, vectors - centre
    bias = squared_lengths(codes.flatten(0, 1)).view(number, 1, size)
    with full_precision(vectors):
        scores = torch.baddbmm(bias, vectors, codes.mT, beta=-0.5)
    return _best_of(scores)[1].unbind()


def by_blocks(
    function: Callable[[Tensor], Sequence[Tensor]], vectors: Tensor, block_rows: int, outputs: Outputs
) -> Sequence[Tensor]:
    # A loop is Python's, and cannot be exported if it is of unknown length.
    if not isinstance(vectors.shape[0], int) or vectors.shape[0] <= block_rows:
        return function(vectors)
    return [torch.cat(found) for found in zip(*map(function, vectors.split(block_rows)), strict=True)]


def rows_of_ranks(kept: Tensor, ranks: Tensor) -> Tensor:
    if not _on_mps(kept):
        return common.rows_of_ranks(kept, ranks)
    # Floats count rows up to 2^24.
    counts = torch.cat([kept, kept.new_zeros(1)]).float().cumsum(0)
    return searchsorted(counts, ranks.float() + 1)


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    # Keras looks for negative indices first, which takes time, and which litert-torch does not convert.
    return torch.nn.functional.embedding(indices, x)


# Keras would copy the scalars of these three from the host.
def at_least(x: Tensor, minimum: float) -> Tensor:
    return torch.clamp(x, min=minimum)


def at_most(x: Tensor, maximum: float) -> Tensor:
    return torch.clamp(x, max=maximum)


def masked(x: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid[:, None], x, constants((0.0,), x))


def is_tracing() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def finite_rows(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1) < math.inf


def squared_lengths(x: Tensor) -> Tensor:
    with full_precision(x):
        return (x[:, None] @ x[:, :, None]).flatten()


def count_true(x: Tensor) -> Tensor:
    return x.sum(dtype=torch.float32)


class _CopiedGradient(torch.autograd.Function):
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


def copy_gradient(z: Tensor, q: Tensor) -> Tensor:
    if is_tracing() or z.dtype != q.dtype:
        return common.copy_gradient(z, q)
    return _CopiedGradient.apply(z, q)


class _SquaredErrors(torch.autograd.Function):
    """Both losses of `squared_errors`, from the same differences and in as few operations as possible."""

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


def squared_errors(
    vectors: Tensor, codes: Tensor, valid: Tensor, count: Tensor, weights: tuple[float, float]
) -> tuple[Sequence[Tensor | None], Tensor]:
    if is_tracing():
        return common.squared_errors(vectors, codes, valid, count, weights)
    *losses, differences, _ = _SquaredErrors.apply(vectors, codes, valid, count, weights)
    return losses, differences


def _may_change_in_place() -> bool:
    # A program is made of functions of its inputs, and in a stateless scope Keras keeps updates from the variables.
    return not is_tracing() and stateless_scope() is None


def add_to(variable: keras.Variable, value: Tensor | float) -> None:
    if not _may_change_in_place():
        return common.add_to(variable, value)
    with torch.no_grad():
        variable.value.add_(value)


def move_to(variable: keras.Variable, target: Tensor, rate: Tensor) -> None:
    if not _may_change_in_place():
        return common.move_to(variable, target, rate)
    with torch.no_grad():
        variable.value.lerp_(target, rate)


def add_product(variable: keras.Variable, a: Tensor, b: Tensor) -> None:
    if not _may_change_in_place():
        return common.add_product(variable, a, b)
    with torch.no_grad():
        variable.value.addcmul_(a, b)


def replace_where(variable: keras.Variable, condition: Tensor, values: Tensor) -> None:
    if not _may_change_in_place():
        return common.replace_where(variable, condition, values)
    with torch.no_grad():
        torch.where(condition, values, variable.value, out=variable.value)


def take(x: Tensor, indices: Tensor) -> Tensor:
    return x.index_select(0, indices)


def segment_sum(data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
    # Keras spreads the indices over the elements: thirty times the time, and twice the memory of `data`.
    sums = torch.zeros((num_segments, *data.shape[1:]), dtype=data.dtype, device=data.device)
    return sums.index_add_(0, indices.long(), data.contiguous())


def add_counts(counter: keras.Variable, counts: Tensor) -> None:
    add_to(counter, counts)


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


def sum_over_replicas(x: Tensor) -> Tensor:
    if not _alone():
        x = x.clone()
        distributed.all_reduce(x)
    return x


def of_first_replica(x: Tensor) -> Tensor:
    if not _alone():
        # Not every library sends booleans.
        sent = x.to(torch.uint8) if x.dtype == torch.bool else x.clone()
        distributed.broadcast(sent, src=0)
        x = sent.to(x.dtype)
    return x


def mean_over_replicas(x: Tensor) -> Tensor:
    # In inference replicas need not take as many steps as the others.
    if _alone() or not torch.is_grad_enabled():
        return x
    own = x.detach()
    return sum_over_replicas(own) / distributed.get_world_size() + (x - own)


def refuse_separate_training(model: keras.Model) -> None:
    # From Keras 3.16 on `fit` averages gradients by PyTorch's `DistributedDataParallel`, which it keeps there.
    if not _alone() and not hasattr(model, "ddp_model"):
        raise NotImplementedError(
            "`fit` of Keras before 3.16 does not average gradients over the processes of `torch.distributed`: each "
            "would train an encoder of its own. Train in a loop, with `DistributedDataParallel` around the model. "
            f"Received: {distributed.get_world_size()} processes with Keras {keras.__version__}"
        )
