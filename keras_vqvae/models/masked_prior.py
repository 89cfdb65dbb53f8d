"""The prior that draws many codes at once, in a few steps."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.models import generation, likelihood, sampling
from keras_vqvae.models.prior import Prior
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class MaskedPrior(Prior):
    """MaskGIT: a Transformer that fills in codes, many at a time, the most certain ones first.

    `fit(codes)` trains it, or `fit(codes, labels)` with `num_classes`. In training, a random number of a sample's
    codes, from one to all, is masked and predicted from the others. `loss` is the mean over the masked codes, in nats
    per code. Its average over masks is an upper bound on the negative log-likelihood if codes are drawn one by one in a
    random order. `perplexity` is its exponential; callbacks that monitor it need `mode="min"`.

    Called on codes or on `(codes, labels)`, it returns the logits of each code. The code `num_embeddings` marks a code
    to fill in.

    `generate(known=...)` keeps known codes, and draws each of the others given all known codes.

    `from_model` makes one for a `VQVAE`. `Prior` describes the arguments, inputs and outputs.

    Example:

    >>> codes = np.random.default_rng(0).integers(0, 16, (64, 3, 3))
    >>> prior = MaskedPrior(num_embeddings=16, shape=(3, 3), num_layers=1, hidden_dim=32)
    >>> prior.compile(optimizer="adam")
    >>> history = prior.fit(codes, verbose=0)
    >>> sorted(history.history)
    ['loss', 'perplexity']
    >>> prior.generate(5, num_steps=4, verbose=0).shape
    (5, 3, 3)

    Reference:

    - [Chang et al., 2022](https://arxiv.org/abs/2202.04200)
    - [Hoogeboom et al., 2022, equation 3](https://arxiv.org/abs/2110.02037), for the bound
    """

    takes_masked = True
    generate_options = ("num_steps", "choice_temperature")

    def logits(self, codes: Tensor, labels: Tensor, training: bool) -> Tensor:
        return self.transformer(codes, labels, training=training)

    def corrupt(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        seed = self.transformer.seed_generator
        samples = ops.shape(codes)[0]
        # Numbers of masked codes are uniform from 1 to `length`, and spread evenly over the batch, to reduce noise.
        offsets = ops.cumsum(ops.ones((samples,), "float32")) / ops.cast(samples, "float32")
        fractions = (offsets + keras.random.uniform((), seed=seed)) % 1.0
        counts = ops.expand_dims(ops.minimum(ops.floor(fractions * self.length) + 1.0, self.length), 1)
        ranks = ops.argsort(ops.argsort(keras.random.uniform(ops.shape(codes), seed=seed)))
        masked = ops.cast(ranks, "float32") < counts
        # With these weights, the mean over all codes equals the mean over the masked ones.
        return ops.where(masked, self.num_embeddings, codes), ops.where(masked, self.length / counts, 0.0)

    def generate(
        self,
        num_samples: int,
        labels: Tensor | None = None,
        *,
        num_steps: int = 12,
        choice_temperature: float = 4.5,
        **keywords: Any,
    ) -> np.ndarray:
        """Draws the codes of new samples, or the unknown codes of given samples.

        Each step draws all codes that are still masked, and keeps the most likely ones. After `t` of `T` steps, a
        fraction of `cos(pi / 2 * t / T)` is still masked.

        Args:
            num_samples: Number of samples, `n`.
            labels: Class of each sample, integers `[n]`, or one class for all. Defaults to `None`, any class.
            num_steps: Number of steps, reduced to the number of a sample's codes if it is larger. Defaults to `12`.
            choice_temperature: Randomness in choosing which codes to keep at each step. 0 keeps the most likely ones;
                larger values add Gumbel noise, annealed to zero by the last step. Defaults to `4.5`.
            **keywords: Arguments of `Prior.generate`, such as `known`, `temperature` and `seed`.

        Returns:
            An int32 array `[n, *shape]`.

        Raises:
            ValueError: If a label or a code is out of range, or a sampling argument is invalid.

        Example:

        >>> prior = MaskedPrior(num_embeddings=16, shape=(3, 3), num_layers=1, hidden_dim=32)
        >>> known = np.full((5, 3, 3), 7)
        >>> known[:, 1, 1] = -1
        >>> codes = prior.generate(5, known=known, verbose=0)
        >>> bool((codes[:, 0] == 7).all()), bool((codes[:, 1, 1] >= 0).all())
        (True, True)
        """
        return super().generate(
            num_samples,
            labels,
            num_steps=min(validation.positive_int("num_steps", num_steps), self.length),
            choice_temperature=validation.non_negative("choice_temperature", choice_temperature),
            **keywords,
        )

    def log_likelihood(
        self,
        codes: Tensor,
        labels: Tensor | None = None,
        *,
        num_steps: int = 12,
        seed: int = 0,
        batch_size: int = 128,
        verbose: str | int = "auto",
    ) -> np.ndarray:
        """Returns the log-probability of each code in nats, if codes are drawn in a random order in `num_steps` steps.

        `seed` determines one order for all samples, which is split into `num_steps` groups of equal size. The codes of
        a group are predicted together, given the groups before. The sum over a sample's codes is the exact
        log-likelihood of the sample if it is drawn in this order and these groups.

        If each step has one code (`num_steps` is at least the number of codes), the mean over seeds is a lower bound on
        the log-likelihood, the same bound that `loss` estimates. Fewer steps take less time, but give lower values on
        average, because codes that are predicted together do not depend on each other.

        Values are comparable between samples, and between calls with equal `num_steps` and `seed`. For a score that
        depends less on the order, average over several seeds.

        Args:
            codes: Integers `[n, *shape]`.
            labels: Class of each sample, integers `[n]`, or one class for all. Defaults to `None`: the likelihood
                without a class.
            num_steps: Number of steps, reduced to the number of a sample's codes if it is larger. Each step is one pass
                of the network over all codes. Defaults to `12`.
            seed: Integer that determines the order. Defaults to `0`.
            batch_size: Samples per batch. The values do not depend on it. Defaults to `128`.
            verbose: As in `predict`, for each step. Defaults to `"auto"`.

        Returns:
            A float32 array `[n, *shape]`.

        Raises:
            ValueError: If a code or a label is out of range or has another shape, or `num_steps` or `seed` is invalid.

        Example:

        >>> prior = MaskedPrior(num_embeddings=16, shape=(3, 3), num_layers=1, hidden_dim=32)
        >>> nats = prior.log_likelihood(np.zeros((5, 3, 3), "int32"), num_steps=4, verbose=0)
        >>> nats.shape, nats.sum(axis=(1, 2)).shape
        ((5, 3, 3), (5,))
        """
        codes, labels = likelihood.check(self, codes, labels)
        num_steps = min(validation.positive_int("num_steps", num_steps), self.length)
        order = np.random.default_rng(validation.non_negative_int("seed", seed)).permutation(self.length)
        steps = (order * num_steps // self.length).reshape(self.shape)
        result = np.zeros(codes.shape, "float32")
        for step in range(num_steps):
            given = np.where(steps >= step, self.num_embeddings, codes).astype("int32")
            nats = likelihood.log_probabilities(self, given, codes, labels, batch_size, verbose)
            result[:, steps == step] = nats[:, steps == step]
        return result

    def bits_shape(  # type: ignore[override]  # The options are those of `generate`.
        self, num_steps: int, **options: Any
    ) -> tuple[int, ...]:
        return (num_steps, 2, self.length)

    def sample_codes(  # type: ignore[override]  # The options are those of `generate`.
        self,
        known: Tensor,
        labels: Tensor,
        bits: Tensor,
        num_steps: int,
        guidance_scale: Tensor | None,
        choice_temperature: Tensor,
        **restrictions: Any,
    ) -> Tensor:
        labels, copies = generation.paired(labels, self.num_classes, guidance_scale)
        given = ops.sum(ops.cast(known >= 0, "float32"), axis=1, keepdims=True)

        def step(index: Tensor, codes: Tensor) -> Tensor:
            done = ops.cast(index + 1, "float32") / num_steps
            numbers = ops.take(bits, index, axis=1)
            masked = codes == self.num_embeddings
            logits = self.logits(ops.tile(codes, (copies, 1)), labels, training=False)
            logits = sampling.restrict(sampling.guide(logits, guidance_scale), **restrictions)
            drawn = sampling.draw(logits, numbers[:, 0])
            confidence = -ops.sparse_categorical_crossentropy(drawn, logits, from_logits=True)
            # Gumbel noise, annealed to zero by the last step.
            noise = -ops.log(-ops.log(sampling.uniforms(numbers[:, 1])))
            confidence = confidence + choice_temperature * (1.0 - done) * noise
            ranks = ops.argsort(ops.argsort(ops.where(masked, confidence, math.inf)))
            # Plus 1e-3, because rounding can bring a cosine of exactly 1/2 below it.
            remaining = ops.floor((self.length - given) * ops.cos(math.pi / 2 * done) + 1e-3)
            stays_masked = ops.cast(ranks, "float32") < remaining
            return ops.where(stays_masked, self.num_embeddings, ops.where(masked, drawn, codes))

        start = ops.where(known < 0, self.num_embeddings, known)
        return ops.fori_loop(0, num_steps, step, start)
