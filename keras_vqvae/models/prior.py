"""Base class of the priors over codes."""

import math
import types
from collections.abc import Iterable, Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_vqvae import validation
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.models.generation import CodesGenerator
from keras_vqvae.models.transformer import CodeTransformer
from keras_vqvae.types import Tensor

LABEL_DROPOUT = 0.1
"""The default of `label_dropout`."""


class Prior(CodesGenerator):
    """Base class of the priors: distributions over the codes of a sample.

    `from_model` makes a prior over the codes of a `VQVAE`. `fit` trains it, `generate` draws codes, and
    `log_likelihood` scores given codes. `export` exports the logits.

    A subclass defines, for codes `[batch, L]` in the order of `codes.reshape(samples, -1)` and classes `[batch]`:

    - `logits(codes, labels, training)`: the logits of each code, `[batch, L, K]`;
    - `sample_codes(known, labels, bits, **options)`: the codes `known` `[batch, L]`, with a drawn code in place of each
      -1. `bits` are random integers `[batch, *bits_shape]` for `sampling.draw`. `options` are `temperature`, `top_k`,
      `top_p`, `guidance_scale` and the arguments named in `generate_options`. Floats arrive as scalar tensors, so that
      one compiled program serves all their values;
    - `bits_shape(**options)`: the shape of the random integers for one sample;
    - optionally `log_likelihood`;
    - optionally `corrupt(codes)`: the input of the network in training and evaluation, `[batch, L]`, and the weights of
      the codes' losses, `[batch, L]` or `None`. Returns `(codes, None)` by default.

    A subclass may add layers, metrics and weights after `super().__init__()`, as with any Keras model. If it has a
    constructor of its own, it is built at its first use: a call, `fit`, `generate`, or `build((None, *shape))`.

    Args:
        num_embeddings: Number of codes `K`, an integer. Or a sequence with the number of codes of each codebook, such
            as the `codebook_sizes` of a residual whose stages differ. `K` is then the largest of them.
        shape: Shape of the codes of one sample: `codes.shape[1:]` for `codes` that `VQVAE.encode` returns.
        num_classes: Number of classes of samples. Defaults to `None`, no classes.
        index_shape: The quantizer's `index_shape`. If a position has several codes, each from its own codebook, these
            are the last axes of `shape`. Defaults to `()`, one codebook.
        num_layers: Number of Transformer blocks. Defaults to `4`.
        num_heads: Number of attention heads of each block. Defaults to `4`.
        hidden_dim: Width of the blocks, a multiple of `num_heads`. Defaults to `128`.
        dropout: Dropout rate of the blocks. Defaults to `0.1`.
        label_dropout: Fraction of the samples that `fit` trains without their class, at least 0 and below 1. Guidance
            and draws without a class need it. With 0, `generate`, `evaluate` and `log_likelihood` need labels. Values
            other than the default need `num_classes`. Defaults to `0.1`.
        seed: Integer seed of the random numbers of training: dropout, masks and label dropout. Defaults to `None`, a
            random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every model.

    Input shape:
        Codes, integers `[batch, *shape]`, or a tuple of codes and classes, integers `[batch]`.

    Output shape:
        Logits `[batch, *shape, num_embeddings]`, in float32.

    Raises:
        ValueError: If a size is not a positive integer, `index_shape` is not the end of `shape`, `hidden_dim` is not a
            multiple of `num_heads`, or a rate is out of range.
    """

    transformer_class: type[CodeTransformer] = CodeTransformer
    """Class of the network from codes to logits."""

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
        label_dropout: float = LABEL_DROPOUT,
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
                f"`shape` must end in `index_shape`. Received: shape={self.shape}, index_shape={self.index_shape}"
            )
        self.num_classes = None if num_classes is None else validation.positive_int("num_classes", num_classes)
        self.num_layers = validation.positive_int("num_layers", num_layers)
        self.num_heads = validation.positive_int("num_heads", num_heads)
        self.hidden_dim = validation.positive_int("hidden_dim", hidden_dim)
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                "`hidden_dim` must be divisible by `num_heads`. "
                f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        self.dropout = validation.fraction("dropout", dropout)
        self.label_dropout = self._check_label_dropout(label_dropout)
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
        # In a namespace, so that Keras does not track them as layers of this model, which is a layer of theirs.
        self._parts = types.SimpleNamespace(samplers={}, scorer=None)
        # Not for a subclass with a constructor: Keras locks a built model, and the constructor may still add layers.
        if type(self).__init__ is Prior.__init__:
            self.build((None, *self.shape))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.transformer.build((None, self.length))
        # Builds the layers of a subclass by a symbolic call, as Keras does for models without a `build`.
        if type(self).build is Prior.build and not all(layer.built for layer in self.layers):
            codes = keras.Input(self.shape, dtype="int32")
            self.compute_output_spec((codes, keras.Input((), dtype="int32")) if self.num_classes else codes)

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        num_classes: int | None = None,
        *,
        shape: Iterable[int] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Returns a new prior for a `VQVAE`, with the `num_embeddings`, `shape` and `index_shape` of its codes.

        Args:
            model: A built `VQVAE`.
            num_classes: Number of classes of samples. Defaults to `None`, no classes.
            shape: Shape of the codes of one sample, `codes.shape[1:]`. Required only if the model takes inputs of any
                size. Defaults to `None`, the shape of the model's codes.
            **kwargs: The other arguments of the prior, such as `num_layers` and `seed`.

        Raises:
            ValueError: If `model` is not a built `VQVAE`, or `shape` is missing or differs from the model's codes.

        Example:

        >>> encoder, decoder = build_conv_encoder((8, 8, 1), filters=(8,)), build_conv_decoder((8, 8, 1), filters=(8,))
        >>> model = VQVAE(encoder, ResidualQuantizer(VectorQuantizer(16), num_quantizers=3), decoder)
        >>> prior = MaskedPrior.from_model(model, num_layers=1, hidden_dim=32)
        >>> prior.shape, prior.index_shape, prior.codebook_sizes
        ((4, 4, 3), (3,), (16, 16, 16))
        """
        quantizer = getattr(model, "quantizer", None)
        if not isinstance(quantizer, Quantizer):
            raise ValueError(f"`model` must be a VQVAE. Received: model={model!r}")
        own = tuple(model.tokenizer.output_shape[1:])
        sizes = own if shape is None else validation.positive_ints("shape", shape)
        if None in sizes:
            raise ValueError(
                "`shape` must be given, because the model takes inputs of any size. Pass the shape of the codes of one "
                f"sample: `codes.shape[1:]`. Received: shape=None, model with codes of shape {own}"
            )
        if not validation.shapes_fit(own, sizes):
            raise ValueError(f"`shape` must match the shape of the model's codes, {own}. Received: shape={sizes}")
        # The codebooks of one scale, because all scales of a `MultiScaleQuantizer` have codebooks of the same sizes.
        num_codebooks = math.prod(quantizer.index_shape)
        return cls(
            quantizer.codebook_sizes[:num_codebooks], sizes, num_classes, index_shape=quantizer.index_shape, **kwargs
        )

    def _check_label_dropout(self, label_dropout: float) -> float:
        rate = validation.fraction("label_dropout", label_dropout)
        if rate == 1:
            raise ValueError(
                f"`label_dropout` must be below 1, or no class would ever be seen. Received: label_dropout={rate}"
            )
        if self.num_classes is None and rate != LABEL_DROPOUT:
            raise ValueError(
                f"`label_dropout` has an effect only with `num_classes`. "
                f"Received: label_dropout={rate}, num_classes=None"
            )
        return rate

    def log_likelihood(
        self, codes: Tensor, labels: Tensor | None = None, *, batch_size: int = 128, verbose: str | int = "auto"
    ) -> np.ndarray:
        """Returns the log-probability of each code in nats, float32 `[n, *shape]`, if the subclass defines it."""
        raise NotImplementedError

    def corrupt(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        return codes, None

    def get_config(self) -> dict[str, Any]:
        own = (
            *("shape", "num_classes", "index_shape", "num_layers", "num_heads", "hidden_dim"),
            *("dropout", "label_dropout", "seed"),
        )
        sizes = self.codebook_sizes if len(set(self.codebook_sizes)) > 1 else self.num_embeddings
        return {**super().get_config(), "num_embeddings": sizes, **{name: getattr(self, name) for name in own}}
