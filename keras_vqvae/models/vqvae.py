"""The VQ-VAE: an encoder, a quantizer and a decoder, trained by `fit`."""

from typing import Any

import keras
from keras import ops

from keras_vqvae.models.scaling import settle_scale
from keras_vqvae.models.step import Pass
from keras_vqvae.models.streaming import CodeStreaming
from keras_vqvae.models.training import AutoencoderTraining
from keras_vqvae.types import Data, Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class VQVAE(AutoencoderTraining, CodeStreaming):
    """An autoencoder whose latents are codes: `decoder(quantizer(encoder(x)))`.

    `fit(x)` trains it to reconstruct `x`, and `fit(x, y)` to predict `y`. Training and evaluation report:

    - `loss`, and its parts `reconstruction_loss`, before normalization, and `quantizer_loss`;
    - the parts of `quantizer_loss`, with their weights, if the quantizer has them: `commitment_loss`,
      `codebook_loss`, `entropy_loss`, `assignment_loss` of an `assignment_regularizer`, `kl_loss` of a
      `GumbelQuantizer`, and `output_loss` of an `IndexBackpropagationQuantizer`;
    - `explained_variance`: 1 for a perfect reconstruction, 0 if it is no better than the mean of the data;
    - `perplexity`, `codebook_usage` and `bits_per_index`, which measure how the codebook is used over the epoch, and
      `bits_per_sample`, the size of a sample's indices after entropy coding;
    - `min_perplexity` and `min_codebook_usage` of the worst codebook, if the quantizer has several codebooks, one for
      each stage, group or scale. `perplexity`, `codebook_usage` and `bits_per_index` are then means over the codebooks.

    Keras knows the direction of `val_loss` only. Callbacks such as `EarlyStopping` and `ModelCheckpoint` need
    `mode="min"` to monitor another loss, and `mode="max"` for `val_explained_variance` or `val_perplexity`.

    Data may have any scale. The default loss of `compile` does not depend on it. If the root mean square of the data is
    below 1/16 or above 1.5, the first `fit`, `train_on_batch` or `adapt` chooses a power of two. From then on, the
    encoder's inputs are divided by it, and the decoder's outputs are multiplied by it. This happens only if the inputs
    are also the targets, and not if encoder or decoder are frozen, already trained, or scale the data themselves, for
    example with a `Rescaling` or `Normalization` layer.

    The decoder may have several outputs, in a dict or a list. Then `fit` needs `y` in this structure.

    `tokenizer`, from inputs to codes, and `detokenizer`, from codes to reconstructions, are functional models over the
    same layers, which you can export or use in other models. `encode` and `decode` run them in batches, and `sample`
    decodes codes that a prior draws. A model that contains the tokenizer cannot train it. If encoder and decoder are
    causal, `encode_stream` and `decode_stream` do the same for sequences that arrive in parts.

    A subclass adds layers, metrics and weights after `super().__init__()`, and overrides `call`, `compute_loss` and
    `compute_metrics`, as with any Keras model. `autoencode` gives it the latents and the indices of a call.

    Args:
        encoder: A Keras model or layer from inputs to vectors `[batch, ..., D]`. If its input shape is known, the
            constructor also builds the model.
        quantizer: A quantizer, such as `VectorQuantizer`.
        decoder: A Keras model or layer from vectors `[batch, ..., D]` to reconstructions.
        preprocessing: A Keras layer or model that is applied to the inputs first, such as `RandomFlip` or `Rescaling`.
            Its outputs are the encoder's inputs, and also the targets of `fit(x)`. Defaults to `None`.
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
    ['bits_per_index', 'bits_per_sample', 'codebook_loss', 'codebook_usage', 'commitment_loss', 'explained_variance', \
'loss', 'perplexity', 'quantizer_loss', 'reconstruction_loss']
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

    def fit(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model as `keras.Model.fit` does. Without `y`, the inputs `x` are the targets."""
        x = settle_scale(self, x, y)
        return super().fit(x, self._weighed(x, y, kwargs), *args, **kwargs)

    def train_on_batch(self, x: Data, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch as `keras.Model.train_on_batch` does. Without `y`, the inputs `x` are the targets."""
        return super().train_on_batch(settle_scale(self, x, y), y, *args, **kwargs)

    def evaluate(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the model as `keras.Model.evaluate` does. Without `y`, the inputs `x` are the targets."""
        return super().evaluate(x, self._weighed(x, y, kwargs), *args, **kwargs)

    def _weighed(self, x: Data, y: Data, keywords: dict[str, Any]) -> Data:
        """Returns the targets: `y`, or `x` if only `sample_weight` is given, as Keras drops weights without targets."""
        if y is not None or keywords.get("sample_weight") is None:
            return y
        if self.preprocessing is not None:
            raise ValueError(
                "`y` must be given if `sample_weight` is, because this model has `preprocessing`. Received: y=None"
            )
        return x

    def call(self, inputs: Tensor, training: bool | None = None) -> Any:
        return self.autoencode(inputs, training=training)[0]

    def autoencode(self, inputs: Tensor, training: bool | None = None) -> tuple[Any, Tensor, Tensor]:
        """Encodes, quantizes and decodes tensors, as `call` does, and also returns the latents and the indices.

        A subclass uses it in its own `call`, so that an additional head or loss needs no second pass:

        ```python
        def call(self, inputs, training=None):
            reconstruction, latents, indices = self.autoencode(inputs, training=training)
            return {"image": reconstruction, "label": self.head(latents)}
        ```

        The logs `quantizer_loss`, `perplexity` and `codebook_usage` are computed from its calls. A `call` that does not
        use it does not log them.

        Args:
            inputs: Inputs of the encoder.
            training: Whether this is a training step, as in `call`. Defaults to `None`, the mode of the outer layer.

        Returns:
            `(reconstruction, latents, indices)`. The reconstruction is the decoder's output. It is cropped to the size
            of the inputs, if it is larger only because of the strides. The latents are the codes `[batch, ..., D]` that
            were decoded, with a gradient for the encoder. The indices are int32, and -1 at masked positions.
        """
        if self.preprocessing is not None:
            # A bool, because `Sequential` also augments if `training` is `None`.
            inputs = self.preprocessing(inputs, training=bool(training))
        if self._step.passes is not None:
            self._step.inputs.append(inputs)
        self._parts.cropping.check("inputs", inputs)
        vectors = self.encoder(self._scaled(inputs), training=training)
        with self._quantizing() as records:
            latents, indices = self.quantizer(vectors, training=training, return_indices=True)
        outputs = self._scaled(self.decoder(latents, training=training), reverse=True)
        reconstruction = self._parts.cropping.to_inputs(outputs, inputs)
        indices = self._parts.drop_masked(indices)
        if self._step.passes is not None:
            self._step.passes.append(Pass(indices, ops.shape(latents), self._quantizer_losses(records), records))
        return reconstruction, latents, indices
