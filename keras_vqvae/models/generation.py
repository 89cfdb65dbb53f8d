"""`generate` of the priors: codes are drawn in batches, by a compiled program on JAX and TensorFlow."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.models import sampling
from keras_vqvae.models.codes_inputs import described, holds_classes
from keras_vqvae.models.codes_model import CodesModel
from keras_vqvae.models.local_predict import predict_in_equal_batches
from keras_vqvae.types import Tensor


def program_key(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A key that is equal for options of the same compiled program: floats are inputs, other values are constants."""
    return tuple((name, float if isinstance(value, float) else value) for name, value in options.items())


class Sampler(keras.Model):
    """A model whose `predict` runs a prior's `sample_codes` with given options, compiled and with a progress bar."""

    def __init__(self, prior: keras.Model, options: dict[str, Any]):
        super().__init__(dtype=prior.dtype_policy, name="sampler")
        self.prior = prior
        floats = {name for name, value in options.items() if isinstance(value, float)}
        # Weights, because a new value of a weight needs no new program.
        self.floats = {
            name: self.add_weight((), "zeros", "float32", autocast=False, trainable=False, name=name)
            for name in sorted(floats)
        }
        # In a `partial`, so that Keras does not track the options.
        self._sample = functools.partial(
            prior.sample_codes, **{name: value for name, value in options.items() if name not in floats}
        )
        backend.compile_draws(self)

    def call(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        known, labels, bits = inputs
        return self._sample(
            known, labels, bits, **{name: ops.convert_to_tensor(weight) for name, weight in self.floats.items()}
        )

    def generate(
        self,
        known: np.ndarray,
        labels: np.ndarray,
        options: dict[str, Any],
        bits_shape: tuple[int, ...],
        seed: int,
        batch_size: int,
        verbose: str | int,
    ) -> np.ndarray:
        """Returns codes `[n, L]`: `known`, with a drawn code in place of each -1."""
        for name, weight in self.floats.items():
            weight.assign(options[name])
        generator = np.random.default_rng(seed)

        def batch_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            # From one stream for all batches, so that samples do not depend on the batch size.
            bits = generator.integers(2**sampling.RANDOM_BITS, size=(len(rows), *bits_shape), dtype="int32")
            return known[rows], labels[rows], bits

        return predict_in_equal_batches(self, len(known), batch_of, batch_size, verbose)


def paired(labels: Tensor, none: int | None, guidance_scale: Tensor | None) -> tuple[Tensor, int]:
    """Returns `(labels, copies)`. With guidance, appends one unconditional label per sample, so `copies` is 2."""
    if guidance_scale is None:
        return labels, 1
    return ops.concatenate([labels, ops.full_like(labels, none)]), 2


class CodesGenerator(CodesModel):
    """Base class of the priors that adds `generate`. `Prior` says which methods a subclass defines."""

    generate_options: tuple[str, ...] = ()
    """Names of additional arguments of `generate`, which are passed to `bits_shape` and `sample_codes`."""

    def bits_shape(self, **options: Any) -> tuple[int, ...]:
        raise NotImplementedError

    def sample_codes(self, known: Tensor, labels: Tensor, bits: Tensor, **options: Any) -> Tensor:
        raise NotImplementedError

    def generate(
        self,
        num_samples: int,
        labels: Tensor | None = None,
        *,
        known: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        batch_size: int = 128,
        verbose: str | int = "auto",
        **options: Any,
    ) -> np.ndarray:
        """Draws the codes of new samples, or the unknown codes of given samples.

        On JAX and TensorFlow, one compiled program serves all values of `temperature`, `top_p` and `guidance_scale`.
        Each `top_k` and batch size needs its own program, and so does `None` for `top_p` or `guidance_scale`. To
        compare many values, pass `1.0` instead of `None`.

        Args:
            num_samples: Number of samples, `n`.
            labels: Class of each sample, integers `[n]`, or one class for all. Defaults to `None`, any class.
            known: Codes to keep, integers `[n, *shape]`, with -1 for each code to draw. `MaskedPrior` draws a code
                given all known codes. `AutoregressivePrior` draws it given only the codes before it: known codes after
                it are kept, but do not influence it. Defaults to `None`: all codes are drawn.
            temperature: Divides the logits. Values below 1 make likely codes likelier. Defaults to `1.0`.
            top_k: Sample only from the `top_k` most likely codes. Defaults to `None`, all.
            top_p: Nucleus sampling: sample from the smallest set of codes whose total probability is at least `top_p`.
                Defaults to `None`, all.
            guidance_scale: Scale `s` of classifier-free guidance, at twice the cost. Logits are `u + s * (c - u)`, for
                logits `c` with the class and `u` without it. It needs `labels`, and a prior with `label_dropout` above
                0. Defaults to `None`, which equals 1.
            seed: Integer. Equal seeds draw equal codes for every batch size, and on every backend up to the rounding of
                logits. Defaults to `None`: a seed from NumPy's global state, which `keras.utils.set_random_seed` sets.
            batch_size: Samples per batch. Defaults to `128`.
            verbose: As in `predict`. Defaults to `"auto"`.
            **options: Additional arguments of a subclass, named in its `generate_options`.

        Returns:
            An int32 array `[n, *shape]`.

        Raises:
            ValueError: If a label or a code is out of range, `known` has another shape, or a sampling argument is
                invalid.
        """
        num_samples = validation.positive_int("num_samples", num_samples)
        batch_size = validation.positive_int("batch_size", batch_size)
        if unknown := sorted(options.keys() - set(self.generate_options)):
            name = unknown[0]
            raise ValueError(
                f"`{name}` is not an argument of `{type(self).__name__}.generate`. "
                f"Received: {described(name, options[name])}"
            )
        options |= sampling.check(self.num_embeddings, temperature, top_k, top_p)
        self._require_labels("labels", labels)
        options["guidance_scale"] = self._check_guidance(guidance_scale, labels)
        labels = ops.convert_to_numpy(self._check_labels(labels, num_samples))
        known = self._check_known(known, num_samples)
        seed = np.random.randint(validation.INT32_MAX) if seed is None else validation.seed(seed)
        shape = self.bits_shape(**options)
        if not self.built:
            self.build((None, *self.shape))
        key = program_key(options)
        if key not in self._parts.samplers:
            self._parts.samplers[key] = Sampler(self, options)
        codes = self._parts.samplers[key].generate(known, labels, options, shape, seed, batch_size, verbose)
        return codes.reshape(num_samples, *self.shape)

    def _check_guidance(self, guidance_scale: float | None, labels: Tensor | None) -> float | None:
        if guidance_scale is None:
            return None
        if self.num_classes is None or not self.label_dropout or not holds_classes(labels):
            raise ValueError(
                "`guidance_scale` needs `labels`, and a prior with `num_classes` and a `label_dropout` above 0. "
                f"Received: guidance_scale={guidance_scale!r}, {described('labels', labels)}, "
                f"num_classes={self.num_classes!r}, label_dropout={self.label_dropout!r}"
            )
        return validation.non_negative("guidance_scale", guidance_scale)
