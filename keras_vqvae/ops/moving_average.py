"""The moving average of the vectors that chose each code.

Shapes in comments: `K` codes, `D` dimensions.
"""

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

SPAN_GROWTH = 1 / 20
"""Increment of the average's span in each step. During the warm-up, the span is about 1/20 of the steps so far."""


def rate_of_step(decay: float, span: Tensor, total: Tensor, num_embeddings: int) -> Tensor:
    """Returns the rate of a step, `1 - g` for a decay `g`. It is 0 for a batch without a valid vector.

    During the warm-up the rate is `1 / span`, which falls from 1 to `1 - decay`. Vectors move most at the start of
    training, and with a constant decay the codes would average over old vectors for too long. The last stage of a
    residual would suffer most: see `docs/studies/residual-training.md`. The rate is also limited so that, at the start,
    the average covers at least 10 vectors per code.

    Args:
        decay: Decay after the warm-up.
        span: Number of steps that the average covers during the warm-up: 1, plus `SPAN_GROWTH` for each step.
        total: Number of valid vectors, a float32 scalar.
        num_embeddings: Number of codes, `K`.
    """
    start = ops.minimum(ops.reciprocal(span), total * (0.1 / num_embeddings))
    # This minimum only matters if `total` is 0.
    return ops.minimum(backend.at_least(start, 1 - decay), total)


def update(
    codebook: keras.Variable, ema_counts: keras.Variable, counts: Tensor, differences: Tensor, rate: Tensor
) -> None:
    """Moves the codebook one step towards the moving average of the vectors that chose each code.

    Here `n` are the counts of the batch, `s` the sums of each code's vectors, `N` the moving counts (0 at the start)
    and `g` the decay:

        N <- g N + (1 - g) n
        e <- e + (1 - g) (s - n e) / N

    This is the update of the paper's appendix A.1, without storing its `m = N e`. The average has no start-up bias: the
    first vectors of a code move it to their mean. A code that was not chosen does not move.

    Args:
        codebook: Codes `e`, `[K, D]`, to which the vectors were assigned.
        ema_counts: Moving counts `N`, `[K]`.
        counts: Counts of the batch `n`, float32 `[K]`.
        differences: Sums of the differences between vectors and their codes, `s - n e`, `[K, D]`.
        rate: `1 - g`.

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), appendix A.1
    """
    backend.move_to(ema_counts, counts, rate)
    # Avoids a division by 0 for a code that was never chosen. Its difference is 0, too.
    step = rate / backend.at_least(ops.convert_to_tensor(ema_counts), 1e-30)
    backend.add_product(codebook, ops.expand_dims(step, -1), differences)
