"""The VQ-VAE: an encoder, a quantizer and a decoder, trained by `fit`."""

import collections
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae.arguments import Tensor
from keras_vqvae.layers.quantizer import MOST_COUNTED, Quantizer
from keras_vqvae.metrics import CodebookPerplexity, CodebookUsage

# What `call` hands to `compute_loss` within a step of `fit` or `evaluate`. An output, because no other way from the
# one to the other works on every backend: on JAX neither metrics nor a sublayer's losses can be reached in between.
_Step = collections.namedtuple("_Step", ["reconstruction", "indices", "quantizer_loss"])


@keras.saving.register_keras_serializable(package="keras_vqvae")
class VQVAE(keras.Model):
    """An autoencoder whose latents are codes: `decoder(quantizer(encoder(x)))`.

    `fit(x)` trains it to reconstruct `x`; `fit(x, y)` to predict `y`. Training and evaluation report `loss` and its
    parts, `reconstruction_loss` and `quantizer_loss`, and how the codebook is used over the epoch: `perplexity` and
    `codebook_usage`.

    Args:
        encoder: A Keras model or layer from inputs to vectors `[batch, ..., D]`.
        quantizer: A quantizer, such as `VectorQuantizer`.
        decoder: A Keras model or layer from those vectors to reconstructions.
        **kwargs: `name`, `dtype` and `trainable`, as for every model.

    Raises:
        ValueError: If `encoder` or `decoder` is not a Keras layer, or `quantizer` not a quantizer.

    Example:

    >>> encoder, decoder = build(input_size=16, embedding_dim=4)
    >>> model = VQVAE(encoder, VectorQuantizer(num_embeddings=32), decoder)
    >>> model.compile(optimizer="adam")
    >>> x = keras.random.normal((64, 16))
    >>> history = model.fit(x, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['codebook_usage', 'loss', 'perplexity', 'quantizer_loss', 'reconstruction_loss']
    >>> codes = model.encode(x, verbose=0)
    >>> codes.shape, str(codes.dtype)
    ((64,), 'int32')
    >>> model.decode(codes, verbose=0).shape
    (64, 16)

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937)
    """

    def __init__(self, encoder: keras.Layer, quantizer: Quantizer, decoder: keras.Layer, **kwargs: Any):
        super().__init__(**kwargs)
        for name, layer, kind in (
            ("encoder", encoder, keras.Layer),
            ("quantizer", quantizer, Quantizer),
            ("decoder", decoder, keras.Layer),
        ):
            if not isinstance(layer, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__}. Received: {name}={layer!r}")
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self._drop_masked = _ReplaceMasked(-1, name="drop_masked")
        self._reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self._quantizer_loss = keras.metrics.Mean(name="quantizer_loss")
        # The codes of a vast implicit codebook are not counted.
        num_codebooks = math.prod(quantizer.index_shape)
        counted = quantizer.num_embeddings * num_codebooks <= MOST_COUNTED
        self._perplexity = CodebookPerplexity(quantizer.num_embeddings, num_codebooks) if counted else None
        self._usage = CodebookUsage(quantizer.num_embeddings, num_codebooks) if counted else None
        self._stepping = False

    def compile(self, optimizer: Any = "adam", loss: Any = "mse", **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is the reconstruction's, by default the mean squared error."""
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras leaves this to every model with a `compile` of its own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.decoder(self.quantizer(self.encoder(keras.KerasTensor(input_shape))))

    def call(self, inputs: Tensor, training: bool | None = None) -> Any:
        vectors = self.encoder(inputs, training=training)
        quantized, indices = self.quantizer(vectors, training=training, return_indices=True)
        reconstruction = self.decoder(quantized, training=training)
        if not self._stepping:
            return reconstruction
        return _Step(reconstruction, self._drop_masked(indices), sum(self.quantizer.losses, ops.zeros(())))

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._step():
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._step():
            return super().test_step(*args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y = x if y is None else y
        if not isinstance(y_pred, _Step):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        total = super().compute_loss(x, y, y_pred.reconstruction, sample_weight, training)
        batch_size = ops.shape(y_pred.reconstruction)[0]
        self._reconstruction_loss.update_state(total - sum(self.losses), sample_weight=batch_size)
        self._quantizer_loss.update_state(y_pred.quantizer_loss, sample_weight=batch_size)
        if self._perplexity is not None:
            self._perplexity.update_state(y_pred.indices)
            self._usage.update_state(y_pred.indices)
        return total

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y_pred = y_pred.reconstruction if isinstance(y_pred, _Step) else y_pred
        return super().compute_metrics(x, x if y is None else y, y_pred, sample_weight)

    def encode(self, x: Any, batch_size: int | None = None, verbose: str | int = "auto") -> np.ndarray:
        """Returns the codes of inputs, in batches and with a progress bar, as `predict` does.

        Args:
            x: Inputs of the encoder, in any form that `predict` takes.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.

        Returns:
            An int32 array `[samples, ...]`.
        """
        return self._part(_Encode).predict(x, batch_size=batch_size, verbose=verbose)

    def adapt(self, x: Any, batch_size: int | None = None, verbose: str | int = "auto", **keywords: Any) -> None:
        """Fills the quantizer's codebook by k-means of the encoder's outputs.

        Args:
            x: Inputs of the encoder, in any form that `predict` takes. The encoder's outputs are kept in memory, and
                256 vectors a code are plenty: give a part of large data.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.
            **keywords: Of the quantizer's `adapt`, such as `epochs` and `seed`.
        """
        vectors = self._part(_Vectors).predict(x, batch_size=batch_size, verbose=verbose)
        self.quantizer.adapt(vectors, verbose=verbose, **keywords)

    def decode(self, codes: Any, batch_size: int | None = None, verbose: str | int = "auto") -> np.ndarray:
        """Returns the reconstructions of codes, in batches and with a progress bar, as `predict` does.

        Args:
            codes: Integers, as `encode` returns them.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If a code lies outside the codebook.
        """
        codes = ops.convert_to_numpy(codes)
        self.quantizer.check_indices("codes", codes)
        return self._part(_Decode).predict(codes, batch_size=batch_size, verbose=verbose)

    def _part(self, kind: type[keras.Model]) -> keras.Model:
        """A model over this one's layers, made at first use and kept, because it keeps its compiled `predict`."""
        name = f"_part_{kind.__name__}"
        if name not in self.__dict__:
            # Past Keras's own `__setattr__`: tracked, it would be a layer of this model, and its weights saved twice.
            object.__setattr__(self, name, kind(self.encoder, self.quantizer, self.decoder))
        return self.__dict__[name]

    def get_config(self) -> dict[str, Any]:
        parts = {"encoder": self.encoder, "quantizer": self.quantizer, "decoder": self.decoder}
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "VQVAE":
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("encoder", "quantizer", "decoder")
        }
        return cls(**{**config, **parts})


class _ReplaceMasked(keras.layers.Layer):
    """Puts a value at masked positions `[batch, ...]`. A layer, because Keras gives masks to layers only."""

    def __init__(self, value: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.value = value
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return inputs
        mask = ops.reshape(mask, ops.shape(mask) + (1,) * (len(inputs.shape) - len(mask.shape)))
        return ops.where(mask, inputs, self.value)


class _Part(keras.Model):
    def __init__(self, encoder: keras.Layer, quantizer: Quantizer, decoder: keras.Layer):
        # A name of its own: TensorFlow refuses one that begins with an underscore.
        super().__init__(name=type(self).__name__.strip("_").lower())
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        # What is not finite is left out of k-means.
        self._hide_masked = _ReplaceMasked(float("nan"), name="hide_masked")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # The parts build themselves when called; Keras warns where there is no such method.
        pass


class _Vectors(_Part):
    def call(self, inputs: Tensor) -> Tensor:
        return self._hide_masked(self.encoder(inputs))


class _Encode(_Part):
    def call(self, inputs: Tensor) -> Tensor:
        return self.quantizer(self.encoder(inputs), return_indices=True)[1]


class _Decode(_Part):
    def call(self, inputs: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(inputs))
