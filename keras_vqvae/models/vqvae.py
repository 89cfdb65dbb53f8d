"""The VQ-VAE: an encoder, a quantizer and a decoder, trained by `fit`."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vqvae import backend
from keras_vqvae.arguments import Data, Tensor
from keras_vqvae.layers.quantizer import MOST_COUNTED, Quantizer
from keras_vqvae.metrics import CodebookSummary
from keras_vqvae.models.autoencoder import CodeAutoencoder, inputs_like


# What `call` hands to `compute_loss` within a step of `fit` or `evaluate`. An output, because no other way from the
# one to the other works on every backend: on JAX neither metrics nor a sublayer's losses can be reached in between.
class _Step(NamedTuple):
    reconstruction: Tensor
    indices: Tensor
    quantizer_loss: Tensor
    updates: Sequence[Callable[[], None]]


@keras.saving.register_keras_serializable(package="keras_vqvae")
class VQVAE(CodeAutoencoder):
    """An autoencoder whose latents are codes: `decoder(quantizer(encoder(x)))`.

    `fit(x)` trains it to reconstruct `x`; `fit(x, y)` to predict `y`. Training and evaluation report `loss` and its
    parts, `reconstruction_loss` and `quantizer_loss`, and how the codebook is used over the epoch: `perplexity` and
    `codebook_usage`. For a quantizer with several codebooks, one for each stage, group or scale, these are means, and
    `min_perplexity` and `min_codebook_usage` are those of the worst codebook.

    `tokenizer`, from inputs to codes, and `detokenizer`, from codes to reconstructions, are functional models over the
    same layers: to export, to nest in other models, to hand on. `encode` and `decode` run them by batches, and `sample`
    decodes what a prior draws.

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
        super().__init__(encoder, quantizer, decoder, **kwargs)
        self._reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self._quantizer_loss = keras.metrics.Mean(name="quantizer_loss")
        # The codes of a vast implicit codebook are not counted.
        shape = (*quantizer.codebook_shape, quantizer.num_embeddings)
        self._codebooks = CodebookSummary(shape) if math.prod(shape) <= MOST_COUNTED else None
        self._stepping = False
        if getattr(encoder, "inputs", None):
            self(inputs_like(encoder))

    def compile(self, optimizer: str | keras.optimizers.Optimizer = "adam", loss: Any = "mse", **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is the reconstruction's, by default the mean squared error."""
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras leaves this to every model with a `compile` of its own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor | _Step:
        vectors = self.encoder(inputs, training=training)
        deferring = self._stepping and backend.replicas_in_turns() > 1
        with self.quantizer.deferred_updates() if deferring else contextlib.nullcontext(()) as updates:
            quantized, indices = self.quantizer(vectors, training=training, return_indices=True)
        reconstruction = self.decoder(quantized, training=training)
        if not self._stepping:
            return reconstruction
        quantizer_loss = sum(self.quantizer.losses, ops.zeros(()))
        return _Step(reconstruction, self._parts.drop_masked(indices), quantizer_loss, updates)

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        backend.refuse_separate_training(self)
        with self._step():
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._step():
            return super().test_step(*args, **kwargs)

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Tensor | _Step | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        y = x if y is None else y
        if not isinstance(y_pred, _Step):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        total = super().compute_loss(x, y, y_pred.reconstruction, sample_weight, training)
        size = ops.shape(y_pred.reconstruction)[0]
        # Keras has divided all of them, as TensorFlow will sum gradients over replicas.
        reconstruction_loss = total * backend.replicas_in_turns() - sum(self.losses)
        self._reconstruction_loss.update_state(reconstruction_loss, sample_weight=size)
        self._quantizer_loss.update_state(y_pred.quantizer_loss, sample_weight=size)
        if self._codebooks is not None:
            self._codebooks.update_state(self.quantizer.count_codes(y_pred.indices))
        # Other replicas take their turn here, which must find no loss of this one.
        for update in y_pred.updates:
            update()
        return total

    def compute_metrics(
        self, x: Data, y: Data, y_pred: Tensor | _Step, sample_weight: Tensor | None = None
    ) -> dict[str, Any]:
        y_pred = y_pred.reconstruction if isinstance(y_pred, _Step) else y_pred
        return super().compute_metrics(x, x if y is None else y, y_pred, sample_weight)
