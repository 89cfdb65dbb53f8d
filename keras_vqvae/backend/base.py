"""The contract of all backends, in the general form that `keras.ops` allows."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
from keras import ops

from keras_vqvae.backend import directions
from keras_vqvae.types import Tensor

Outputs: TypeAlias = Sequence[tuple[tuple[int, ...], str]]
"""Shape without the first axis, and dtype, of each output."""
Returned = TypeVar("Returned")


class Backend:
    """Operations that differ between backends. A subclass overrides those that its backend does differently."""

    BLOCK_SCORES = 1 << 20
    """Scores per search block on a processor. On two cores this was the fastest of 2^18 to 2^21."""
    ACCELERATOR_SCORES = 1 << 26
    """Scores per search block on an accelerator."""
    BLOCK_CODES = 4096
    """Fewest codes per search block. It was the fastest of 1024 to 8192: XLA's products need more codes than oneDNN's.
    """
    GROUP_CODES = 64
    """Codes per group of a search block. It was the fastest of 32, 64 and 128."""
    MAX_BLOCKS = 64
    """Most blocks of codes in one program, which contains each of them. XLA takes ten times as long to compile 256."""
    COUNTER = "int64"
    """Dtype of counts that last a whole training. An int32 would overflow after 2^31 vectors."""

    def is_traced(self, x: Tensor) -> bool:
        """Whether `x` has no value yet because a function is being traced."""
        return False

    def is_tracing(self) -> bool:
        """Whether a function is being traced, in which tensors have no values yet."""
        return self.is_traced(ops.zeros(()))

    def stateless_scope(self) -> keras.StatelessScope | None:
        """The scope in which Keras's JAX trainer collects losses and updates of variables, if one is open."""
        with keras.StatelessScope(initialize_variables=False) as scope:
            return scope.original_scope

    def undonated(self, x: Tensor) -> Tensor:
        """`x`, or a copy of it where a trainer may donate the memory of its state."""
        return x

    def constants(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        """Converts `values` to a tensor with the dtype of `like`."""
        return ops.convert_to_tensor(values, like.dtype)

    def array(self, make: Callable[..., Any], arguments: tuple[int, ...], like: Tensor) -> Tensor:
        """`make(*arguments)`, an array that depends on nothing else, as a tensor with the dtype of `like`."""
        return ops.convert_to_tensor(make(*arguments), like.dtype)

    def seed_generator(self, seed: int | None, name: str) -> keras.random.SeedGenerator:
        """A random state, from which Keras's functions draw."""
        return keras.random.SeedGenerator(seed, name=name)

    @staticmethod
    def jit(function: Callable[..., Returned], static_argnums: tuple[int, ...] = ()) -> Callable[..., Returned]:
        """Compiles `function` where its loops would otherwise be compiled again in each call."""
        return function

    def compile_draws(self, model: keras.Model) -> None:
        """Turns on compilation of `model.predict` where it is faster and Keras leaves it off."""

    def with_batch(
        self, model: keras.Model, step_arguments: tuple[Any, ...], change: Callable[[Any], Any]
    ) -> tuple[Any, ...]:
        """Replaces the batch by `change(batch)` in the arguments of a model's `train_step` or `test_step`.

        `change` may draw from the model's seed generators.
        """
        return (change(step_arguments[0]),)

    @contextlib.contextmanager
    def local_predict(self, model: keras.Model) -> Iterator[None]:
        """Context in which `model.predict` does not wait for other processes."""
        yield

    def full_precision(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        """Context in which float32 products on the device of `like` are computed in float32."""
        return contextlib.nullcontext()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiplies matrices in float32, forward and backward. With more than two axes only `b` has a gradient."""
        return ops.matmul(a, b)

    def on_accelerator(self, x: Tensor) -> bool:
        """Whether the device of `x` is not the processor."""
        return False

    def block_scores(self, like: Tensor) -> int:
        """Scores per search block on the device of `like`."""
        return self.ACCELERATOR_SCORES if self.on_accelerator(like) else self.BLOCK_SCORES

    def block_codes(self, num_embeddings: int) -> int:
        """Codes per search block."""
        # Rounded up to whole groups.
        groups = -(-num_embeddings // (self.MAX_BLOCKS * self.GROUP_CODES))
        return max(self.BLOCK_CODES, self.GROUP_CODES * groups)

    def best_code(self, vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum of each row of `vectors codes^T + bias`, and its first index.

        `[n, D]`, `[k, D]`, `[k]` -> `[n]`, int32 `[n]`.
        """
        # The bias is one more dimension of the product, so that no further pass over the scores adds it. XLA fuses a
        # product over a single dimension with each operation that reads it, and may round it differently in each.
        vectors = ops.concatenate([vectors, ops.ones_like(vectors[:, :1])], axis=1)
        size, codes = codes.shape[0], ops.concatenate([codes, bias[:, None]], axis=1)
        if not self.in_groups(size):
            return _first_maximum(self.matmul(vectors, ops.transpose(codes)))
        # Copies of the last code fill up the last group. Rounded otherwise, a copy may be better than the code.
        if missing := -size % self.GROUP_CODES:
            codes = ops.concatenate([codes, ops.repeat(codes[-1:], missing, axis=0)])
        # The scores are read once, for the maxima of groups. Then only the maxima and the best group are compared.
        groups = (-1, codes.shape[0] // self.GROUP_CODES, self.GROUP_CODES)
        scores = ops.reshape(self.matmul(vectors, ops.transpose(codes)), groups)
        group = self.argmax(ops.max(scores, axis=-1))
        best, index = _first_maximum(self.pick_rows(scores, group))
        index = self.GROUP_CODES * group + index
        return best, ops.minimum(index, size - 1) if missing else index

    def in_groups(self, num_embeddings: int) -> bool:
        """Whether the search first finds the group of `GROUP_CODES` codes that has the maximum."""
        # A last group that is not full costs more than it saves where there are few.
        return num_embeddings % self.GROUP_CODES == 0 or num_embeddings > 4 * self.GROUP_CODES

    def argmax(self, x: Tensor) -> Tensor:
        """First index of the maximum of each row: `[n, k]` -> integers `[n]`."""
        # `ops.argmax` of Keras 3.15 considers -0.0 less than 0.0, in a way that exporters do not convert
        # (keras-team/keras#20350).
        return _first_maximum(x)[1]

    def pick_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Row `indices[i]` of each matrix `x[i]`: `[n, k, D]`, `[n]` -> `[n, D]`."""
        return ops.squeeze(ops.take_along_axis(x, indices[:, None, None], axis=1), 1)

    def search_groups(self, groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Nearest code in each group of dimensions, or `None` where one group after the other is as fast.

        `[N, d]` each, `[K, d]` each -> `[N]` each.
        """
        return None

    def best_places(self, scores: Tensor, count: int) -> Tensor:
        """Indices of the `count` highest scores in descending order: `[n, k]` -> int32 `[n, count]`."""
        return ops.cast(ops.top_k(scores, count)[1], "int32")

    def parts_of_rows(self, rows: int) -> int:
        """Number of devices that `rows` rows are evenly sharded over, or 1 if they do not divide."""
        return 1

    def spread_rows(self, x: Tensor) -> Tensor:
        """Shards the rows of `x` over the devices if they divide."""
        return ops.convert_to_tensor(x)

    def split_rows(self, x: Tensor, block_rows: int) -> Tensor:
        """Splits `x` into blocks of up to `block_rows` rows per device: `[N, ...]` -> `[n, blocks, ...]`.

        Neighbouring rows go to different blocks, and the rows of each device are padded with zeros. So each block is
        sharded over all devices, and no device needs rows of another.
        """
        rows, *rest = ops.shape(x)
        parts = 1
        # `rows` is a tensor where a function is traced for any batch size.
        if known := isinstance(rows, int):
            parts = self.parts_of_rows(rows)
            block_rows = max(min(block_rows, rows // parts), 1)
        share = rows // parts
        blocks = (share + block_rows - 1) // block_rows
        if known:
            # One block of zeros if there are no rows.
            blocks = max(blocks, 1)
        if not known or share != blocks * block_rows:
            x = ops.reshape(x, (parts, share, *rest))
            x = ops.pad(x, [[0, 0], [0, blocks * block_rows - share], *([0, 0] for _ in rest)])
        # `[parts, share, ...]` -> `[parts block_rows, blocks, ...]`
        return ops.reshape(x, (parts * block_rows, blocks, *rest))

    def join_rows(self, x: Tensor, rows: int) -> Tensor:
        """Inverse of `split_rows` for blocks-first results; drops the padding: `[blocks, n, ...]` -> `[N, ...]`."""
        _, _, *rest = ops.shape(x)
        parts = self.parts_of_rows(rows) if isinstance(rows, int) else 1
        # `[n, blocks, ...]` -> `[parts, share, ...]` -> `[N, ...]`
        x = ops.reshape(ops.swapaxes(x, 0, 1), (parts, -1, *rest))[:, : rows // parts]
        return ops.reshape(x, (-1, *rest))

    def map_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], blocks: Tensor, outputs: Outputs
    ) -> Sequence[Tensor]:
        """Applies a function to one block after another: `[n, blocks, D]` -> `[blocks, n, ...]` for each output."""
        return ops.map(lambda block: function(ops.take(blocks, block, axis=1)), ops.arange(ops.shape(blocks)[1]))

    def by_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], vectors: Tensor, block_rows: int, outputs: Outputs
    ) -> Sequence[Tensor]:
        """Applies a function to blocks of up to `block_rows` rows per device: `[N, D]` -> `[N, ...]` for each output.

        `outputs` has the shape without `N`, and the dtype, of each output.
        """
        rows = ops.shape(vectors)[0]
        if isinstance(rows, int) and rows // self.parts_of_rows(rows) <= block_rows:
            return function(vectors)
        found = self.map_blocks(function, self.split_rows(vectors, block_rows), outputs)
        return [self.join_rows(each, rows) for each in found]

    def gather_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Rows of `x` at nonnegative `indices`, with a dense gradient: `[K, D]`, `[...]` -> `[..., D]`."""
        return ops.take(x, indices, axis=0)

    def take(self, x: Tensor, indices: Tensor) -> Tensor:
        """Elements of `x` at nonnegative int32 `indices`, without a gradient: `[N]`, `[n]` -> `[n]`."""
        return ops.take(x, indices, axis=0)

    def finite_rows(self, x: Tensor) -> Tensor:
        """Which rows have a finite sum of squares: `[N, D]` -> booleans `[N]`."""
        return ops.sum(ops.square(x), axis=-1) < math.inf

    def search_bias(self, codes: Tensor) -> Tensor:
        """`-|e|^2 / 2` for each code: `[K, D]` -> `[K]`."""
        return -0.5 * ops.sum(ops.square(codes), axis=-1)

    def count_true(self, x: Tensor) -> Tensor:
        """Number of true elements, a float32 scalar."""
        return ops.sum(ops.cast(x, "float32"))

    def at_least(self, x: Tensor, minimum: float) -> Tensor:
        """The larger of `x` and a number, elementwise."""
        return ops.maximum(x, minimum)

    def at_most(self, x: Tensor, maximum: float) -> Tensor:
        """The smaller of `x` and a number, elementwise."""
        return ops.minimum(x, maximum)

    def clip(self, x: Tensor, minimum: float, maximum: float) -> Tensor:
        """`x` within two numbers, elementwise."""
        return ops.clip(x, minimum, maximum)

    def masked(self, x: Tensor, valid: Tensor) -> Tensor:
        """`x` with zeros in the rows that are not valid, whatever they hold: `[..., D]`, booleans `[...]`."""
        return ops.where(ops.expand_dims(valid, -1), x, 0.0)

    def copy_gradient(self, z: Tensor, q: Tensor) -> Tensor:
        """Values of `q`, with the gradient of the identity to `z` and none to `q`."""
        # Equal to `z + stop_gradient(q - z)` without its rounding: the difference is exactly 0.
        return ops.stop_gradient(q) + (z - ops.stop_gradient(z))

    def with_gradients(self, value: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The scalar `value`, a constant, with a gradient for each `x`: pairs of `x` and a constant of its shape."""
        # Linear in `x`, and 0. It leaves out what has no gradient, because that may be no number.
        for x, gradient in pairs:
            value = value + ops.sum(gradient * ops.where(gradient == 0, 0.0, x - ops.stop_gradient(x)))
        return value

    def zero_nonfinite(self, x: Tensor) -> Tensor:
        """`x`, with 0 in place of what has no finite square.

        Such vectors count nowhere, but through a product their gradient, which is no number, would reach all weights.
        """
        return ops.where(ops.abs(x) < 1e19, x, 0.0)

    def scores(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """`-|z - e|^2` but for a number for each vector: `[N, D]`, `[K, D]` -> `[N, K]`.

        Vectors and codes are moved so that the codes' mean is 0: that changes no distance, and rounding hides distances
        between points far from 0.
        """
        centre = ops.stop_gradient(ops.mean(codes, axis=0))
        vectors, codes = self.zero_nonfinite(vectors) - centre, codes - centre
        return 2 * (self.matmul(vectors, ops.transpose(codes)) + self.search_bias(codes))

    def relax(self, codes: Tensor, p: Tensor, codebook: Tensor) -> Tensor:
        """`codes` with their own gradient and, for `p`, that of the mean codes `p codebook`.

        `[N, D]`, `[N, K]`, `[K, D]` -> `[N, D]`.
        """
        return codes + self.matmul(p - ops.stop_gradient(p), codebook)

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x / |x|`, zero where `x` is, and `|x|`: `[..., D]` -> `[..., D]`, `[..., 1]`, with a finite gradient.

        That of `keras.ops.normalize` is no number at 0.
        """
        return directions.normalize(x)

    def rotate(self, z: Tensor, q: Tensor) -> Tensor:
        """Values of `q`, with the gradient of `estimators.rotation` to `z` and none to `q`: `[..., D]` each."""
        return directions.rotate(z, q)

    def squared_errors(
        self, vectors: Tensor, codes: Tensor, valid: Tensor, count: Tensor, weights: tuple[float, float]
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
        scale = self.at_least(count, 1.0) * vectors.shape[-1]
        losses = [
            weight * ops.sum(ops.square(self.masked(pair, valid))) / scale if weight else None
            for pair, weight in zip(pairs, weights, strict=True)
        ]
        return losses, self.masked(stopped[0] - stopped[1], valid)

    def add_to(self, variable: keras.Variable, value: Tensor | float) -> None:
        """Adds a value to a variable."""
        variable.assign(variable + value)

    def move_to(self, variable: keras.Variable, target: Tensor, rate: Tensor) -> None:
        """Moves a variable towards a target, at a rate from 0 to 1."""
        value = ops.convert_to_tensor(variable)
        variable.assign(value + rate * (target - value))

    def add_product(self, variable: keras.Variable, a: Tensor, b: Tensor) -> None:
        """Adds `a * b` to a variable."""
        variable.assign(ops.convert_to_tensor(variable) + a * b)

    def replace_where(self, variable: keras.Variable, condition: Tensor, values: Tensor) -> None:
        """Assigns `values` to a variable where a condition holds."""
        variable.assign(ops.where(condition, values, ops.convert_to_tensor(variable)))

    def segment_sum(self, data: Tensor, indices: Tensor, num_segments: int) -> Tensor:
        """Sums of the rows of `data` with the same index: `[N, ...]`, `[N]` -> `[num_segments, ...]`."""
        return ops.segment_sum(data, indices, num_segments=num_segments)

    def add_counts(self, counter: keras.Variable, counts: Tensor) -> None:
        """Adds int32 `counts` to a counter of dtype `COUNTER`."""
        counter.assign_add(counts)

    def replicas_in_turns(self) -> int:
        """Number of replicas that take turns when they exchange tensors. Keras divides losses by this number."""
        return 1

    def refuse_updates_in_call(self) -> None:
        """Raises an error where a layer must not update its state within `call`."""

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        """Sum of `x` over all replicas. It is `x` itself if `x` is global or there is one replica."""
        return x

    def of_first_replica(self, x: Tensor) -> Tensor:
        """`x` of the first replica, in every replica. It is `x` itself if `x` is global or there is one replica."""
        return x

    def mean_over_replicas(self, x: Tensor) -> Tensor:
        """Mean of `x` over all replicas.

        Its gradient is that of this replica's `x`, as gradients are averaged over replicas later.
        """
        return x

    def refuse_separate_training(self, model: keras.Model) -> None:
        """Raises an error where `fit` would train each replica separately."""


def _first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each row, and its first index: `[n, k]` -> `[n]`, int32 `[n]`."""
    best = ops.max(scores, axis=-1, keepdims=True)
    indices = ops.arange(scores.shape[-1], dtype="int32")
    # `scores < best` is false for a NaN, which therefore finds index 0. With `scores == best` it would find none.
    indices = ops.min(ops.where(scores < best, scores.shape[-1], indices), axis=-1)
    return ops.squeeze(best, -1), indices
