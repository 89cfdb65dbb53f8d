"""Dead codes, which few or no vectors choose, and the vectors that they move onto.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

import math

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

STRIDE = 1052792407
"""Increment of all seeds in each step. It has no prime factor below 1877: if it shared one with the number of rows, a
code would draw only a fraction of the rows."""


def initial_seeds(shape: tuple[int], seed: int | None) -> Tensor:
    """Returns int32 seeds `[K]`, which determine the draws of all steps.

    A code draws the row `seed % number of rows`. The seeds are a random number plus multiples of a prime, so the codes
    draw different rows, spread over the batch. All seeds are within a range of 2^26. So they usually wrap around at
    2^31 in the same step. In a step in which only some have wrapped around, rows may be equal.
    """
    # NumPy draws the same number on every backend, and `keras.utils.set_random_seed` sets its state.
    first = np.random.randint(2**31 - 1) if seed is None else np.random.default_rng(seed).integers(2**31 - 1)
    spacing = max(int(0.6180339887 * 2**26 / shape[0]), 2)
    # The spacing is prime. If it shared a factor with the number of rows, only a fraction of the rows would be drawn.
    while any(spacing % factor == 0 for factor in range(2, math.isqrt(spacing) + 1)):
        spacing += 1
    numbers = int(first) + spacing * np.arange(shape[0])
    return ops.convert_to_tensor(numbers.astype("int32"))


def candidates(vectors: Tensor, valid: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a vector for each code to move onto, and returns whether it is valid.

    `[N, D]`, booleans `[N]`, int32 seeds `[K]` -> `[K, D]`, booleans `[K]`.

    The row of a code is its seed modulo the number of rows. This needs no random numbers in the step, no sorting, and
    no search for the valid rows. A dead code whose row is not valid waits for the next step.
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
    """Finds dead codes: codes whose moving count is below `threshold` times the mean moving count.

    Args:
        ema_counts: Moving counts, `[K]`.
        usable: Booleans `[K]`. `False` for codes without a valid vector to move onto, which are not returned as dead.
        threshold: Fraction of the mean, at least 0. With 0, no code is dead.

    Returns:
        `(dead, alive_from)`: booleans `[K]`, and the smallest moving count of a code that is not dead, a scalar.
    """
    alive_from = ops.mean(ema_counts) * threshold
    return ops.logical_and(ema_counts < alive_from, usable), alive_from
