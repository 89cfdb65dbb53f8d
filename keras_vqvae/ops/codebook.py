"""Pure functions of vectors and a codebook: lookup, statistics and upkeep.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

from collections.abc import Iterable

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.ops import estimators
from keras_vqvae.ops.search import nearest_code
from keras_vqvae.types import Tensor

EMA_START = 20
"""The moving average begins over this part, 1 / 20, of the training so far."""


def init_codebook(num_embeddings: int, embedding_dim: int, seed: int = 42) -> Tensor:
    """Draws a codebook from the standard normal distribution.

    Args:
        num_embeddings: Number of codes, `K`.
        embedding_dim: Size of a code, `D`.
        seed: Integer; equal seeds give equal codebooks on one backend. Defaults to `42`.

    Returns:
        A float32 tensor `[K, D]`.

    Example:

    >>> init_codebook(num_embeddings=512, embedding_dim=64).shape == (512, 64)
    True
    """
    shape = (
        validation.positive_int("num_embeddings", num_embeddings),
        validation.positive_int("embedding_dim", embedding_dim),
    )
    return keras.random.normal(shape, dtype="float32", seed=validation.seed(seed))


def gather_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """The rows `indices` of `codebook`, unchecked, with a dense gradient."""
    return backend.gather_rows(ops.convert_to_tensor(codebook), indices)


def lookup(codebook: Tensor, indices: Tensor) -> Tensor:
    """Returns the codes of `indices`, with the gradient of the codebook.

    Args:
        codebook: `[K, D]`.
        indices: Integers `[...]` from 0 to `K - 1`.

    Returns:
        A tensor `[..., D]` of the codebook's dtype.

    Raises:
        ValueError: If an index lies outside the codebook. In a compiled function, where it cannot be known, the index
            is moved to the nearest one inside.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> bool(keras.ops.all(lookup(codebook, [3, 3, 7])[0] == codebook[3]))
    True
    """
    return gather_codes(codebook, validation.code_indices("indices", indices, codebook.shape[0]))


def quantize(z_e: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces each vector by its nearest code, and passes the gradient straight through.

    For the losses take the raw codes, `lookup(codebook, indices)`: see `keras_vqvae.loss`.

    Args:
        z_e: Encoder outputs `[..., D]`, with any leading dimensions.
        codebook: `[K, D]`.

    Returns:
        `(z_q, indices)`: the codes `[..., D]` with the gradient of the identity to `z_e`, and int32 `[...]`.

    Raises:
        ValueError: If the last dimensions differ.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> z_q, indices = quantize(keras.ops.zeros((4, 7, 7, 2)), codebook)
    >>> z_q.shape == (4, 7, 7, 2), indices.shape == (4, 7, 7)
    (True, True)

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), equations 1 and 2
    """
    z_e = ops.convert_to_tensor(z_e)
    indices = nearest_code(z_e, codebook)
    codes = ops.cast(gather_codes(codebook, indices), z_e.dtype)
    return estimators.straight_through(z_e, codes), indices


def count_codes(indices: Tensor, kept: Tensor, num_embeddings: int) -> Tensor:
    """How often each code occurs among the kept indices: `[N]`, booleans `[N]` -> int32 `[K]`."""
    return backend.segment_sum(ops.cast(kept, "int32"), indices, num_embeddings)


def count_columns(
    indices: Tensor, kept: Tensor, num_embeddings: int, codebooks: tuple[int, ...] | None = None
) -> Tensor:
    """The same for `C` codebooks at once: `[N, Q]`, booleans `[N, Q]` -> int32 `[C, K]`.

    Args:
        indices: Integers `[N, Q]`.
        kept: Booleans `[N, Q]`, which of them count.
        num_embeddings: Number of codes of each codebook, `K`.
        codebooks: The codebook of each column, `Q` numbers from 0 to `C - 1`. Defaults to `None`: each has its own.
    """
    columns = indices.shape[-1]
    number = columns if codebooks is None else max(codebooks) + 1
    owners = ops.arange(columns, dtype="int32") if codebooks is None else backend.constants(codebooks, indices)
    # Each codebook in a range of its own.
    indices = ops.maximum(indices, 0) + num_embeddings * owners
    counts = count_codes(ops.reshape(indices, (-1,)), ops.reshape(kept, (-1,)), number * num_embeddings)
    return ops.reshape(counts, (number, num_embeddings))


def codebooks_in_turn(num_codebooks: int | Iterable[int]) -> tuple[int, ...]:
    """Returns the codebook of each of a sample's indices, as a number from 0 on.

    Args:
        num_codebooks: The number of codebooks, which have one index each. Or how many indices in turn each of them has.
    """
    if hasattr(num_codebooks, "__iter__"):
        sizes = validation.positive_ints("num_codebooks", num_codebooks)
        if not sizes:
            raise ValueError(f"`num_codebooks` must not be empty. Received: num_codebooks={num_codebooks!r}")
        return tuple(codebook for codebook, size in enumerate(sizes) for _ in range(size))
    return tuple(range(validation.positive_int("num_codebooks", num_codebooks)))


def sum_by_code(vectors: Tensor, indices: Tensor, kept: Tensor, num_embeddings: int) -> Tensor:
    """The sum of each code's kept vectors: `[N, D]`, `[N]`, booleans `[N]` -> `[K, D]`."""
    vectors = ops.where(ops.expand_dims(kept, -1), vectors, 0.0)
    return backend.segment_sum(vectors, indices, num_embeddings)


