"""The VQ-VAE: an encoder, a quantizer and a decoder, trained by `fit`."""

import collections
import contextlib
import math
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import backend
from keras_vqvae.arguments import Tensor
from keras_vqvae.layers.masks import ReplaceMasked
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

    `tokenizer`, from inputs to codes, and `detokenizer`, from codes to reconstructions, are functional models over the
    same layers: to export, to nest in other models, to hand on.

    Args:
        encoder: A Keras model or layer from inputs to vectors `[batch, ..., D]`. If its input shape is known, the model
            is built at once.
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
    >>> model.tokenizer.output_shape, model.detokenizer.output_shape
    ((None,), (None, 16))

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937)
    """

    def __init__(self, encoder: keras.Layer, quantizer: Quantizer, decoder: keras.Layer, **kwargs: Any):
        super().__init__(**kwargs)
        for name, part in {"encoder": encoder, "quantizer": quantizer, "decoder": decoder}.items():
            kind = Quantizer if name == "quantizer" else keras.Layer
            if not isinstance(part, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__}. Received: {name}={part!r}")
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self._reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self._quantizer_loss = keras.metrics.Mean(name="quantizer_loss")
        # The codes of a vast implicit codebook are not counted.
        num_codebooks = math.prod(quantizer.index_shape)
        counted = quantizer.num_embeddings * num_codebooks <= MOST_COUNTED
        self._perplexity = CodebookPerplexity(quantizer.num_embeddings, num_codebooks) if counted else None
        self._usage = CodebookUsage(quantizer.num_embeddings, num_codebooks) if counted else None
        self._stepping = False
        # Within a namespace Keras does not see them. Tracked, they would be layers of this model.
        self._parts = types.SimpleNamespace(drop_masked=ReplaceMasked(-1), tokenizer=None)
        if getattr(encoder, "inputs", None):
            self(_inputs_like(encoder))

    def compile(self, optimizer: Any = "adam", loss: Any = "mse", **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is the reconstruction's, by default the mean squared error."""
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras leaves this to every model with a `compile` of its own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def build(self, input_shape: Any) -> None:
        if self._parts.tokenizer is not None:
            return
        if getattr(self.encoder, "inputs", None):
            inputs = _inputs_like(self.encoder)
        else:
            inputs = keras.tree.map_shape_structure(lambda shape: keras.Input(batch_shape=shape), input_shape)
        vectors = self.encoder(inputs)
        _, indices = self.quantizer(vectors, return_indices=True)
        codes = keras.Input(batch_shape=indices.shape, dtype="int32", name="codes")
        self._parts.tokenizer = keras.Model(inputs, indices, name="tokenizer")
        self._parts.detokenizer = keras.Model(codes, self.decoder(self.quantizer.decode(codes)), name="detokenizer")
        # Keras exports no model that was never called.
        self._parts.tokenizer(inputs)
        self._parts.detokenizer(codes)
        # What is not finite is left out of k-means.
        self._parts.vectors = keras.Model(inputs, ReplaceMasked(float("nan"))(vectors), name="vectors")

    @property
    def tokenizer(self) -> keras.Model:
        """The functional model from inputs to codes, over this model's layers; there once it is built."""
        return self._built_parts().tokenizer

    @property
    def detokenizer(self) -> keras.Model:
        """The functional model from codes to reconstructions, over this model's layers; there once it is built."""
        return self._built_parts().detokenizer

    def _built_parts(self) -> types.SimpleNamespace:
        if self._parts.tokenizer is None:
            raise ValueError(
                "`VQVAE` must be built: call it, or take an encoder that knows its input shape. Received: built=False"
            )
        return self._parts

    def _parts_for(self, x: Any) -> types.SimpleNamespace:
        """The parts, built by the first samples of `x` if the model never saw any."""
        if self._parts.tokenizer is None and not isinstance(x, Iterator):
            self.predict(x, steps=1, verbose=0)
        return self._built_parts()

    def call(self, inputs: Tensor, training: bool | None = None) -> Any:
        vectors = self.encoder(inputs, training=training)
        quantized, indices = self.quantizer(vectors, training=training, return_indices=True)
        reconstruction = self.decoder(quantized, training=training)
        if not self._stepping:
            return reconstruction
        return _Step(reconstruction, self._parts.drop_masked(indices), sum(self.quantizer.losses, ops.zeros(())))

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        self._stepping = True
        self.quantizer.deferred = [] if backend.replicas_in_turns() > 1 else None
        try:
            yield
        finally:
            self._stepping, self.quantizer.deferred = False, None

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        backend.refuse_separate_training(self)
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
        size = ops.shape(y_pred.reconstruction)[0]
        # Keras has divided all of them, as TensorFlow will sum gradients over replicas.
        reconstruction_loss = total * backend.replicas_in_turns() - sum(self.losses)
        self._reconstruction_loss.update_state(reconstruction_loss, sample_weight=size)
        self._quantizer_loss.update_state(y_pred.quantizer_loss, sample_weight=size)
        if self._perplexity is not None:
            self._perplexity.update_state(y_pred.indices)
            self._usage.update_state(y_pred.indices)
        # Other replicas take their turn here, which must find no loss of this one.
        for update in self.quantizer.deferred or ():
            update()
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
        return self._parts_for(x).tokenizer.predict(x, batch_size=batch_size, verbose=verbose)

    def adapt(self, x: Any, batch_size: int | None = None, verbose: str | int = "auto", **keywords: Any) -> None:
        """Fills the quantizer's codebook by k-means of the encoder's outputs.

        Args:
            x: Inputs of the encoder, in any form that `predict` takes. The encoder's outputs are kept in memory, and
                256 vectors a code are plenty: give a part of large data.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.
            **keywords: Of the quantizer's `adapt`, such as `epochs` and `seed`.
        """
        vectors = self._parts_for(x).vectors.predict(x, batch_size=batch_size, verbose=verbose)
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
        return self.detokenizer.predict(codes, batch_size=batch_size, verbose=verbose)

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


def _inputs_like(encoder: keras.Model) -> Any:
    """New symbolic inputs like those of a model that knows its own."""
    inputs = encoder.inputs[0] if isinstance(encoder, keras.Sequential) else encoder.input
    return keras.tree.map_structure(lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), inputs)
