"""Dead codes, which no vectors choose, and where they move.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

import math

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

STRIDE = 1052792407
"""What the seeds of all codes grow by in each step, until they wrap around at 2^31: about 2^31 times 0.49, and odd."""


def initial_seeds(shape: tuple[int], seed: int | None) -> Tensor:
    """Returns int32 numbers `[K]` from which the draws of all steps follow.

    Seeds modulo the number of rows are the rows drawn. They are a random number plus multiples of a prime, so the rows
    of a step are different and spread over the batch. All of them lie within 2^26, so that few steps see some of them
    wrap around at 2^31 and others not, which can make rows equal.
    """
    # Drawn by NumPy, so that they are the same on every backend. `keras.utils.set_random_seed` sets its state.
    first = np.random.randint(2**31 - 1) if seed is None else np.random.default_rng(seed).integers(2**31 - 1)
    spacing = max(int(0.6180339887 * 2**26 / shape[0]), 2)
    # A prime: with a factor of the number of rows, only a fraction of them would be drawn.
    while any(spacing % factor == 0 for factor in range(2, math.isqrt(spacing) + 1)):
        spacing += 1
    numbers = int(first) + spacing * np.arange(shape[0])
    return ops.convert_to_tensor(numbers.astype("int32"))


def candidates(vectors: Tensor, valid: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a row for each code: `[N, D]`, booleans `[N]`, int32 `[K]` -> `[K, D]` and whether they are valid, `[K]`.

    A draw is a number modulo the number of rows. This needs no random numbers in the step, no sorting, and no knowledge
    of where the valid rows are; a dead code whose row is not valid waits for the next step.
    """
    count = ops.shape(vectors)[0]

    def drawn() -> tuple[Tensor, Tensor]:
        rows = seeds % count
        return backend.gather_rows(vectors, rows), backend.take(valid, rows)

    def none() -> tuple[Tensor, Tensor]:
        shape = (seeds.shape[0], vectors.shape[-1])
        return ops.zeros(shape, dtype=vectors.dtype), ops.zeros(shape[:1], dtype="bool")

    if isinstance(count, int):
        found, usable = drawn() if count else none()
    else:
        found, usable = ops.cond(count > 0, drawn, none)
    return backend.of_first_replica(found), backend.of_first_replica(usable)


def dead_codes(ema_counts: Tensor, usable: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Finds dead codes: those with a moving count below `threshold` times the mean count, which uniform use would have.

    Args:
        ema_counts: Moving counts, `[K]`.
        usable: Booleans `[K]`: whether there is a vector for each code to move to.
        threshold: Fraction of uniform use; at 0 nothing is dead.

    Returns:
        `(dead, alive_from)`: booleans `[K]`, and the count of a code that is just alive, a scalar.
    """
    alive_from = ops.mean(ema_counts) * threshold
    return ops.logical_and(ema_counts < alive_from, usable), alive_from
