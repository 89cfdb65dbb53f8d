"""Functions with gradients of their own, in the general form."""

from collections.abc import Sequence

from keras import ops

from keras_vqvae.backend import directions
from keras_vqvae.backend.search import Search
from keras_vqvae.types import Tensor


class Gradients(Search):
    """Estimators, directions and losses."""

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
