"""The sum of a residual's stages and its gradient."""

from keras import ops

from keras_vqvae.ops import estimators
from keras_vqvae.types import Tensor


class StageSum:
    """Adds up the outputs `q_i` of stages. Each stage quantizes the `residual` of the stages before it.

    The residual is `r_(i + 1) = r_i - q_i`, with the gradient of this formula. If every stage is straight-through, this
    gradient is 0, and the losses of the stages would not reach the encoder. In that
    case it is `r_i - stop_gradient(q_i)`.

    Args:
        vectors: Vectors `z` that the first stage quantizes.
        copied: Whether every stage is straight-through. The sum then copies the gradient once, with the same result.
    """

    def __init__(self, vectors: Tensor, copied: bool):
        self._copied = copied
        self._residual = vectors
        self._last: Tensor | None = None
        self._codes: Tensor | None = None
        self._outputs: Tensor | None = None

    @property
    def residual(self) -> Tensor:
        """The residual of the stages so far."""
        if self._last is not None:
            # Computed only when read, because the residual of the last stage is not needed.
            self._residual, self._last = self._residual - self._last, None
        return self._residual

    def add(self, codes: Tensor, quantized: Tensor | None) -> None:
        """Adds the codes of a stage, and its output. The output is `None` if every stage is straight-through."""
        self._codes = codes if self._codes is None else self._codes + codes
        if self._copied:
            self._last = ops.stop_gradient(codes)
        else:
            self._last = quantized
            self._outputs = quantized if self._outputs is None else self._outputs + quantized

    @property
    def codes(self) -> Tensor:
        """The sum of the codes. Its gradient reaches the codebooks."""
        return self._codes

    def output(self, training: bool) -> Tensor | None:
        """Returns the sum of the outputs. In inference its value is the sum of the codes, exactly as in `decode`.

        Returns `None` if every stage is straight-through. The output is then computed from the sum of the codes.
        """
        if self._copied:
            return None
        return self._outputs if training else estimators.straight_through(self._outputs, self._codes)
