"""Base class of quantizers whose codes are signs."""

from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.implicit_quantizer import ImplicitQuantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.types import Tensor


class BinaryQuantizer(ImplicitQuantizer):
    """Base class of quantizers that keep the sign of each axis. Each sign is a bit of the index.

    The entropy loss, `entropy_weight * (E[H(p)] - diversity_weight * H(E[p]))`, makes each vector's assignment certain
    and the usage of all codes equal. The soft assignments `p` are a softmax of the negative squared distances divided
    by `temperature`. For a given vector the bits are independent under `p`, so `H(p)` is the sum of the bits'
    entropies. A subclass computes `H(E[p])` in `mean_entropy`.

    `LookupFreeQuantizer` describes the arguments.
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
        """Size of the codes, relative to the codes of a residual's first stage."""

    @property
    def code_size(self) -> float:
        """The absolute value of each element of a code, in the first stage of a residual."""
        return 1.0

    def set_stage(self, stage: int) -> None:
        super().set_stage(stage)
        self._code_scale = 0.5**stage

    def to_digits(self, vectors: Tensor) -> Tensor:
        return ops.cast(vectors > 0, "float32")

    def from_digits(self, digits: Tensor) -> Tensor:
        return (2.0 * digits - 1.0) * (self.code_size * self._code_scale)

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        # Scaled to the first stage's size, so that all stages have equal weight.
        added = record.squared_errors(self.commitment_weight / self._code_scale**2, 0.0)
        if self.entropy_weight:
            added["entropy_loss"] = self._entropy_loss(record)
        return added

    def _entropy_loss(self, record: Record) -> Tensor:
        # The gradient is in closed form, which takes fewer operations than automatic differentiation. The 1 in
        # `d (p log p) / d log p = p (log p + 1)` is left out, because assignments always sum to 1.
        # `|z + s|^2 - |z - s|^2` is `4 z s` for a bit of size `s`.
        scale = 4 * self.code_size / (self.temperature * self._code_scale)
        log_odds = backend.masked(ops.stop_gradient(record.vectors), record.valid) * scale
        # Log-probabilities of ones, then of zeros: `[N, D]` -> `[N, 2 D]`
        log_p = ops.log_sigmoid(ops.concatenate([log_odds, -log_odds], axis=-1))
        p = ops.exp(log_p)
        weights = ops.expand_dims(ops.cast(record.valid, "float32") / backend.at_least(record.count, 1.0), -1)
        own = weights * p * log_p
        of_mean, by_log_p = self.mean_entropy(log_p, weights)
        by_log_p = (self.diversity_weight * by_log_p - own) * (1.0 - p)
        by_vectors = (by_log_p[:, : self.num_bits] - by_log_p[:, self.num_bits :]) * (scale * self.entropy_weight)
        value = (self.diversity_weight * of_mean - ops.sum(own)) * self.entropy_weight
        return backend.with_gradients(value, [(record.vectors, by_vectors)])

    def mean_entropy(self, log_p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `-H(E[p])`, the negative entropy of the mean assignment, and its gradient with respect to `log_p`.

        Args:
            log_p: Log-probabilities of ones, then of zeros, `[N, 2 D]`.
            weights: Weights of the vectors in the mean, `[N, 1]`, which sum to 1.

        Returns:
            A scalar and a tensor `[N, 2 D]`.
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
