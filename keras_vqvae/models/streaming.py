"""Streams: encoding and decoding of sequences that arrive in parts."""

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
"""Largest number of units that a step processes at once. It limits the memory of a step."""
MAX_SIZES = 8
"""Largest number of different input sizes. Some backends compile a program for each size."""


@dataclasses.dataclass
class StreamStep:
    """A step of a stream.

    Args:
        model: A functional model from a dict of `source` and states to a dict of `target` and new states.
        causal: The causal encoder or decoder of the step.
        source: Name of the input, `"samples"` or `"codes"`.
        target: Name of the output, `"codes"` or `"samples"`.
        sizes: The sizes, in units, with which the step has been run, and 1.
    """

    model: keras.Model
    causal: CausalStep
    source: str
    target: str
    sizes: set[int] = dataclasses.field(default_factory=lambda: {1})

    def stream(self, chunks: Iterable[Tensor], checked: Callable[[Tensor], np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the outputs that each chunk completes. Zeros at the end complete the last ones."""
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
                    "`chunks` must all have the batch size of the first one. "
                    f"Received: first chunk of {len(rest)} sequences, chunk of shape {chunk.shape}"
                )
            outputs, rest = self._run(np.concatenate([rest, chunk], axis=1), states)
            yield outputs
        if rest is not None and rest.shape[1] and self.causal.end_padding:
            zeros = np.zeros((len(rest), self.causal.end_padding, *rest.shape[2:]), rest.dtype)
            yield self._run(np.concatenate([rest, zeros], axis=1), states)[0]

    def _run(self, inputs: np.ndarray, states: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the outputs of all complete units, and the remaining inputs. Updates the states."""
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
        """Number of units to process next: all available ones, or fewer, to limit the number of different sizes."""
        units = min(units, MAX_BLOCK)
        if len(self.sizes) < MAX_SIZES:
            self.sizes.add(units)
        return max(size for size in self.sizes if size <= units)


class CodeStreaming(CodeAutoencoder):
    """Adds `encode_stream` and `decode_stream`, for a causal encoder and decoder."""

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Encodes sequences that arrive in chunks. The concatenated results equal `encode` of the concatenated chunks.

        A chunk may have any number of steps, including 0. Between chunks, a stream keeps fewer than `latency` samples
        and the last few steps of each layer. Rounding can change an index only where two codes are equally near.

        Args:
            chunks: An iterable of arrays `[batch, steps, channels]`, such as a generator.

        Returns:
            An iterator over int32 arrays `[batch, indices, ...]`: for each chunk, the indices that it completes, if
            any. Samples that remain at the end are padded with zeros, as in `encode`, and give one more array.

        Raises:
            ValueError: If a layer of the encoder is not causal, the quantizer quantizes whole grids, or a chunk has a
                wrong shape.

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
        """Decodes indices that arrive in chunks. The concatenated results equal `decode` of the concatenated chunks.

        Each index is decoded as soon as it arrives. See `encode_stream`.

        Args:
            chunks: An iterable of arrays of indices, as `encode_stream` yields them.

        Returns:
            An iterator over arrays `[batch, steps, channels]`, one for each chunk.

        Raises:
            ValueError: If a layer of the decoder is not causal, the quantizer quantizes whole grids, a chunk has a
                wrong shape, or an index is out of range.
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
        """Number of samples per index of a stream. This is the only delay: an index can be decoded at once."""
        return self._stream_step("encoder").causal.unit

    @property
    def receptive_field(self) -> int:
        """Largest number of input samples that a sample of a stream's reconstruction depends on."""
        encoder, decoder = (self._stream_step(name).causal for name in ("encoder", "decoder"))
        return encoder.receptive_field + math.ceil((decoder.receptive_field - 1) * Fraction(encoder.unit, encoder.made))

    @property
    def tokenizer_step(self) -> keras.Model:
        """One step of `encode_stream` as a functional model over this model's layers, for `export`.

        Its inputs are a dict of `samples` `[batch, steps, channels]`, where `steps` is a multiple of `latency`, and of
        states `state_0`, `state_1`, ... Its outputs are a dict of `codes` and the new states, by the same names. At the
        start of a stream, states are zeros.
        """
        return self._stream_step("encoder").model

    @property
    def detokenizer_step(self) -> keras.Model:
        """One step of `decode_stream`, for `export`: like `tokenizer_step`, but from `codes` to `samples`."""
        return self._stream_step("decoder").model

    def _stream_step(self, name: str) -> StreamStep:
        parts = self._built_parts()
        if name not in parts.steps:
            if self.quantizer.quantizes_grids:
                raise ValueError(
                    "`quantizer` must quantize single vectors for a stream, not whole grids. "
                    f"Received: quantizer={self.quantizer.__class__.__name__}"
                )
            if name == "encoder" and self.preprocessing is not None:
                raise ValueError(
                    "`preprocessing` is not supported in streams. Use `VQVAE(model.encoder, model.quantizer, "
                    "model.decoder)`, and preprocess the chunks yourself. "
                    f"Received: preprocessing={self.preprocessing.name}"
                )
            parts.steps[name] = self._make_step(name)
        return parts.steps[name]

    def _make_step(self, name: str) -> StreamStep:
        samples, outputs = self.tokenizer.inputs, self.detokenizer.outputs
        for tensors in (samples, outputs):
            if len(tensors) != 1 or len(tensors[0].shape) != 3:
                shapes = [tuple(tensor.shape) for tensor in tensors]
                raise ValueError(
                    "`encoder` must take one sequence [batch, steps, channels], and `decoder` must return one, for a "
                    f"stream. Received: {'encoder inputs' if tensors is samples else 'decoder outputs'} of {shapes}"
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
        # `export` needs a model that was called.
        model(tensors)
        return StreamStep(model, causal, source, target)


def _check_iterable(chunks: object) -> None:
    if hasattr(chunks, "shape"):
        raise ValueError(
            "`chunks` must be an iterable of arrays, such as the list `[x]` for one array `x`. "
            f"Received: an array of shape {tuple(chunks.shape)}"
        )
