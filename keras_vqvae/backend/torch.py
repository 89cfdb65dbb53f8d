"""The backend for PyTorch."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from keras import ops
from torch._subclasses.fake_tensor import FakeTensor

from keras_vqvae.backend import torch_directions, torch_gradients, torch_search, torch_seeds
from keras_vqvae.backend.rows import Outputs
from keras_vqvae.backend.torch_replicas import Replicas
from keras_vqvae.types import Tensor

MAX_NORM = torch.finfo(torch.float32).max ** 0.5
"""Norm from which on the sum of squares of a vector overflows."""


class TorchBackend(Replicas):
    """Operations run one by one."""

    BLOCK_CODES = 1024

    def full_precision(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        return torch_gradients.full_precision(like)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = ops.convert_to_tensor(a), ops.convert_to_tensor(b)
        with torch_gradients.full_precision(a):
            # `Product` is for eager code. A compiled program derives its own gradient, and an exported one has none.
            if self.is_tracing():
                return a @ b
            return torch_gradients.Product.apply(a, b)

    def on_accelerator(self, x: Tensor) -> bool:
        return x.device.type != "cpu"

    def _on_mps(self, x: Tensor) -> bool:
        """Whether `x` is on Apple's device, where some operations have returned wrong results without an error.

        These operations are sums of integers (pytorch/pytorch#90635), indices of maxima (#92311, #130295), and
        `index_add_` of transposed tensors (#176159).
        """
        return x.device.type == "mps"

    def is_traced(self, x: Tensor) -> bool:
        return self.is_tracing() or x.device.type == "meta" or isinstance(x, FakeTensor)

    def refuse_updates_in_call(self) -> None:
        # Rematerialized code runs a second time during the backward pass, and would update twice. The number below is
        # -1 outside of a backward pass. PyTorch's own checkpoints read it, too.
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "A quantizer cannot run within `keras.remat`, or in a model made under `keras.RematScope`: it would be "
                "updated twice, because it runs again for its gradient. Make the model that contains the quantizer "
                "outside of the scope, and only its other layers inside."
            )

    def is_tracing(self) -> bool:
        return torch.compiler.is_compiling() or torch.jit.is_tracing()

    def constants(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        # Cached, because a copy from the host waits for the device, and Keras 3.15 converts tuples slowly.
        made = torch_gradients.constants.__wrapped__ if self.is_traced(like) else torch_gradients.constants
        return made(values, like.dtype, like.device)

    def array(self, make: Callable[..., Any], arguments: tuple[int, ...], like: Tensor) -> Tensor:
        made = torch_gradients.array.__wrapped__ if self.is_traced(like) else torch_gradients.array
        return made(make, arguments, like.dtype, like.device)

    def seed_generator(self, seed: int | None, name: str) -> keras.random.SeedGenerator:
        return torch_seeds.SeedGenerator(seed, name=name)

    def block_codes(self, num_embeddings: int) -> int:
        # Blocks can be small. Nothing is compiled, so their number does not matter.
        return self.BLOCK_CODES

    def best_code(self, vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self._on_mps(vectors):
            return super().best_code(vectors, codes, bias)
        with self.full_precision(vectors):
            return torch_search.best_code(vectors, codes, bias)

    def argmax(self, x: Tensor) -> Tensor:
        # Returns int64. Later operations need int64, and would have to convert an int32.
        return super().argmax(x) if self._on_mps(x) else x.argmax(-1)

    def search_groups(self, groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor] | None:
        number, rows, size = len(groups), len(groups[0]), len(codebooks[0])
        # A single search for all groups is slower on a processor if its scores do not fit into the cache.
        fits = size <= self.block_codes(size) and number * rows * size <= 4 * self.block_scores(groups[0])
        if self.is_tracing() or self._on_mps(groups[0]) or not fits or not rows:
            return None
        with self.full_precision(groups[0]):
            return torch_search.best_of_groups(groups, codebooks)

    def map_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], blocks: Tensor, outputs: Outputs
    ) -> Sequence[Tensor]:
        return [torch.stack(found) for found in zip(*map(function, blocks.unbind(1)), strict=True)]

    def by_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], vectors: Tensor, block_rows: int, outputs: Outputs
    ) -> Sequence[Tensor]:
        # The loop runs in Python, so it cannot be exported if the number of blocks is unknown.
        if not isinstance(vectors.shape[0], int) or vectors.shape[0] <= block_rows:
            return function(vectors)
        return [torch.cat(found) for found in zip(*map(function, vectors.split(block_rows)), strict=True)]

    def gather_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        # `ops.take` of Keras 3.15 first looks for negative indices, which is slow and which litert-torch does not
        # convert.
        return torch.nn.functional.embedding(indices, x)

    def take(self, x: Tensor, indices: Tensor) -> Tensor:
        return x.index_select(0, indices)

    def finite_rows(self, x: Tensor) -> Tensor:
        # Compares the norm with the limit. The norm of a single element is finite even if its square is not.
        return torch.linalg.vector_norm(x, dim=-1) < MAX_NORM

    def search_bias(self, codes: Tensor) -> Tensor:
        with self.full_precision(codes):
            return torch_search.search_bias(codes)

    def count_true(self, x: Tensor) -> Tensor:
        return x.sum(dtype=torch.float32)

    # In the next four methods, Keras would copy a number from the host at every call.

    def at_least(self, x: Tensor, minimum: float) -> Tensor:
        return torch.clamp(x, min=minimum)

    def at_most(self, x: Tensor, maximum: float) -> Tensor:
        return torch.clamp(x, max=maximum)

    def clip(self, x: Tensor, minimum: float, maximum: float) -> Tensor:
        return torch.clamp(x, minimum, maximum)

    def masked(self, x: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid[..., None], x, self.constants((0.0,), x))

    def copy_gradient(self, z: Tensor, q: Tensor) -> Tensor:
        if self.is_tracing() or z.dtype != q.dtype:
            return super().copy_gradient(z, q)
        return torch_gradients.CopiedGradient.apply(z, q)

    def with_gradients(self, value: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        if self.is_tracing():
            return super().with_gradients(value, pairs)
        return torch_gradients.GivenGradients.apply(value, *(tensor for pair in pairs for tensor in pair))

    def zero_nonfinite(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() < 1e19, x, self.constants((0.0,), x))

    def scores(self, vectors: Tensor, codes: Tensor) -> Tensor:
        if self.is_tracing():
            return super().scores(vectors, codes)
        with self.full_precision(vectors):
            return torch_gradients.Scores.apply(vectors, codes)[0]

    def relax(self, codes: Tensor, p: Tensor, codebook: Tensor) -> Tensor:
        if self.is_tracing():
            return super().relax(codes, p, codebook)
        return torch_gradients.Relaxed.apply(codes, p, codebook)

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().normalize(x) if self._derives(x) else torch_directions.Normalized.apply(x)[:2]

    def rotate(self, z: Tensor, q: Tensor) -> Tensor:
        return super().rotate(z, q) if self._derives(z) else torch_directions.Rotated.apply(z, q)

    def _derives(self, x: Tensor) -> bool:
        """Whether to use automatic differentiation: in traces, and on Apple's device, which has no float64."""
        return self.is_tracing() or self._on_mps(x)

    def squared_errors(
        self, vectors: Tensor, codes: Tensor, valid: Tensor, count: Tensor, weights: tuple[float, float]
    ) -> tuple[Sequence[Tensor | None], Tensor]:
        if self.is_tracing():
            return super().squared_errors(vectors, codes, valid, count, weights)
        *losses, differences, _ = torch_gradients.SquaredErrors.apply(vectors, codes, valid, count, weights)
        return losses, differences

    # These methods update a variable in place, with one operation each.

    def _may_change_in_place(self) -> bool:
        # Programs must not change their inputs, and in a stateless scope Keras collects updates elsewhere.
        return not self.is_tracing() and self.stateless_scope() is None

    def add_to(self, variable: keras.Variable, value: Tensor | float) -> None:
        if not self._may_change_in_place():
            return super().add_to(variable, value)
        with torch.no_grad():
            variable.value.add_(value)

    def move_to(self, variable: keras.Variable, target: Tensor, rate: Tensor) -> None:
        if not self._may_change_in_place():
            return super().move_to(variable, target, rate)
        with torch.no_grad():
            variable.value.lerp_(target, rate)

    def add_product(self, variable: keras.Variable, a: Tensor, b: Tensor) -> None:
        if not self._may_change_in_place():
            return super().add_product(variable, a, b)
        with torch.no_grad():
            variable.value.addcmul_(a, b)

    def replace_where(self, variable: keras.Variable, condition: Tensor, values: Tensor) -> None:
        if not self._may_change_in_place():
            return super().replace_where(variable, condition, values)
        with torch.no_grad():
            torch.where(condition, values, variable.value, out=variable.value)

    def add_counts(self, counter: keras.Variable, counts: Tensor) -> None:
        self.add_to(counter, counts)

    def segment_sum(self, data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
        # `ops.segment_sum` of Keras 3.15 expands the indices to the shape of `data`, which takes 30 times as long and
        # twice the memory of `data`.
        sums = torch.zeros((num_segments, *data.shape[1:]), dtype=data.dtype, device=data.device)
        return sums.index_add_(0, indices.long(), data.contiguous())
