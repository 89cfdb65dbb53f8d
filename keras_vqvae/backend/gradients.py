"""Functions with gradients of their own, in the general form."""

from collections.abc import Sequence

from keras import ops

from keras_vqvae.backend import directions
from keras_vqvae.backend.search import Search
from keras_vqvae.types import Tensor


class Gradients(Search):
    """Estimators, directions and losses."""

    def copy_gradient(self, z: Tensor, q: Tensor) -> Tensor:
        """Returns the values of `q`, and copies the gradient to `z`. `q` gets no gradient."""
        # Like `z + stop_gradient(q - z)`, but without rounding: the added difference is exactly 0.
        return ops.stop_gradient(q) + (z - ops.stop_gradient(z))

    def with_gradients(self, value: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Returns the scalar `value` with given gradients.

        Args:
            value: A constant scalar.
            pairs: Tensors with their gradients, constants of the same shape.
        """
        # Adds terms that are 0 and have these gradients. Elements without a gradient are left out: they may be NaN.
        for x, gradient in pairs:
            value = value + ops.sum(gradient * ops.where(gradient == 0, 0.0, x - ops.stop_gradient(x)))
        return value

    def scores(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Returns `-|z - e|^2` plus a constant for each vector: `[N, D]`, `[K, D]` -> `[N, K]`.

        Vectors and codes are shifted so that the mean of the codes is 0. This changes no distance, and avoids the
        rounding errors of products far from 0.
        """
        centre = ops.stop_gradient(ops.mean(codes, axis=0))
        vectors, codes = self.zero_nonfinite(vectors) - centre, codes - centre
        return 2 * (self.matmul(vectors, ops.transpose(codes)) + self.search_bias(codes))

    def relax(self, codes: Tensor, p: Tensor, codebook: Tensor) -> Tensor:
        """Returns the values of `codes`. `codes` get the gradient, and `p` gets it as if the output were `p codebook`.

        `[N, D]`, `[N, K]`, `[K, D]` -> `[N, D]`. The codebook gets no gradient.
        """
        return codes + self.matmul(p - ops.stop_gradient(p), codebook)

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `x / |x|` (0 for `x = 0`) and `|x|`, with finite gradients: `[..., D]` -> `[..., D]`, `[..., 1]`.

        The gradient of `keras.ops.normalize` is NaN at 0.
        """
        return directions.normalize(x)

    def rotate(self, z: Tensor, q: Tensor) -> Tensor:
        """Returns the values of `q`. `z` gets the gradient of `estimators.rotation`, and `q` none: `[..., D]` each."""
        return directions.rotate(z, q)

    def squared_errors(
        self, vectors: Tensor, codes: Tensor, valid: Tensor, count: Tensor, weights: tuple[float, float]
    ) -> tuple[Sequence[Tensor | None], Tensor]:
        """Returns the mean squared error over valid rows twice, as commitment loss and as codebook loss.

        Args:
            vectors: `[N, D]`. They get the gradient of the first loss only.
            codes: `[N, D]`. They get the gradient of the second loss only.
            valid: Booleans `[N]`.
            count: Number of true elements in `valid`.
            weights: Weights of the two losses. A loss with the weight 0 is `None`.

        Returns:
            `(losses, differences)`: the two losses, and `vectors - codes` without a gradient, `[N, D]`. Differences of
            rows that are not valid are 0.
        """
        stopped = ops.stop_gradient(vectors), ops.stop_gradient(codes)
        # Masked before they are squared: the gradient of a masked square of NaN is `0 * NaN`, a NaN.
        pairs = (vectors - stopped[1], stopped[0] - codes)
        scale = self.at_least(count, 1.0) * vectors.shape[-1]
        losses = [
            weight * ops.sum(ops.square(self.masked(pair, valid))) / scale if weight else None
            for pair, weight in zip(pairs, weights, strict=True)
        ]
        return losses, self.masked(stopped[0] - stopped[1], valid)
