"""What holds on every backend that does not say otherwise."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
from keras import ops

from keras_vqvae import backend
from keras_vqvae.types import Sizes as Sizes
from keras_vqvae.types import Tensor as Tensor

Outputs: TypeAlias = Sequence[tuple[tuple[int, ...], str]]
"""Shapes, behind the first axis, and dtypes."""
Returned = TypeVar("Returned")

BLOCK_SCORES = 1 << 20
"""Scores that are held at a time, on a processor. On two cores the fastest of 2^18 to 2^21."""
ACCELERATOR_SCORES = 1 << 26
BLOCK_CODES = 4096
"""How many codes they go over. The fastest of 1024 to 8192: XLA's products want more at once than oneDNN's."""

MOST_BLOCKS = 64
"""Blocks of codes in one program, which contains each of them. XLA compiles 256 ten times as long as 64."""

COUNTER = "int64"
"""Dtype of counts that go on for a whole training: int32 ends after 2^31 vectors."""


def is_traced(x: Tensor) -> bool:
    """Whether `x` has no value yet, because a program is being made of what happens to it."""
    return False


def stateless_scope() -> keras.StatelessScope | None:
    """The scope in which Keras keeps what happens to losses and variables from the layers, as its JAX trainer does."""
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope


def undonated(x: Tensor) -> Tensor:
    """`x`, or a copy where a trainer may give the memory of the values that it reads to others."""
    return x


def constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    """`values` in a tensor of the dtype of `like`."""
    return ops.convert_to_tensor(values, like.dtype)


def jit(function: Callable[..., Returned], static_argnums: tuple[int, ...] = ()) -> Callable[..., Returned]:
    """Compiles a function where calling it uncompiled would compile its loops anew each time."""
    return function


def compile_draws(model: keras.Model) -> None:
    """Compiles what a model predicts as a whole, where Keras would not and it is quicker."""


def with_batch(model: keras.Model, step_arguments: tuple[Any, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The arguments of a model's `train_step` or `test_step`, with `change(batch)` in the place of the batch.

    `change` may draw from the model's seed generators.
    """
    return (change(step_arguments[0]),)


@contextlib.contextmanager
def local_predict(model: keras.Model) -> Iterator[None]:
    """Within it, `model.predict` needs no other process."""
    yield


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which float32 products on the device of `like` are computed in float32."""
    return contextlib.nullcontext()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices in float32, forward and backward. Of more axes only `b` has a gradient."""
    return ops.matmul(a, b)


def on_accelerator(x: Tensor) -> bool:
    """Whether `x` lies on another device than the processor."""
    return False


def block_scores(like: Tensor) -> int:
    """How many scores are held at a time on the device of `like`."""
    return ACCELERATOR_SCORES if backend.on_accelerator(like) else backend.BLOCK_SCORES


