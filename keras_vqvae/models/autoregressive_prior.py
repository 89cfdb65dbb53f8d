"""The prior that draws codes one after another."""

from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_vqvae.models import generation, likelihood, sampling
from keras_vqvae.models.causal_transformer import CausalCodeTransformer
from keras_vqvae.models.prior import Prior
from keras_vqvae.types import Tensor

_State: TypeAlias = tuple[Tensor, Tensor, list[Tensor]]
"""The state of a sampling loop: all codes, the input of the next step, and the caches."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class AutoregressivePrior(Prior):
    """A Transformer that draws the codes of a sample one after another, each given the codes before it.

    The order is as in `codes.reshape(samples, -1)`: row by row, and the stages of a residual innermost. `fit(codes)`
    trains it, or `fit(codes, labels)` with `num_classes`. `loss` is the exact negative log-likelihood in nats per code,
    and `perplexity` is its exponential; callbacks that monitor it need `mode="min"`. Called on codes or on
    `(codes, labels)`, it returns the logits of each code.

    `generate(known=...)` keeps known codes and draws the others. Each is drawn given only the codes before it. Known
    codes after it are kept, but do not influence it: to fill a hole between known codes, use `MaskedPrior`.

    If a position has several codes (`index_shape`), one Transformer processes the positions, and a second one with half
    as many blocks processes the codes of each position.

    `from_model` makes one for a `VQVAE`. `Prior` describes the arguments, inputs and outputs.

    Example:

    >>> codes = np.random.default_rng(0).integers(0, 16, (64, 3, 3))
    >>> prior = AutoregressivePrior(num_embeddings=16, shape=(3, 3), num_layers=1, hidden_dim=32)
    >>> prior.compile(optimizer="adam")
    >>> history = prior.fit(codes, verbose=0)
    >>> sorted(history.history)
    ['loss', 'perplexity']
    >>> new = prior.generate(5, verbose=0)
    >>> new.shape, str(new.dtype)
    ((5, 3, 3), 'int32')

    Reference:

    - [van den Oord et al., 2017, section 3.3](https://arxiv.org/abs/1711.00937)
    - [Lee et al., 2022, section 3.2](https://arxiv.org/abs/2203.01941), for several codes per position
    - [Ho and Salimans, 2022](https://arxiv.org/abs/2207.12598), for classifier-free guidance
    """

    transformer_class = CausalCodeTransformer

    def logits(self, codes: Tensor, labels: Tensor, training: bool) -> Tensor:
        return self.transformer(codes, labels, training=training)

    def log_likelihood(
        self,
        codes: Tensor,
        labels: Tensor | None = None,
        *,
        batch_size: int = 128,
        verbose: str | int = "auto",
    ) -> np.ndarray:
        """Returns the log-probability of each code given the codes before it, in nats.

        The sum over a sample's codes is the exact log-likelihood of the sample. Low values mark codes and samples that
        are unlike the training data, for example as an anomaly score.

        Args:
            codes: Integers `[n, *shape]`.
            labels: Class of each sample, integers `[n]`, or one class for all. Defaults to `None`: the likelihood
                without a class.
            batch_size: Samples per batch. The values do not depend on it. Defaults to `128`.
            verbose: As in `predict`. Defaults to `"auto"`.

        Returns:
            A float32 array `[n, *shape]`.

        Raises:
            ValueError: If a code or a label is out of range or has another shape.

        Example:

        >>> prior = AutoregressivePrior(num_embeddings=16, shape=(3, 3), num_layers=1, hidden_dim=32)
        >>> nats = prior.log_likelihood(np.zeros((5, 3, 3), "int32"), verbose=0)
        >>> nats.shape, nats.sum(axis=(1, 2)).shape
        ((5, 3, 3), (5,))
        """
        codes, labels = likelihood.check(self, codes, labels)
        return likelihood.log_probabilities(self, codes, codes, labels, batch_size, verbose)

    def bits_shape(self, **options: Any) -> tuple[int, ...]:
        return (self.length,)

    def sample_codes(  # type: ignore[override]  # The options are those of `generate`.
        self, known: Tensor, labels: Tensor, bits: Tensor, guidance_scale: Tensor | None, **restrictions: Any
    ) -> Tensor:
        labels, copies = generation.paired(labels, self.num_classes, guidance_scale)
        network, stages = self.transformer, self.transformer.num_codebooks
        caches, stage_caches = network.start_caches(ops.shape(labels)[0])

        def draw_position(position: Tensor, state: _State) -> _State:
            codes, before, caches = state
            x, caches = network.step_position(ops.tile(before, (copies, 1)), labels, caches, position)

            def draw_stage(stage: Tensor, state: _State) -> _State:
                codes, so_far, caches = state
                inputs = ops.where(stage == 0, x, ops.tile(so_far, (copies, 1)))
                logits, caches = network.step_stage(inputs, caches, stage)
                logits = sampling.restrict(sampling.guide(logits, guidance_scale), **restrictions)
                column = position * stages + stage
                given = ops.take(codes, column, axis=1)
                drawn = ops.where(given < 0, sampling.draw(logits, ops.take(bits, column, axis=1)), given)
                codes = ops.slice_update(codes, (0, column), ops.expand_dims(drawn, 1))
                return codes, so_far + network.embed(drawn, stage), caches

            codes, so_far, _ = ops.fori_loop(0, stages, draw_stage, (codes, ops.zeros_like(before), stage_caches))
            return codes, so_far, caches

        return ops.fori_loop(0, network.num_positions, draw_position, (known, network.start(known[:, 0]), caches))[0]
