"""`encode`, `decode`, `adapt` and `sample` of an autoencoder, in batches."""

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
    """Adds `encode`, `adapt`, `decode` and `sample` to an autoencoder."""

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
        """Initializes the quantizer's codebook with k-means on a random sample of the encoder's outputs.

        Memory does not grow with the size of the data. If `x` is an array, only as many of its samples are read as are
        needed.

        Args:
            x: Inputs of the encoder: arrays, or any source of batches that `fit` takes. Targets are ignored.
            batch_size: Samples per batch, if `x` is an array. Defaults to `None`, 32 samples.
            steps: Number of batches to read. Required if `x` is an infinite source. Defaults to `None`, all batches.
            max_vectors: Largest number of vectors in the sample. Defaults to `None`, 256 for each code.
            verbose: As in `predict`. Defaults to `"auto"`.
            seed: Integer for the random sample and for k-means. Defaults to `None`: `keras.utils.set_random_seed`
                determines both, or the `seed` of the layer, if it has one, determines k-means.
            **keywords: Further arguments of the quantizer's `adapt`, such as `epochs`.

        Raises:
            ValueError: If `x` is empty, or is infinite and `steps` is not given.
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
        """The encoder's outputs, with NaN at masked positions."""
        return predict(self._parts_for(x).vectors, x, **keywords)

    def _vectors_per_sample(self, x: Data) -> int:
        """Number of vectors per sample, from the sizes that are known; 1 for a generator, which can be read once."""
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
            size: Size of the data before `encode`, to which reconstructions are cropped. Only for an encoder with
                strides that takes inputs of any size. An integer, or one for each axis whose size is `None`. Defaults
                to `None`: sizes are multiples of the stride.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If a code is out of range, or `size` is larger than the decoded codes.
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
        """Generates new samples: draws codes from a prior and decodes them.

        Args:
            prior: A prior that was trained on this model's codes, as `encode` returns them.
            num_samples: Number of samples, `n`.
            labels: Class of each sample, integers `[n]`, or one class for all. Defaults to `None`, any class.
            verbose: As in `predict`. Defaults to `"auto"`.
            **keywords: Arguments of the prior's `generate`, such as `temperature`, `guidance_scale` and `seed`.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If the codes of `prior` differ from this model's in number or shape.
        """
        if not isinstance(prior, Prior):
            raise ValueError(f"`prior` must be a `Prior`, such as a `MaskedPrior`. Received: prior={prior!r}")
        own = self.quantizer.num_embeddings, *self.tokenizer.output_shape[1:]
        sizes = self.quantizer.codebook_sizes
        repeats = max(len(sizes) // len(prior.codebook_sizes), 1)
        if len(set(sizes)) > 1 and prior.codebook_sizes * repeats != sizes:
            raise ValueError(
                "`prior` must have the quantizer's codebook sizes. Make it with `from_model`. "
                f"Received: prior with codebook_sizes={prior.codebook_sizes}, quantizer with codebook_sizes={sizes}"
            )
        of_prior = prior.num_embeddings, *prior.shape
        if not validation.shapes_fit(own, of_prior):
            raise ValueError(
                f"`prior` must have the model's `num_embeddings={own[0]}` and `shape={own[1:]}`. Make it with "
                f"`from_model`. Received: prior with num_embeddings={of_prior[0]}, shape={of_prior[1:]}"
            )
        return self.decode(prior.generate(num_samples, labels, verbose=verbose, **keywords), verbose=verbose)
