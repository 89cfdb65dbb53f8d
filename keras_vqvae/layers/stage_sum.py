"""The sum of a residual's stages, with the gradient of each."""

from keras import ops

from keras_vqvae.ops import estimators
from keras_vqvae.types import Tensor


class StageSum:
    """Adds up the outputs `q_i` of stages, each of which quantizes the `residual` of those before it.

    The residual is `r_(i + 1) = r_i - q_i`, with the gradient of this formula. Where every stage copies the gradient it
    would have none, and the losses of the stages would not reach the encoder; it is `r_i - stop_gradient(q_i)` then.

    Args:
        vectors: What the first stage quantizes, `z`.
        copied: Whether every stage copies the gradient. The sum then copies it once, which is the same.
    """

    def __init__(self, vectors: Tensor, copied: bool):
        self._copied = copied
        self._residual = vectors
        self._last: Tensor | None = None
        self._codes: Tensor | None = None
        self._outputs: Tensor | None = None

    @property
    def residual(self) -> Tensor:
        """What the stages so far have left."""
        if self._last is not None:
            # Here and not in `add`: the last stage's residual is never needed.
            self._residual, self._last = self._residual - self._last, None
        return self._residual

    def add(self, codes: Tensor, quantized: Tensor | None) -> None:
        """Adds a stage: its codes, with the gradient of the codebook, and its output unless the gradient is copied."""
        self._codes = codes if self._codes is None else self._codes + codes
        if self._copied:
            self._last = ops.stop_gradient(codes)
        else:
            self._last = quantized
            self._outputs = quantized if self._outputs is None else self._outputs + quantized

    @property
    def codes(self) -> Tensor:
        """The sum of the codes, with the gradient of the codebooks."""
        return self._codes

    def output(self, training: bool) -> Tensor | None:
        """Returns the sum of the outputs; in inference exactly the sum of the codes, as `decode` adds them.

        `None` where every stage copies the gradient: the output is then the straight-through one of the codes.
        """
        if self._copied:
            return None
        return self._outputs if training else estimators.straight_through(self._outputs, self._codes)