def ema_decay_of_step(decay: float, steps: Tensor, counts: Tensor) -> Tensor:
    """The decay of a step: an average over the last twentieth of the training so far, until `decay` is reached.

    At the start codes and vectors move most. By `decay` alone codes would long average over what was there first, and
    what the levels of a residual leave changes most: the deepest ends up to 12% above k-means, see `docs/studies.md`.
    The average never goes over fewer than ten vectors a code.

    Args:
        decay: Decay in the end.
        steps: Steps so far.
        counts: `[K]`, of the batch.
    """
    per_code = ops.mean(ops.cast(counts, "float32"))
    return ops.minimum(decay, 1 - ops.minimum(EMA_START / (EMA_START + steps), per_code / 10))


def ema_of_counts(ema_counts: Tensor, counts: Tensor, decay: float) -> Tensor:
    """One step of the moving counts, `[K]`; a batch without a single kept vector leaves them as they were."""
    counts = ops.cast(counts, "float32")
    decay = ops.cast(ops.where(ops.sum(counts) > 0, decay, 1.0), "float32")
    return decay * ema_counts + (1 - decay) * counts


def ema_step(codebook: Tensor, ema_counts: Tensor, counts: Tensor, sums: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """One step of the codebook towards the moving average of the vectors that chose each code.

    With `n` the counts and `s` the sums of the batch, `N` the moving counts (0 at the start) and `g` the decay:

        N <- g N + (1 - g) n
        e <- e + (1 - g) (s - n e) / N

    This keeps `m = N e` of the paper's appendix A.1 without storing it. There is no start-up bias (the first hit puts
    a code on the mean of its vectors), and a code that was not chosen stays where it is.

    Args:
        codebook: `[K, D]`, the one that the vectors were assigned by.
        ema_counts: `[K]`, `N`.
        counts: `[K]`, `n`.
        sums: `[K, D]`, `s`.
        decay: `g`.

    Returns:
        `(codebook, ema_counts)`.

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), appendix A.1
    """
    counts = ops.cast(counts, "float32")
    ema_counts = ema_of_counts(ema_counts, counts, decay)
    chosen = counts > 0
    rate = (1 - decay) / ops.where(chosen, ema_counts, 1.0)
    pull = sums - ops.expand_dims(counts, -1) * codebook
    return codebook + ops.expand_dims(rate, -1) * pull, ema_counts


def draw_kept(kept: Tensor, num_draws: int, seed: keras.random.SeedGenerator | int) -> tuple[Tensor, Tensor]:
    """Draws rows among the kept ones: each draw uniform, and no row twice while there are rows that were not drawn.

    The kept rows fall into as many cells as there are draws; each draw is a row of its cell, and all are shifted
    alike. So nothing is sorted, and every shape is fixed.

    Args:
        kept: Booleans `[N]`.
        num_draws: How many rows.
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        `(rows, any_kept)`: int32 `[num_draws]`, and whether there was a row to draw at all.
    """
    total = ops.sum(ops.cast(kept, "int32"))
    cells = ops.arange(num_draws, dtype="int32")
    # The first cells have one row more. With fewer rows than cells they go round.
    size, larger = total // num_draws, total % num_draws
    starts = ops.where(size > 0, size * cells + ops.minimum(cells, larger), cells)
    sizes = size + ops.cast(cells < larger, "int32")
    uniform = keras.random.uniform((num_draws + 1,), dtype="float32", seed=seed)
    offsets = ops.cast(uniform[1:] * ops.cast(sizes, "float32"), "int32")
    # Rounding can reach the size itself.
    offsets = ops.minimum(offsets, ops.maximum(sizes - 1, 0))
    shift = ops.cast(uniform[0] * ops.cast(total, "float32"), "int32")
    drawn = (starts + offsets + shift) % ops.maximum(total, 1)
    rows = backend.rows_of_ranks(kept, drawn)
    # Of no vectors the row is one behind the last.
    return ops.where(total > 0, rows, 0), total > 0


def take_rows(vectors: Tensor, rows: Tensor) -> Tensor:
    """The rows `rows` of `vectors`, or zeros if it has none: `[N, D]`, `[n]` -> `[n, D]`."""

    def zeros() -> Tensor:
        return ops.zeros((rows.shape[0], vectors.shape[-1]), dtype=vectors.dtype)

    def taken() -> Tensor:
        return ops.take(vectors, rows, axis=0)

    count = ops.shape(vectors)[0]
    if isinstance(count, int):
        return taken() if count else zeros()
    return ops.cond(count > 0, taken, zeros)


def revive_dead_codes(
    codebook: Tensor, ema_counts: Tensor, candidates: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Moves dead codes onto vectors of the data, with the count of a code that is just alive.

    A code is dead when its moving count lies below `threshold` times that of uniform use, `sum(N) / K`. The rule
    does not depend on the batch size.

    Args:
        codebook: `[K, D]`.
        ema_counts: `[K]`, the moving counts `N`.
        candidates: `[K, D]`, where each code goes if it is dead.
        threshold: Share of uniform use; at 0 nothing is dead.

    Returns:
        `(codebook, ema_counts)`.
    """
    # `threshold * sum(N) / K`
    alive_from = threshold * ops.mean(ema_counts)
    dead = ema_counts < alive_from
    return (
        ops.where(ops.expand_dims(dead, -1), candidates, codebook),
        ops.where(dead, alive_from, ema_counts),
    )
