"""The backend for PyTorch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch
from keras import ops
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensor

from keras_vqvae.backend.base import Backend, Outputs
from keras_vqvae.types import Tensor


class TorchBackend(Backend):
    """Operations run one by one. Replicas are processes, each with its own part of the batch."""

    BLOCK_CODES = 1024

    def full_precision(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        return _full_precision(like)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = ops.convert_to_tensor(a), ops.convert_to_tensor(b)
        with _full_precision(a):
            # PyTorch derives the backward pass of a program that it compiles, and an exported one has none.
            if torch.compiler.is_compiling() or torch.jit.is_tracing():
                return a @ b
            return _Product.apply(a, b)

    def on_accelerator(self, x: Tensor) -> bool:
        return x.device.type != "cpu"

    def _on_mps(self, x: Tensor) -> bool:
        """Whether `x` is on Apple's device, where some operations have returned wrong results without an error.

        These are sums of integers (pytorch/pytorch#90635), indices of maxima (#92311, #130295), and `index_add_` of
        transposed tensors (#176159).
        """
        return x.device.type == "mps"

    @contextlib.contextmanager
    def local_predict(self, model: keras.Model) -> Iterator[None]:
        if not (distributed.is_available() and distributed.is_initialized()):
            yield
            return

        def predict_batches(batches: Sequence[Any]) -> Any:
            with torch.no_grad():
                outputs = [model.predict_step(batch) for batch in batches]
            return keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

        # Keras 3.16 first wraps the model in `DistributedDataParallel`, which waits for all processes and rejects a
        # model without trainable weights. This function runs the model itself.
        made, model.predict_function = model.predict_function, predict_batches
        try:
            yield
        finally:
            model.predict_function = made

    def is_traced(self, x: Tensor) -> bool:
        made = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return made or x.device.type == "meta" or isinstance(x, FakeTensor)

    def refuse_updates_in_call(self) -> None:
        # Code that runs a second time, for a gradient, would update twice. This is the number of the running backward
        # pass, which PyTorch's own checkpoints read in the same way.
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "A quantizer cannot run again for its gradient, within `keras.remat` or a model made under "
                "`keras.RematScope`: it would be updated twice. Make the model that holds it outside, and its other "
                "layers inside."
            )

    def constants(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        # Keras 3.15 goes through a tuple several times before PyTorch does, which takes as long as a quantizer takes
        # for 4,000 vectors.
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def block_codes(self, num_embeddings: int) -> int:
        # Nothing is compiled, so there may be any number of blocks.
        return self.BLOCK_CODES

    def best_code(self, vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self._on_mps(vectors):
            return super().best_code(vectors, codes, bias)
        with _full_precision(vectors):
            return _best_code(vectors, codes, bias)

    def by_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], vectors: Tensor, block_rows: int, outputs: Outputs
    ) -> Sequence[Tensor]:
        # The loop is Python's, and cannot be exported if its length is unknown.
        if not isinstance(vectors.shape[0], int) or vectors.shape[0] <= block_rows:
            return function(vectors)
        return [torch.cat(found) for found in zip(*map(function, vectors.split(block_rows)), strict=True)]

    def rows_of_ranks(self, kept: Tensor, ranks: Tensor) -> Tensor:
        if not self._on_mps(kept):
            return super().rows_of_ranks(kept, ranks)
        # Floats count rows up to 2^24.
        counts = torch.cat([kept, kept.new_zeros(1)]).float().cumsum(0)
        return self.searchsorted(counts, ranks.float() + 1)

    def gather_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        # `ops.take` of Keras 3.15 first looks for negative indices, which is slow and which litert-torch does not
        # convert.
        return torch.nn.functional.embedding(indices, x)

    def segment_sum(self, data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
        # `ops.segment_sum` of Keras 3.15 expands the indices to the shape of `data`, which takes thirty times as long
        # and twice the memory of `data`.
        sums = torch.zeros((num_segments, *data.shape[1:]), dtype=data.dtype, device=data.device)
        return sums.index_add_(0, indices.long(), data.contiguous())

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        if not _alone():
            distributed.all_reduce(x)
        return x

    def of_first_replica(self, x: Tensor) -> Tensor:
        if not _alone():
            distributed.broadcast(x, src=0)
        return x

    def mean_over_replicas(self, x: Tensor) -> Tensor:
        # In inference a replica may take fewer steps than the others.
        if _alone() or not torch.is_grad_enabled():
            return x
        own = x.detach()
        return self.sum_over_replicas(own.clone()) / distributed.get_world_size() + (x - own)

    def refuse_separate_training(self, model: keras.Model) -> None:
        # From Keras 3.16 on `fit` averages gradients by PyTorch's `DistributedDataParallel`, which it keeps there.
        if not _alone() and not hasattr(model, "ddp_model"):
            raise NotImplementedError(
                "`fit` of Keras before 3.16 does not average gradients over the processes of `torch.distributed`: each "
                "would train an encoder of its own. Train in a loop, with `DistributedDataParallel` around the model. "
                f"Received: {distributed.get_world_size()} processes with Keras {keras.__version__}"
            )


def _alone() -> bool:
    """Whether this process is the only one."""
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


def _full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = like.device.type
    # Autocast is only turned off where it is on, so that programs traced outside of it do not contain this context.
    # The device "meta" of symbolic calls has no autocast.
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else contextlib.nullcontext()


class _Product(torch.autograd.Function):
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
        with _full_precision(gradient):
            return gradient @ b.mT if by_a else None, a.mT @ gradient if by_b else None


def _best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    # What is exported runs elsewhere, and litert-torch does not convert the operations below.
    if vectors.device.type != "cpu" or torch.compiler.is_exporting():
        best, places = torch.addmm(bias, vectors, codes.T).max(-1)
        return best, places.int()
    # The product is a convolution of `n x 1` pixels, which runs in oneDNN. A product runs in MKL, which takes twice as
    # long on processors not made by Intel.
    # `[n, D]` -> `[1, n, 1, D]` -> `[1, D, n, 1]` -> `[1, k, n, 1]` -> `[n, k]`, channels last and never copied
    pixels = vectors.reshape(1, -1, 1, vectors.shape[1]).permute(0, 3, 1, 2)
    scores = torch.nn.functional.conv2d(pixels, codes[:, :, None, None], bias)
    scores = scores.permute(0, 2, 3, 1).reshape(-1, len(codes))
    if len(codes) % 64:
        best, places = scores.max(-1)
        return best, places.int()
    # A maximum with its place takes ten times as long as a maximum. First the group of 64 that it is in, then the
    # place in the group.
    groups = scores.unflatten(-1, (-1, 64))
    best, group = groups.amax(-1).max(-1)
    inside = groups.gather(1, group[:, None, None].expand(-1, 1, 64)).squeeze(1).argmax(-1)
    return best, (64 * group + inside).int()
