"""From data to codes and back, by batches, without training."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.models import sources
from keras_vqvae.models.autoencoder import CodeAutoencoder
from keras_vqvae.models.local_predict import predict
from keras_vqvae.models.prior import Prior
from keras_vqvae.models.scaling import settle_scale
from keras_vqvae.types import Data, Tensor


class Coding(CodeAutoencoder):
    """Encodes, decodes and samples; and fills a codebook by data."""

    def encode(self, x: Data, batch_size: int | None = None, verbose: str | int = "auto") -> np.ndarray:
        """Returns the codes of inputs, in batches and with a progress bar, as `predict` does.

        Args:
            x: Inputs of the encoder, in any form that `predict` takes.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.

        Returns:
            An int32 array `[samples, ...]`.
        """
        parts = self._parts_for(x)
        parts.cropping.check("x", x)
        return predict(parts.tokenizer, x, batch_size=batch_size, verbose=verbose)

    def adapt(
        self,
        x: Data,
        batch_size: int | None = None,
        steps: int | None = None,
        max_vectors: int | None = None,
        verbose: str | int = "auto",
        seed: int | None = None,
        **keywords: Any,
    ) -> None:
        """Fills the quantizer's codebook by k-means of a random sample of the encoder's outputs.

        Memory does not grow with the size of the data. Of arrays, only as many samples are read as are needed.

        Args:
            x: Inputs of the encoder: arrays, or any source of batches that `fit` takes, whose targets are ignored.
            batch_size: Samples of a batch, for arrays. Defaults to `None`, 32.
            steps: Number of batches to read. Defaults to `None`, all. A source without an end needs it.
            max_vectors: Number of vectors in the sample. Defaults to `None`, 256 for each code.
            verbose: As in `predict`. Defaults to `"auto"`.
            seed: Integer, of the sample and of k-means. Defaults to `None`, which draws the sample from NumPy's state,
                that of `keras.utils.set_random_seed`, and gives k-means the layer's own seed.
            **keywords: Further arguments of the quantizer's `adapt`, such as `epochs`.

        Raises:
            ValueError: If `x` is empty, or has no end and `steps` is not given.
        """
        x = settle_scale(self, x)
        vectors = sources.sampled_vectors(
            self._vectors_of,
            x,
            max_vectors=256 * self.quantizer.num_embeddings if max_vectors is None else max_vectors,
            per_sample=self._vectors_per_sample(x),
            whole_samples=self.quantizer.quantizes_grids,
            batch_size=32 if batch_size is None else batch_size,
            steps=steps,
            seed=np.random.randint(validation.INT32_MAX) if seed is None else seed,
            verbose=verbose,
        )
        self.quantizer.adapt(vectors, verbose=verbose, seed=seed, **keywords)

    def _vectors_of(self, x: Data, **keywords: Any) -> np.ndarray:
        """The encoder's outputs, NaN where they are masked."""
        return predict(self._parts_for(x).vectors, x, **keywords)

    def _vectors_per_sample(self, x: Data) -> int:
        """How many vectors a sample has, as far as sizes are known. A generator would lose its first batch."""
        sizes = () if isinstance(x, Iterator) else self._parts_for(x).vectors.output_shape[1:-1]
        return math.prod(size or 1 for size in sizes)

    def decode(
        self,
        codes: Tensor,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        size: int | Sequence[int] | None = None,
    ) -> np.ndarray:
        """Returns the reconstructions of codes, in batches and with a progress bar, as `predict` does.

        Args:
            codes: Integers, as `encode` returns them.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.
            size: The size that the data had before `encode`, if the encoder takes any and has strides: an integer, or
                one for each axis of any size. Codes do not tell it. Defaults to `None`, full multiples of the stride.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If a code lies outside the codebook, or `size` is larger than what the codes give.
        """
        codes = ops.convert_to_numpy(self.quantizer.check_indices("codes", ops.convert_to_numpy(codes)))
        outputs = predict(self.detokenizer, codes, batch_size=batch_size, verbose=verbose)
        return outputs if size is None else self._parts.cropping.to_size(outputs, size)

    def sample(
        self,
        prior: Prior,
        num_samples: int,
        labels: Tensor | None = None,
        *,
        verbose: str | int = "auto",
        **keywords: Any,
    ) -> np.ndarray:
        """Draws new data: codes from `prior`, decoded.

        Args:
            prior: A prior of codes as this model's `encode` returns them.
            num_samples: Number of samples.
            labels: Their classes, integers `[n]`, or one for all. Defaults to `None`, any.
            verbose: As in `predict`. Defaults to `"auto"`.
            **keywords: Arguments of the prior's `generate`, such as `temperature`, `guidance_scale` and `seed`.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If `prior` draws codes of another number or shape.
        """
        if not isinstance(prior, Prior):
            raise ValueError(f"`prior` must be a Prior. Received: prior={prior!r}")
        own = self.quantizer.num_embeddings, *self.tokenizer.output_shape[1:]
        sizes = self.quantizer.codebook_sizes
        repeats = max(len(sizes) // len(prior.codebook_sizes), 1)
        if len(set(sizes)) > 1 and prior.codebook_sizes * repeats != sizes:
            raise ValueError(
                "`prior` must have the quantizer's `codebook_sizes` as its `num_embeddings`. "
                f"Received: prior of {list(prior.codebook_sizes)} codes, quantizer of {list(sizes)}"
            )
        of_prior = prior.num_embeddings, *prior.shape
        if len(own) != len(of_prior) or any(a not in (None, b) for a, b in zip(own, of_prior, strict=True)):
            raise ValueError(
                f"`prior` must be one of {own[0]} codes of shape {own[1:]}. "
                f"Received: prior of {of_prior[0]} codes of shape {of_prior[1:]}"
            )
        return self.decode(prior.generate(num_samples, labels, verbose=verbose, **keywords), verbose=verbose)
