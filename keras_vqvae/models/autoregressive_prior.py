"""The prior that draws one code after another."""

from typing import Any

import keras
from keras import ops

from keras_vqvae.arguments import Tensor
from keras_vqvae.models import generation, sampling
from keras_vqvae.models.prior import Prior


@keras.saving.register_keras_serializable(package="keras_vqvae")
class AutoregressivePrior(Prior):
    """A Transformer that draws the codes of a sample one after another, each given those before it.

    The order is that of the rows, the levels of a residual last: `codes.reshape(samples, -1)`. `fit(codes)`, or
    `fit(codes, labels)` with `num_classes`, trains it; `loss` is the exact negative log-likelihood in nats a code, and
    `perplexity` its exponential. Called on codes, or on `(codes, labels)`, it returns the logits of each code.

    Arguments, inputs and outputs are those of `Prior`.

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
    - [Ho and Salimans, 2022](https://arxiv.org/abs/2207.12598), for `guidance`
    """

    def logits(self, codes: Tensor, labels: Tensor, training: bool) -> Tensor:
        return self.transformer(codes, labels, causal=True, training=training)

    def nats(self, codes: Tensor, labels: Tensor, training: bool) -> Tensor:
        logits = self.logits(codes, labels, training)
        return ops.sparse_categorical_crossentropy(codes, logits, from_logits=True)

    def bits_shape(self, **options: Any) -> tuple[int, ...]:
        return (self.length,)

    def sample_codes(
        self, known: Tensor, labels: Tensor, bits: Tensor, guidance: float | None, **restrictions: Any
    ) -> Tensor:
        labels, copies = generation.paired(labels, self.num_classes, guidance)

        def step(position: Tensor, state: tuple) -> tuple:
            codes, before, caches = state
            logits, caches = self.transformer.step(ops.tile(before, copies), labels, caches, position)
            logits = sampling.restrict(sampling.guide(logits, guidance), **restrictions)
            drawn = sampling.draw(logits, ops.take(bits, position, axis=1))
            given = ops.take(known, position, axis=1)
            drawn = ops.where(given < 0, drawn, given)
            return ops.slice_update(codes, (0, position), ops.expand_dims(drawn, 1)), drawn, caches

        start = ops.full_like(known[:, 0], self.num_embeddings)
        caches = self.transformer.start_caches(ops.shape(labels)[0])
        return ops.fori_loop(0, self.length, step, (known, start, caches))[0]
