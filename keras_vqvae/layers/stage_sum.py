"""The sum of a residual's stages, with the gradient of each."""

from keras import ops

from keras_vqvae import estimators
from keras_vqvae.arguments import Tensor


class StageSum:
    """Adds up the outputs `q_i` of stages, each of which quantizes what the stages before it left.

    A stage gets two tensors of the same values. The gradient of its losses follows the first one,
    `z - stop_gradient(q_0 + ... + q_(i - 1))`, and that of its output the second one, `r_(i + 1) = r_i - q_i`.

    Args:
        vectors: What the first stage quantizes, `z`.
        through: The same values, for the gradient of the output, or `None`: `vectors`.
        copied: Whether each stage copies the gradient. The sum then copies it once, whatever their number: `r_1` and
            all later residuals have none, so the second tensor is not needed.
    """

    def __init__(self, vectors: Tensor, through: Tensor | None, copied: bool):
        self._copied = copied
        self._start = vectors if through is None else through
        self._seen, self._through = vectors, through
        self._last: Tensor | None = None
        self._codes: Tensor | None = None
        self._outputs: Tensor | None = None

    def next_stage(self) -> tuple[Tensor, Tensor | None]:
        """Returns the two tensors for the next stage; the second is `None` where it is not needed."""
        if self._last is not None:
            self._seen = self._seen - ops.stop_gradient(self._last)
            if not self._copied:
                self._through = (self._start if self._through is None else self._through) - self._last
        return self._seen, None if self._copied else self._through

    def add(self, codes: Tensor, quantized: Tensor | None) -> None:
        """Adds a stage: its codes, with the gradient of the codebook, and its output unless the gradient is copied."""
        self._codes = codes if self._codes is None else self._codes + codes
        self._last = codes if self._copied else quantized
        if not self._copied:
            self._outputs = quantized if self._outputs is None else self._outputs + quantized

    @property
    def codes(self) -> Tensor:
        """The sum of the codes, with the gradient of the codebooks."""
        return self._codes

    def output(self, training: bool) -> Tensor:
        """Returns the sum of the outputs; in inference exactly the sum of the codes, as `decode` adds them."""
        if self._copied:
            return estimators.straight_through(self._start, self._codes)
        return self._outputs if training else estimators.straight_through(self._outputs, self._codes)