def block_codes(num_embeddings: int) -> int:
    """How many of so many codes are searched at a time."""
    return max(backend.BLOCK_CODES, -(-num_embeddings // MOST_BLOCKS))


def best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the scores `vectors codes^T + bias` and its first place: `[n, D]`, `[k, D]`, `[k]` -> `[n]` each."""
    scores = backend.matmul(vectors, ops.transpose(codes)) + bias
    best = ops.max(scores, axis=-1, keepdims=True)
    places = ops.arange(codes.shape[0], dtype="int32")
    # The comparison is this way round so that a NaN finds code 0 rather than none.
    places = ops.min(ops.where(scores < best, codes.shape[0], places), axis=-1)
    return ops.squeeze(best, -1), places


def search_groups(groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor] | None:
    """The nearest code in each group, if the backend is quicker with all groups at once; otherwise `None`.

    `[N, d]` each, `[K, d]` each -> `[N]` each.
    """
    return None


def best_places(scores: Tensor, count: int) -> Tensor:
    """The places of the highest scores, the best first: `[n, k]` -> int32 `[n, count]`."""
    return ops.cast(ops.top_k(scores, count)[1], "int32")


def parts_of_rows(rows: int) -> int:
    """On how many devices so many rows lie in equal parts."""
    return 1


def spread_rows(x: Tensor) -> Tensor:
    """`x`, its rows spread over the devices if they divide."""
    return ops.convert_to_tensor(x)


def split_rows(x: Tensor, block_rows: int) -> Tensor:
    """Blocks of so many rows a device, or fewer where there are fewer: `[N, ...]` -> `[n, blocks, ...]`.

    Neighbours go to different blocks, and what each device has is filled up with zeros: so a block is spread over all
    devices, and none needs the rows of another.
    """
    rows, *rest = ops.shape(x)
    parts = 1
    # When traced for any batch size, `rows` is no number yet.
    if known := isinstance(rows, int):
        parts = backend.parts_of_rows(rows)
        block_rows = max(min(block_rows, rows // parts), 1)
    share = rows // parts
    blocks = (share + block_rows - 1) // block_rows
    if known:
        # Of no rows, a block of zeros.
        blocks = max(blocks, 1)
    if not known or share != blocks * block_rows:
        x = ops.reshape(x, (parts, share, *rest))
        x = ops.pad(x, [[0, 0], [0, blocks * block_rows - share], *([0, 0] for _ in rest)])
    # `[parts, share, ...]` -> `[parts block_rows, blocks, ...]`
    return ops.reshape(x, (parts * block_rows, blocks, *rest))


def join_rows(x: Tensor, rows: int) -> Tensor:
    """The inverse, without what was filled up, of blocks that come first: `[blocks, n, ...]` -> `[N, ...]`."""
    _, _, *rest = ops.shape(x)
    parts = backend.parts_of_rows(rows) if isinstance(rows, int) else 1
    # `[n, blocks, ...]` -> `[parts, share, ...]` -> `[N, ...]`
    x = ops.reshape(ops.swapaxes(x, 0, 1), (parts, -1, *rest))[:, : rows // parts]
    return ops.reshape(x, (-1, *rest))


def map_blocks(function: Callable[[Tensor], Sequence[Tensor]], blocks: Tensor, outputs: Outputs) -> Sequence[Tensor]:
    """What a function makes of each block, one by one: `[n, blocks, D]` -> `[blocks, n, ...]` for each output."""
    return ops.map(lambda block: function(ops.take(blocks, block, axis=1)), ops.arange(ops.shape(blocks)[1]))


def by_blocks(
    function: Callable[[Tensor], Sequence[Tensor]], vectors: Tensor, block_rows: int, outputs: Outputs
) -> Sequence[Tensor]:
    """What a function, such as `best_code`, makes of blocks of so many vectors: `[N, D]` -> `[N, ...]` for each output.

    `outputs` are the shapes behind `N` and the dtypes.
    """
    rows = ops.shape(vectors)[0]
    if isinstance(rows, int) and rows // backend.parts_of_rows(rows) <= block_rows:
        return function(vectors)
    found = backend.map_blocks(function, split_rows(vectors, block_rows), outputs)
    return [join_rows(each, rows) for each in found]


def rows_of_ranks(kept: Tensor, ranks: Tensor) -> Tensor:
    """The rows of the kept ones of these ranks, from 0 on: booleans `[N]`, `[n]` -> int32 `[n]`."""
    # A row more, which is never kept: there may be none.
    counts = ops.cumsum(ops.concatenate([ops.cast(kept, "int32"), ops.zeros((1,), "int32")]))
    # The row of rank r is the first at which the count of kept rows reaches r + 1.
    return backend.searchsorted(counts, ranks + 1)


def searchsorted(ascending: Tensor, values: Tensor) -> Tensor:
    """Where each value would stand, before those equal to it: `[N]`, `[n]` -> int32 `[n]`."""
    return ops.cast(ops.searchsorted(ascending, values), "int32")


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """The rows `indices` of `x`, with a gradient of the shape of `x`: `[K, D]`, `[...]` from 0 on -> `[..., D]`."""
    return ops.take(x, indices, axis=0)


def is_tracing() -> bool:
    """Whether a program is being made, in which tensors have no values yet."""
    return backend.is_traced(ops.zeros(()))


def finite_rows(x: Tensor) -> Tensor:
    """Which rows have a finite sum of squares: `[N, D]` -> booleans `[N]`."""
    return ops.sum(ops.square(x), axis=-1) < math.inf


def squared_lengths(x: Tensor) -> Tensor:
    """The sums of squares of rows: `[K, D]` -> `[K]`."""
    return ops.sum(ops.square(x), axis=-1)


def count_true(x: Tensor) -> Tensor:
    """The number of true elements, a float32 scalar."""
    return ops.sum(ops.cast(x, "float32"))


def copy_gradient(z: Tensor, q: Tensor) -> Tensor:
    """The values of `q`, with the gradient of the identity to `z` and none to `q`."""
    # Equal to `z + stop_gradient(q - z)` without its rounding: the difference is exactly 0.
    return ops.stop_gradient(q) + (z - ops.stop_gradient(z))


def squared_errors(
    vectors: Tensor, codes: Tensor, valid: Tensor, count: Tensor, weights: tuple[float, float]
) -> tuple[Sequence[Tensor | None], Tensor]:
    """The mean squared error over valid rows as two losses, and the differences that it is the mean of.

    Args:
        vectors: `[N, D]`. The first loss has their gradient only.
        codes: `[N, D]`. The second loss has their gradient only.
        valid: Booleans `[N]`.
        count: How many of them are true.
        weights: Weights of the two losses. The loss of a weight of 0 is `None`.

    Returns:
        `(losses, differences)`: the two losses; and `vectors - codes`, 0 where not valid, as a constant `[N, D]`.
    """
    stopped = ops.stop_gradient(vectors), ops.stop_gradient(codes)
    # Zeros come before the square: a NaN that is squared first comes back as 0 * NaN in the gradient.
    pairs = (vectors - stopped[1], stopped[0] - codes)
    scale = at_least(count, 1.0) * vectors.shape[-1]
    losses = [
        weight * ops.sum(ops.square(masked(pair, valid))) / scale if weight else None
        for pair, weight in zip(pairs, weights, strict=True)
    ]
    return losses, masked(stopped[0] - stopped[1], valid)


# Updates of variables. PyTorch makes them in place, in an operation each.


def add_to(variable: keras.Variable, value: Tensor | float) -> None:
    """Adds a value to a variable."""
    variable.assign(variable + value)


def move_to(variable: keras.Variable, target: Tensor, rate: Tensor) -> None:
    """Moves a variable towards a target, at a rate from 0 to 1."""
    value = ops.convert_to_tensor(variable)
    variable.assign(value + rate * (target - value))


def add_product(variable: keras.Variable, a: Tensor, b: Tensor) -> None:
    """Adds `a * b` to a variable."""
    variable.assign(ops.convert_to_tensor(variable) + a * b)


def replace_where(variable: keras.Variable, condition: Tensor, values: Tensor) -> None:
    """Assigns `values` to a variable where a condition holds."""
    variable.assign(ops.where(condition, values, ops.convert_to_tensor(variable)))


def at_least(x: Tensor, minimum: float) -> Tensor:
    """The larger of `x` and a number, elementwise."""
    return ops.maximum(x, minimum)


def at_most(x: Tensor, maximum: float) -> Tensor:
    """The smaller of `x` and a number, elementwise."""
    return ops.minimum(x, maximum)


def masked(x: Tensor, valid: Tensor) -> Tensor:
    """`x` with zeros in the rows that are not valid, whatever they hold: `[N, D]`, booleans `[N]` -> `[N, D]`."""
    return ops.where(ops.expand_dims(valid, -1), x, 0.0)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """The elements of `x` at int32 `indices` from 0 on, without a gradient: `[N]`, `[n]` -> `[n]`."""
    return ops.take(x, indices, axis=0)


def segment_sum(data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
    """The sums of the rows of `data` that share an index: `[N, ...]`, `[N]` -> `[num_segments, ...]`."""
    return ops.segment_sum(data, indices, num_segments=num_segments)


def add_counts(counter: keras.Variable, counts: Tensor) -> None:
    """Adds int32 `counts` to a counter of dtype `COUNTER`."""
    counter.assign_add(counts)


def replicas_in_turns() -> int:
    """How many replicas take turns wherever they exchange something. Keras divides losses by that number."""
    return 1


def refuse_updates_in_call() -> None:
    """Raises where a layer's state must not change within its call."""


def sum_over_replicas(x: Tensor) -> Tensor:
    """The sum of `x` over all replicas; `x` itself where it is global or there is one replica."""
    return x


def of_first_replica(x: Tensor) -> Tensor:
    """The first replica's `x`, in every replica; `x` itself where it is global or there is one replica."""
    return x


def mean_over_replicas(x: Tensor) -> Tensor:
    """The mean of `x` over all replicas, with the gradient of this replica's `x`, as gradients are averaged later."""
    return x


def refuse_separate_training(model: keras.Model) -> None:
    """Raises where `fit` would train each replica of a model apart from the others."""
