"""Streams: `encode` and `decode` of sequences that come in parts."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import keras
import numpy as np
from keras import ops

from keras_vqvae.models.autoencoder import CodeAutoencoder
from keras_vqvae.models.causal_step import CausalStep
from keras_vqvae.models.local_predict import predict_on_batch
from keras_vqvae.types import Tensor

MAX_BLOCK = 256
"""How many units a step takes at once, at most: what bounds its memory."""
MAX_SIZES = 8
"""How many numbers of units a step takes before it keeps to those: some backends compile a program for each."""


@dataclasses.dataclass
class StreamStep:
    """A step of a stream.

    Args:
        model: A functional model from a dict of `source` and states to a dict of `target` and states.
        causal: What it is made of.
        source: `"samples"` or `"codes"`.
        target: The other one.
        sizes: The numbers of units that it was run with, and one.
    """

    model: keras.Model
    causal: CausalStep
    source: str
    target: str
    sizes: set[int] = dataclasses.field(default_factory=lambda: {1})

    def stream(self, chunks: Iterable[Tensor], checked: Callable[[Tensor], np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the outputs that each chunk completes, and at last those that zeros at the end complete."""
        states: dict[str, np.ndarray] = {}
        rest: np.ndarray | None = None
        for given in chunks:
            chunk = checked(given)
            if rest is None:
                for name, state in self.causal.states.items():
                    states[name] = np.zeros((len(chunk), *state.shape[1:]), state.dtype)
                rest = chunk[:, :0]
            elif len(chunk) != len(rest):
                raise ValueError(
                    f"`chunks` must all have as many sequences as the first, {len(rest)}. "
                    f"Received: chunk of shape {chunk.shape}"
                )
            outputs, rest = self._run(np.concatenate([rest, chunk], axis=1), states)
            yield outputs
        if rest is not None and rest.shape[1] and self.causal.end_padding:
            zeros = np.zeros((len(rest), self.causal.end_padding, *rest.shape[2:]), rest.dtype)
            yield self._run(np.concatenate([rest, zeros], axis=1), states)[0]

    def _run(self, inputs: np.ndarray, states: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the outputs of all whole units, and the inputs that are left over. Updates the states."""
        made, unit = self.model.output[self.target], self.causal.unit
        outputs, done = [np.zeros((len(inputs), 0, *made.shape[2:]), made.dtype)], 0
        while units := (inputs.shape[1] - done) // unit:
            part = inputs[:, done : done + unit * self._block(units)]
            found = predict_on_batch(self.model, {self.source: part, **states})
            outputs.append(found.pop(self.target))
            states.update(found)
            done += part.shape[1]
        return np.concatenate(outputs, axis=1), inputs[:, done:]

    def _block(self, units: int) -> int:
        """How many of the units that are there to take at once: all, or as many as at another time."""
        units = min(units, MAX_BLOCK)
        if len(self.sizes) < MAX_SIZES:
            self.sizes.add(units)
        return max(size for size in self.sizes if size <= units)


class CodeStreaming(CodeAutoencoder):
    """Streams of a model whose encoder and decoder are causal, as `build_conv_encoder(..., causal=True)` is."""

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Encodes sequences that come in chunks: what is yielded, joined, is `encode` of the chunks, joined.

        A chunk may have any number of steps, also 0. Between two chunks a stream keeps less than `latency` samples and
        the last few steps of each layer. The indices equal those of `encode` unless two codes are equally near within
        rounding.

        Args:
            chunks: An iterable of arrays `[batch, steps, channels]`, such as a generator.

        Returns:
            An iterator over int32 arrays `[batch, indices, ...]`: for each chunk the indices that it completes, none or
            more, and at the end the index of samples that are left over, followed by zeros as in `encode`.

        Raises:
            ValueError: If a layer of the encoder is not causal, the quantizer does not quantize each vector by itself,
                or a chunk has another shape.

        Example:

        >>> sizes = {"embedding_dim": 8, "filters": (8, 8), "causal": True}
        >>> encoder, decoder = build_conv_encoder((None, 1), **sizes), build_conv_decoder((None, 1), **sizes)
        >>> model = VQVAE(encoder, VectorQuantizer(num_embeddings=32), decoder)
        >>> chunks = [np.ones((1, steps, 1)) for steps in (5, 0, 6)]
        >>> [indices.shape for indices in model.encode_stream(chunks)]
        [(1, 1), (1, 0), (1, 1), (1, 1)]
        >>> [sound.shape for sound in model.decode_stream(model.encode_stream(chunks))]
        [(1, 4, 1), (1, 0, 1), (1, 4, 1), (1, 4, 1)]
        """
        step = self._stream_step("encoder")
        _check_iterable(chunks)
        channels, dtype = step.model.input["samples"].shape[-1], step.model.input["samples"].dtype

        def checked(chunk: Tensor) -> np.ndarray:
            array = ops.convert_to_numpy(chunk)
            if array.ndim != 3 or array.shape[-1] != channels:
                raise ValueError(
                    f"`chunks` must be arrays [batch, steps, {channels}]. Received: chunk of shape {array.shape}"
                )
            return array.astype(dtype)

        return step.stream(chunks, checked)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Decodes indices that come in chunks: what is yielded, joined, is `decode` of the chunks, joined.

        Each index is decoded at once. See `encode_stream`.

        Args:
            chunks: An iterable of arrays of indices, as `encode_stream` yields them.

        Returns:
            An iterator over arrays `[batch, steps, channels]`, one for each chunk.

        Raises:
            ValueError: If a layer of the decoder is not causal, the quantizer does not quantize each vector by itself,
                or a chunk has another shape or an index outside the codebook.
        """
        step = self._stream_step("decoder")
        _check_iterable(chunks)
        rank = len(step.model.input["codes"].shape)

        def checked(chunk: Tensor) -> np.ndarray:
            array = ops.convert_to_numpy(chunk)
            if array.ndim != rank:
                shape = ", ".join(("batch", "steps", *map(str, self.quantizer.index_shape)))
                raise ValueError(f"`chunks` must be arrays [{shape}]. Received: chunk of shape {array.shape}")
            return ops.convert_to_numpy(self.quantizer.check_indices("chunks", array))

        return step.stream(chunks, checked)

    @property
    def latency(self) -> int:
        """How many samples of a stream make an index. Its reconstruction is there once they are: nothing else waits."""
        return self._stream_step("encoder").causal.unit

    @property
    def receptive_field(self) -> int:
        """On how many samples of the input a sample of the reconstruction depends at most."""
        encoder, decoder = (self._stream_step(name).causal for name in ("encoder", "decoder"))
        return encoder.receptive_field + math.ceil((decoder.receptive_field - 1) * Fraction(encoder.unit, encoder.made))

    @property
    def tokenizer_step(self) -> keras.Model:
        """A step of `encode_stream`, to be exported: a functional model over this model's layers.

        From a dict of `samples`, `[batch, steps, channels]` of a multiple of `latency` steps, and states `state_0`,
        `state_1`, ... to a dict of `codes` and the new states, by the same names. At the start they are zeros.
        """
        return self._stream_step("encoder").model

    @property
    def detokenizer_step(self) -> keras.Model:
        """A step of `decode_stream`, to be exported: as `tokenizer_step`, from `codes` to `samples`."""
        return self._stream_step("decoder").model

    def _stream_step(self, name: str) -> StreamStep:
        parts = self._built_parts()
        if name not in parts.steps:
            if self.quantizer.quantizes_grids:
                raise ValueError(
                    "`quantizer` must quantize each vector by itself for a stream. "
                    f"Received: quantizer={self.quantizer.__class__.__name__}"
                )
            if name == "encoder" and self.preprocessing is not None:
                raise ValueError(
                    "A stream does not preprocess. Take `VQVAE(model.encoder, model.quantizer, model.decoder)`, and "
                    f"preprocess the chunks yourself. Received: preprocessing={self.preprocessing.name}"
                )
            parts.steps[name] = self._make_step(name)
        return parts.steps[name]

    def _make_step(self, name: str) -> StreamStep:
        samples, outputs = self.tokenizer.inputs, self.detokenizer.outputs
        for tensors in (samples, outputs):
            if len(tensors) != 1 or len(tensors[0].shape) != 3:
                shapes = [tuple(tensor.shape) for tensor in tensors]
                raise ValueError(
                    "A stream needs an encoder of one sequence [batch, steps, channels], and a decoder to one. "
                    f"Received: {'encoder' if tensors is samples else 'decoder'} of {shapes}"
                )
        source, target = ("samples", "codes") if name == "encoder" else ("codes", "samples")
        if name == "encoder":
            inputs = keras.Input((None, samples[0].shape[-1]), dtype=samples[0].dtype, name=source)
            causal = CausalStep(name, self.encoder, self._scaled(inputs))
            output = self.quantizer(causal.outputs, training=False, return_indices=True)[1]
        else:
            inputs = keras.Input((None, *self.quantizer.index_shape), dtype="int32", name=source)
            causal = CausalStep(name, self.decoder, self.quantizer.decode(inputs))
            output = self._scaled(causal.outputs, reverse=True)
        tensors = {source: inputs, **causal.states}
        model = keras.Model(tensors, {target: output, **causal.new_states}, name=f"{name}_step")
        # Keras exports no model that was never called.
        model(tensors)
        return StreamStep(model, causal, source, target)


def _check_iterable(chunks: object) -> None:
    if hasattr(chunks, "shape"):
        raise ValueError(
            f"`chunks` must be an iterable of arrays, such as `[x]`. Received: an array of shape {tuple(chunks.shape)}"
        )
