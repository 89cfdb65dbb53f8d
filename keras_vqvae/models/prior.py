"""What priors over codes share, and how they are drawn from."""

import math
import types
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.models import generation, sampling
from keras_vqvae.models.codes_model import CodesModel
from keras_vqvae.models.transformer import CodeTransformer
from keras_vqvae.types import Tensor


class Prior(CodesModel):
    """Base class of the priors: a distribution over the codes of a sample, trained by `fit`, to draw from.

    A subclass defines, for codes `[batch, L]` in the order of `codes.reshape(samples, -1)` and classes `[batch]`:

    - `logits(codes, labels, training)`: the logits of each code, `[batch, L, K]`;
    - `sample_codes(known, labels, bits, **options)`: `known`, with codes in the place of -1, drawn by random bits, of
      which each sample needs `bits_shape(**options)`;
    - optionally `corrupt(codes)`: what the network sees in training and evaluation instead of `codes`, and the weights
      of the codes' losses, `[batch, L]` or `None`. Returns `(codes, None)` by default.

    A subclass may add layers, metrics and weights after `super().__init__()`, as with any Keras model. If it has a
    constructor of its own, it is built at its first use: a call, `fit`, `generate`, or `build((None, *shape))`.

    Args:
        num_embeddings: Number of codes, `K`, an integer; or a sequence of one integer for each codebook, such as the
            `codebook_sizes` of a residual whose stages differ. `K` is then the largest of them.
        shape: Of the codes of one sample, as `VQVAE.encode` returns them: `codes.shape[1:]`.
        num_classes: Number of classes of samples. Defaults to `None`, no classes.
        index_shape: The last axes of `shape` that are several codes of one place, each of a codebook of its own: the
            quantizer's `index_shape`. Defaults to `()`, one codebook.
        num_layers: How many Transformer blocks. Defaults to `4`.
        num_heads: Heads of their attention. Defaults to `4`.
        hidden_dim: Their width, which `num_heads` divides. Defaults to `128`.
        dropout: Share of what each of them adds that is dropped in training. Defaults to `0.1`.
        seed: Integer, for all that is drawn in training: dropout, masks, and samples without their class. Defaults to
            `None`, a random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every model.

    Input shape:
        Integers `[batch, *shape]`, or a tuple of those and of classes, integers `[batch]`.

    Output shape:
        `[batch, *shape, num_embeddings]`, in float32.

    Raises:
        ValueError: If a size is not a positive integer, or sizes do not fit each other.
    """

    transformer_class: type[CodeTransformer] = CodeTransformer
    """Class of the network."""
    generate_options: tuple[str, ...] = ()
    """Names of the further arguments of `generate`, which `bits_shape` and `sample_codes` take."""

    def __init__(
        self,
        num_embeddings: int | Sequence[int],
        shape: Iterable[int],
        num_classes: int | None = None,
        index_shape: Iterable[int] = (),
        num_layers: int = 4,
        num_heads: int = 4,
        hidden_dim: int = 128,
        dropout: float = 0.1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.shape = validation.positive_ints("shape", shape)
        self.index_shape = validation.positive_ints("index_shape", index_shape)
        self.codebook_sizes = validation.codebook_sizes(num_embeddings, math.prod(self.index_shape))
        self.num_embeddings = max(self.codebook_sizes)
        if self.shape[max(0, len(self.shape) - len(self.index_shape)) :] != self.index_shape:
            raise ValueError(
                f"The last axes of `shape` must be `index_shape`. Received: shape={shape}, index_shape={index_shape}"
            )
        self.num_classes = None if num_classes is None else validation.positive_int("num_classes", num_classes)
        self.num_layers = validation.positive_int("num_layers", num_layers)
        self.num_heads = validation.positive_int("num_heads", num_heads)
        self.hidden_dim = validation.positive_int("hidden_dim", hidden_dim)
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `hidden_dim`. Received: num_heads={num_heads}, hidden_dim={hidden_dim}"
            )
        self.dropout = validation.fraction("dropout", dropout)
        self.seed = validation.seed(seed)
        self.length = math.prod(self.shape)
        self.transformer = self.transformer_class(
            codebook_sizes=self.codebook_sizes,
            length=self.length,
            num_classes=self.num_classes or 0,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
            dropout=self.dropout,
            seed=self.seed,
            dtype=self.dtype_policy,
            name="transformer",
        )
        # Within a namespace Keras does not see them. Tracked, they would be layers of this model, as it is of them.
        self._parts = types.SimpleNamespace(samplers={})
        # Keras locks a model once it is built. A constructor of a subclass may still have to add layers to it.
        if type(self).__init__ is Prior.__init__:
            self.build((None, *self.shape))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.transformer.build((None, self.length))
        # Keras builds the layers of a model by a symbolic call, unless the model has a `build` of its own.
        if type(self).build is Prior.build and not all(layer.built for layer in self.layers):
            codes = keras.Input(self.shape, dtype="int32")
            self.compute_output_spec((codes, keras.Input((), dtype="int32")) if self.num_classes else codes)

    def corrupt(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        return codes, None

    def bits_shape(self, **options: Any) -> tuple[int, ...]:
        raise NotImplementedError

    def sample_codes(self, known: Tensor, labels: Tensor, bits: Tensor, **options: Any) -> Tensor:
        raise NotImplementedError

    def generate(
        self,
        num_samples: int,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        prefix: Tensor | None = None,
        seed: int | None = None,
        batch_size: int = 128,
        verbose: str | int = "auto",
        **options: Any,
    ) -> np.ndarray:
        """Draws the codes of new samples.

        Args:
            num_samples: Number of samples, `n`.
            labels: Class of each sample, integers `[n]`, or one class for all. Defaults to `None`, any class.
            temperature: Divides the logits. Values below 1 make likely codes likelier. Defaults to `1.0`.
            top_k: Sample only from the `top_k` most likely codes. Defaults to `None`, all.
            top_p: Nucleus sampling: sample from the smallest set of codes whose total probability is at least `top_p`.
                Defaults to `None`, all.
            guidance_scale: Scale `s` of classifier-free guidance, at twice the cost: logits are `u + s * (c - u)`, with
                `u` the logits without the class and `c` those with it. It needs `labels`. Defaults to `None`, as 1.
            prefix: Codes to keep fixed: the first `p` positions along the first axis, `[n, p, *shape[1:]]`. The rest is
                generated. Defaults to `None`.
            seed: Integer; equal seeds draw equal codes, whatever the batch size, and up to the rounding of logits on
                every backend. Defaults to `None`, drawn from NumPy's state, which `keras.utils.set_random_seed` sets.
            batch_size: How many samples to draw at a time. Defaults to `128`.
            verbose: As in `predict`. Defaults to `"auto"`.
            **options: Further arguments that a subclass names in `generate_options`.

        Returns:
            An int32 array `[n, *shape]`.

        Raises:
            ValueError: If a label or a code is out of range, or a sampling argument is invalid.
        """
        num_samples = validation.positive_int("num_samples", num_samples)
        batch_size = validation.positive_int("batch_size", batch_size)
        for name in options.keys() - set(self.generate_options):
            raise ValueError(
                f"`{type(self).__name__}.generate` has no argument `{name}`. Received: {name}={options[name]!r}"
            )
        options |= sampling.check(self.num_embeddings, temperature, top_k, top_p)
        if guidance_scale is not None and self.num_classes is None:
            raise ValueError(
                f"`guidance_scale` needs a prior with `num_classes`. Received: guidance_scale={guidance_scale!r}"
            )
        options["guidance_scale"] = (
            None if guidance_scale is None else validation.non_negative("guidance_scale", guidance_scale)
        )
        if guidance_scale is not None and labels is None:
            raise ValueError(
                f"`guidance_scale` needs `labels`. Received: guidance_scale={guidance_scale!r}, labels=None"
            )
        labels = ops.convert_to_numpy(self._check_labels(labels, num_samples))
        known = np.full((num_samples, self.length), -1, "int32")
        if prefix is not None:
            prefix = self._check_prefix(num_samples, prefix)
            known[:, : prefix.shape[1]] = prefix
        # NumPy's own state is what `keras.utils.set_random_seed` sets.
        seed = np.random.randint(validation.INT32_MAX) if seed is None else validation.seed(seed)
        key = tuple(options.items())
        if key not in self._parts.samplers:
            self._parts.samplers[key] = generation.Sampler(self, options)
        shape = self.bits_shape(**options)
        if not self.built:
            self.build((None, *self.shape))
        codes = self._parts.samplers[key].generate(known, labels, shape, seed, batch_size, verbose)
        return codes.reshape(num_samples, *self.shape)

    def _check_prefix(self, num_samples: int, prefix: Tensor) -> np.ndarray:
        prefix = validation.code_indices("prefix", prefix, self.num_embeddings)
        if (
            prefix.shape != (num_samples, *prefix.shape[1:2], *self.shape[1:])
            or math.prod(prefix.shape) > num_samples * self.length
        ):
            raise ValueError(
                f"`prefix` must be codes of {num_samples} samples along the first axis of {self.shape}. "
                f"Received: prefix of shape {tuple(prefix.shape)}"
            )
        prefix = ops.reshape(prefix, (num_samples, math.prod(prefix.shape[1:])))
        codebooks = tuple(place % len(self.codebook_sizes) for place in range(prefix.shape[1]))
        prefix = validation.within_codebooks("prefix", prefix, self.codebook_sizes, codebooks, ())
        return ops.convert_to_numpy(prefix)

    def get_config(self) -> dict[str, Any]:
        own = (
            *("shape", "num_classes", "index_shape", "num_layers", "num_heads", "hidden_dim"),
            *("dropout", "seed"),
        )
        sizes = self.codebook_sizes if len(set(self.codebook_sizes)) > 1 else self.num_embeddings
        return {**super().get_config(), "num_embeddings": sizes, **{name: getattr(self, name) for name in own}}
