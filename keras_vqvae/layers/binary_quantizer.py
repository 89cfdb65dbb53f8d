"""Base class of quantizers whose codes are signs."""

from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.implicit_quantizer import ImplicitQuantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.types import Tensor


class BinaryQuantizer(ImplicitQuantizer):
    """Base class of the quantizers that keep the sign of each axis: each is a bit of the index.

    The entropy loss, `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))`, makes each vector sure of its code and
    all codes equally used; `p` are softmax assignments by squared distance divided by `temperature`. Given a
    vector, the bits are independent under `p`, so that its entropy is the sum of theirs. A subclass defines how it
    takes the entropy of the mean, in `mean_entropy`.

    The arguments are those of `LookupFreeQuantizer`.
    """

    _size_argument = "num_bits"

    def __init__(
        self,
        num_bits: int,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        **kwargs: Any,
    ):
        self.num_bits = validation.positive_int("num_bits", num_bits)
        if self.num_bits > 30:
            raise ValueError(f"`num_bits` must be at most 30, for int32 indices. Received: num_bits={num_bits!r}")
        super().__init__((2,) * self.num_bits, most_significant_first=True, **kwargs)
        self.commitment_weight = validation.non_negative("commitment_weight", commitment_weight)
        self.entropy_weight = validation.non_negative("entropy_weight", entropy_weight)
        self.diversity_weight = validation.non_negative("diversity_weight", diversity_weight)
        self.temperature = validation.positive("temperature", temperature)
        self._code_scale = 1.0
        """Size of the codes relative to those of the first stage of a residual."""

    @property
    def code_size(self) -> float:
        """The absolute value of each element of a code."""
        return 1.0

    def set_stage(self, stage: int) -> None:
        super().set_stage(stage)
        self._code_scale = 0.5**stage

    def to_digits(self, vectors: Tensor) -> Tensor:
        return ops.cast(vectors > 0, "float32")

    def from_digits(self, digits: Tensor) -> Tensor:
        return (2.0 * digits - 1.0) * (self.code_size * self._code_scale)

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        # Scaled to the first stage's size, so that every stage counts as much.
        added = record.squared_errors(self.commitment_weight / self._code_scale**2, 0.0)
        if self.entropy_weight:
            added["entropy_loss"] = self._entropy_loss(record)
        return added

    def _entropy_loss(self, record: Record) -> Tensor:
        # Its gradient in closed form, which takes fewer operations than one that is derived. The 1 in
        # `d (p log p) / d log p = p (log p + 1)` is left out everywhere: assignments always sum to 1.
        # `|z + s|^2 - |z - s|^2` is `4 z s` for a bit of size `s`.
        scale = 4 * self.code_size / (self.temperature * self._code_scale)
        log_odds = backend.masked(ops.stop_gradient(record.vectors), record.valid) * scale
        # Of ones and of zeros: `[N, D]` -> `[N, 2 D]`
        log_p = ops.log_sigmoid(ops.concatenate([log_odds, -log_odds], axis=-1))
        p = ops.exp(log_p)
        shares = ops.expand_dims(ops.cast(record.valid, "float32") / backend.at_least(record.count, 1.0), -1)
        unsure = shares * p * log_p
        spread, by_log_p = self.mean_entropy(log_p, shares)
        by_log_p = (self.diversity_weight * by_log_p - unsure) * (1.0 - p)
        by_vectors = (by_log_p[:, : self.num_bits] - by_log_p[:, self.num_bits :]) * (scale * self.entropy_weight)
        value = (self.diversity_weight * spread - ops.sum(unsure)) * self.entropy_weight
        return backend.with_gradients(value, [(record.vectors, by_vectors)])

    def mean_entropy(self, log_p: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """`E[p] log E[p]`, the entropy of the mean assignments but for its sign, and its gradient by `log_p`.

        The logarithms of the probabilities of ones and of zeros `[N, 2 D]`, and weights of the vectors `[N, 1]` that
        sum to 1 -> a scalar and `[N, 2 D]`.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_bits": self.num_bits,
            "commitment_weight": self.commitment_weight,
            "entropy_weight": self.entropy_weight,
            "diversity_weight": self.diversity_weight,
            "temperature": self.temperature,
        }
