"""The one module that knows which backend runs, for the few things that `keras.ops` cannot say.

**Search.** A block of scores is written by a product and read again for its maximum. `BLOCK_SCORES`, 4 MB, stay
in a processor's cache in between; an accelerator wants larger tiles. The fastest way to the maximum and its
place differs: XLA fuses a comparison with the maximum, and is slow in `argmax` and `top_k`; PyTorch fuses nothing.

**Statistics.** Sums by code go through an index, never through one-hot rows.

**Replicas.** State that a layer updates in `call` must be the same in every replica. On JAX arrays are global, and so
is every sum over a batch. On PyTorch each process has its own part of the batch, and they must exchange their sums. On
TensorFlow an exchange within `call` corrupts the losses that `add_loss` gathers, without a word: there we stop.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import ops

Tensor: TypeAlias = Any
"""A tensor of the running backend, or what `keras.ops` converts to one."""


def is_traced(x: Tensor) -> bool:
    """Whether `x` has no value yet, because a program is being made of what happens to it."""
    return False


def stateless_scope() -> keras.StatelessScope | None:
    """The scope in which Keras keeps what happens to losses and variables from the layers, as its JAX trainer does."""
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope


def constants(values: tuple, like: Tensor) -> Tensor:
    """`values` in a tensor of the dtype of `like`."""
    return ops.convert_to_tensor(values, like.dtype)


def best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the scores `vectors codes^T + bias` and its first place: `[n, D]`, `[k, D]`, `[k]` -> `[n]` each."""
    scores = ops.matmul(vectors, ops.transpose(codes)) + bias
    best = ops.max(scores, axis=-1, keepdims=True)
    places = ops.arange(codes.shape[0], dtype="int32")
    # The comparison is this way round so that a NaN finds code 0 rather than none.
    places = ops.min(ops.where(scores < best, codes.shape[0], places), axis=-1)
    return ops.squeeze(best, -1), places


def map_blocks(function: Callable, vectors: Tensor, outputs: tuple) -> list[Tensor]:
    """What a function makes of each block, one by one: `[n, blocks, D]` -> `[blocks, n, ...]` for each output."""
    return ops.map(lambda block: function(ops.take(vectors, block, axis=1)), ops.arange(ops.shape(vectors)[1]))


def by_blocks(function: Callable, vectors: Tensor, block_rows: int, outputs: tuple) -> list[Tensor]:
    """What a function, such as `best_code`, makes of blocks of so many vectors: `[N, D]` -> `[N, ...]` for each output.

    `outputs` are the shapes behind `N` and the dtypes.
    """
    rows, dim = ops.shape(vectors)
    # When traced for any batch size, `rows` is no number yet, and there is no telling.
    if isinstance(rows, int) and rows <= block_rows:
        return function(vectors)
    blocks = (rows + block_rows - 1) // block_rows
    # Filled up with zeros, and neighbours in different blocks: where each device has a part of the vectors, a block is
    # spread over all devices, and none needs the vectors of another. `[N, D]` -> `[block_rows, blocks, D]`
    if not (isinstance(rows, int) and rows % block_rows == 0):
        vectors = ops.pad(vectors, [[0, blocks * block_rows - rows], [0, 0]])
    vectors = ops.reshape(vectors, (block_rows, blocks, dim))
    found = map_blocks(function, vectors, outputs)
    # `[blocks, block_rows, ...]` -> `[N, ...]`
    return [
        ops.reshape(ops.swapaxes(each, 0, 1), (-1, *shape))[:rows]
        for each, (shape, _) in zip(found, outputs, strict=True)
    ]


def jit(function, static_argnums: tuple[int, ...] = ()):
    """Compiles a function where calling it uncompiled would compile its loops anew each time."""
    return function


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """The rows `indices` of `x`, with a gradient of the shape of `x`: `[K, D]`, `[...]` from 0 on -> `[..., D]`."""
    return ops.take(x, indices, axis=0)


