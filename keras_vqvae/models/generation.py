"""Drawing in batches, compiled where the backend compiles."""

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models import local_predict, sampling
from keras_vqvae.types import Tensor


class Sampler(keras.Model):
    """Draws what a prior's `sample_codes` does with these options, by `predict`: compiled, with a progress bar."""

    def __init__(self, prior: keras.Model, options: dict[str, Any]):
        super().__init__(dtype=prior.dtype_policy, name="sampler")
        self.prior = prior
        # Within a function Keras does not make a tracked dict of them.
        self._sample = functools.partial(prior.sample_codes, **options)
        backend.compile_draws(self)

    def call(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        known, labels, bits = inputs
        return self._sample(known, labels, bits)

    def generate(
        self,
        known: np.ndarray,
        labels: np.ndarray,
        bits_shape: tuple[int, ...],
        seed: int,
        batch_size: int,
        verbose: str | int,
    ) -> np.ndarray:
        """Codes `[n, L]`, of which `known` are given where they are not -1."""
        n = len(known)
        # Batches of one size, because a compiled program is of one; the last is filled up.
        steps = -(-n // batch_size)
        size = -(-n // steps)

        def batches() -> Iterator[tuple[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
            generator = np.random.default_rng(seed)
            for start in range(0, n, size):
                rows = np.arange(start, start + size) % n
                # Of one stream, so that a sample does not depend on the size of the batch.
                bits = generator.integers(2**sampling.RANDOM_BITS, size=(size, *bits_shape), dtype="int32")
                yield ((known[rows], labels[rows], bits),)

        if steps == 1:
            # On TensorFlow each generator that `predict` is given leaves some 20 kB behind.
            return local_predict.predict(self, *next(batches()), batch_size=size, verbose=verbose)
        return local_predict.predict(self, batches(), steps=steps, verbose=verbose)[:n]


def paired(labels: Tensor, none: int | None, guidance_scale: float | None) -> tuple[Tensor, int]:
    """Returns `(labels, copies)`. With guidance, appends one unconditional label per sample, so `copies` is 2."""
    if guidance_scale is None:
        return labels, 1
    return ops.concatenate([labels, ops.full_like(labels, none)]), 2
