"""The moving average of the vectors that chose each code.

Shapes in comments: `K` codes, `D` dimensions.
"""

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

SPAN_GROWTH = 1 / 20
"""What the span of the average grows by in each step: it goes over the last twentieth of the training so far."""


def rate_of_step(decay: float, span: Tensor, total: Tensor, num_embeddings: int) -> Tensor:
    """The rate of a step, `1 - g` for a decay `g`; 0 for a batch without a valid vector.

    It begins as `1 / span`, and falls to `1 - decay`. At the start codes and vectors move most: with `decay` only,
    codes would long average over what was there first. The residuals of stages change most, and the deepest stage would
    end up to 12% above k-means, see `docs/studies/residual-training.md`. The average never begins over fewer than ten
    vectors a code.

    Args:
        decay: Decay in the end.
        span: Over how many steps the average goes at the start: 1, and `SPAN_GROWTH` more for each step.
        total: How many vectors count, a float32 scalar.
        num_embeddings: Number of codes, `K`.
    """
    start = ops.minimum(ops.reciprocal(span), total * (0.1 / num_embeddings))
    # Changes nothing unless `total` is 0.
    return ops.minimum(backend.at_least(start, 1 - decay), total)


def update(
    codebook: keras.Variable, ema_counts: keras.Variable, counts: Tensor, differences: Tensor, rate: Tensor
) -> None:
    """Moves the codebook one step towards the moving average of the vectors that chose each code.

    With `n` the counts of the batch, `s` the sums of each code's vectors, `N` the moving counts (0 at the start) and
    `g` the decay:

        N <- g N + (1 - g) n
        e <- e + (1 - g) (s - n e) / N

    This keeps `m = N e` of the paper's appendix A.1 without storing it. There is no start-up bias (the first vectors
    put a code on their mean), and a code that was not chosen stays where it is.

    Args:
        codebook: `[K, D]`, `e`, the one that the vectors were assigned by.
        ema_counts: `[K]`, `N`.
        counts: Float32 `[K]`, `n`.
        differences: `[K, D]`, `s - n e`: the sums of the differences between vectors and their code.
        rate: `1 - g`.

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), appendix A.1
    """
    backend.move_to(ema_counts, counts, rate)
    # A code that was not chosen may have the moving count 0; its difference is 0, too.
    step = rate / backend.at_least(ops.convert_to_tensor(ema_counts), 1e-30)
    backend.add_product(codebook, ops.expand_dims(step, -1), differences)