def segment_sum(data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
    """The sums of the rows of `data` that share an index: `[N, ...]`, `[N]` -> `[num_segments, ...]`."""
    return ops.segment_sum(data, indices, num_segments=num_segments)


def refuse_recomputation() -> None:
    """Raises where code runs a second time, for a gradient: state that it updates would be updated twice."""


def sum_over_replicas(x: Tensor) -> Tensor:
    """The sum of `x` over all replicas; `x` itself where it is global or there is one replica."""
    return x


def of_first_replica(x: Tensor) -> Tensor:
    """The first replica's `x`, in every replica; `x` itself where it is global or there is one replica."""
    return x


if keras.backend.backend() == "jax":
    import functools

    import jax

    on_accelerator = jax.default_backend() != "cpu"

    def is_traced(x: Tensor) -> bool:
        return isinstance(x, jax.core.Tracer)

    def jit(function, static_argnums: tuple[int, ...] = ()):
        compiled = jax.jit(function, static_argnums=static_argnums)

        @functools.wraps(function)
        def call(*arguments):
            # Accelerators multiply float32 in fewer bits unless told otherwise.
            with jax.default_matmul_precision("highest"):
                return compiled(*arguments)

        return call

elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    on_accelerator = bool(tf.config.list_physical_devices("GPU"))

    def is_traced(x: Tensor) -> bool:
        return tf.is_symbolic_tensor(x)

    def map_blocks(function: Callable, vectors: Tensor, outputs: tuple) -> list[Tensor]:
        # `ops.map` would make lists of tensors, which OpenVINO does not take.
        def search(block: Tensor, *found: Tensor) -> tuple:
            news = function(vectors[:, block])
            return block + 1, *(
                tf.tensor_scatter_nd_update(f, [[block]], [n]) for f, n in zip(found, news, strict=True)
            )

        n, blocks, _ = ops.shape(vectors)
        none = (0, *(tf.zeros((blocks, n, *shape), dtype) for shape, dtype in outputs))
        return tf.while_loop(lambda block, *_: block < blocks, search, none)[1:]

    def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
        # The gradient of a gather is a list of rows, and Adam is wrong where a row occurs twice in it. That of a
        # product is dense.
        return ops.take(x * 1.0, indices, axis=0)

    def sum_over_replicas(x: Tensor) -> Tensor:
        if tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise NotImplementedError(
                "A quantizer cannot be trained in several TensorFlow replicas: its statistics would differ between "
                "them. `keras.distribution.DataParallel` on JAX and `torch.distributed` on PyTorch keep them equal. "
                f"Received: a strategy of {tf.distribute.get_strategy().num_replicas_in_sync} replicas"
            )
        return x

elif keras.backend.backend() == "torch":
    import torch
    from torch import distributed
    from torch._subclasses.fake_tensor import FakeTensor

    on_accelerator = torch.cuda.is_available()

    def is_traced(x: Tensor) -> bool:
        made = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return made or x.device.type == "meta" or isinstance(x, FakeTensor)

    def refuse_recomputation() -> None:
        # The number of the backward pass that runs, as PyTorch's own checkpoints ask for it.
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "A quantizer cannot run again for its gradient, within `keras.remat` or a model made under "
                "`keras.RematScope`: it would learn twice. Make the model that holds it outside, and its other layers "
                "inside."
            )

    def constants(values: tuple, like: Tensor) -> Tensor:
        # Keras goes through a tuple several times before PyTorch does: as long as a quantizer takes for 4,000 vectors.
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        # What is exported runs elsewhere, and litert-torch does not convert what follows.
        if vectors.device.type != "cpu" or torch.compiler.is_exporting():
            best, places = torch.addmm(bias, vectors, codes.T).max(-1)
            return best, places.int()
        # A product, written as a convolution of `n x 1` pixels: those run in oneDNN, and products in MKL, which takes
        # twice as long on processors not made by Intel.
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

    def by_blocks(function: Callable, vectors: Tensor, block_rows: int, outputs: tuple) -> list[Tensor]:
        # A loop is Python's, and cannot be exported if it is of unknown length.
        if not isinstance(vectors.shape[0], int) or vectors.shape[0] <= block_rows:
            return function(vectors)
        return [torch.cat(found) for found in zip(*map(function, vectors.split(block_rows)), strict=True)]

    def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
        # Keras looks for negative indices first, which takes time, and which litert-torch does not convert.
        return torch.nn.functional.embedding(indices, x)

    def segment_sum(data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
        # Keras spreads the indices over the elements: thirty times the time, and twice the memory of `data`.
        sums = torch.zeros((num_segments, *data.shape[1:]), dtype=data.dtype, device=data.device)
        return sums.index_add_(0, indices.long(), data)

    def _alone() -> bool:
        return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)

    def sum_over_replicas(x: Tensor) -> Tensor:
        if not _alone():
            distributed.all_reduce(x)
        return x

    def of_first_replica(x: Tensor) -> Tensor:
        if not _alone():
            distributed.broadcast(x, src=0)
        return x

else:
    on_accelerator = False

# Scores that are held at a time, and how many codes they go over. On two cores the fastest of 2^18 to 2^21, and of 1024
# to 8192: XLA's products want more codes at once than oneDNN's.
BLOCK_SCORES = 1 << 26 if on_accelerator else 1 << 20
BLOCK_CODES = 1024 if keras.backend.backend() == "torch" else 4096
