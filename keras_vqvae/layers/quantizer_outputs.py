"""What a quantizer makes of vectors, and the updates of its state that follow."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

Lazy: TypeAlias = Callable[[], Tensor]
"""A value that is computed where it is needed."""
Update: TypeAlias = tuple[Any, Tensor, Tensor, Tensor]
"""Of a step: the `Quantizer`, which imports this file, vectors `[N, D]`, their indices and which of them are kept."""


def once(function: Lazy) -> Lazy:
    """`function`, which runs at the first call alone; `functools.cache` is not for `torch.compile`."""
    made: list[Tensor] = []

    def call() -> Tensor:
        if not made:
            made.append(function())
        return made[0]

    return call


@dataclasses.dataclass
class QuantizerOutputs:
    """What a quantizer makes of vectors `[N, D]`."""

    quantized: Lazy
    """Computes the output `[N, D]`, with the gradient of the encoder, where it is the output."""
    codes: Tensor
    """The codes `[N, D]`, with the gradient of the codebook."""
    indices: Tensor
    """Int32 `[N, *index_shape]`."""
    losses: Callable[[], list[Tensor]]
    """Computes the losses, float32 scalars, where somebody reads them."""
    updates: list[Update]
    """Those to come."""


def apply_updates(updates: list[Update], training: bool, within_call: bool = True) -> None:
    """Updates the counts and the state of each quantizer once, with all the vectors that a step gave it.

    Afterwards, and not in `quantize_vectors`: a codebook that several levels share must not change between them.
    """
    for quantizer in {id(quantizer): quantizer for quantizer, *_ in updates}.values():
        updated = training and quantizer.trainable
        if not (updated or quantizer.count_in_inference):
            continue
        if within_call:
            backend.refuse_updates_in_call()
        parts = zip(*(update for owner, *update in updates if owner is quantizer), strict=True)
        vectors, indices, kept = map(_joined, parts)
        counts = None
        if quantizer.code_counts is not None:
            counts = backend.sum_over_replicas(quantizer.count_codes(indices, kept))
            backend.add_counts(quantizer.code_counts, counts)
        if updated:
            quantizer.update(vectors, indices, kept, counts)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All rows of several tensors, `[n_i, ...]` -> `[sum n_i, ...]`, the first ones of each before the next."""
    if len(parts) == 1:
        return parts[0]
    rows = [part.shape[0] for part in parts]
    # One after the other they would go to other devices, where a batch is spread over several: not so sample by sample.
    if not all(isinstance(n, int) and n for n in rows):
        return ops.concatenate(parts)
    # `[n_i, ...]` -> `[samples, n, ...]` each -> `[sum n_i, ...]`
    samples, rest = math.gcd(*rows), parts[0].shape[1:]
    parts = [ops.reshape(part, (samples, -1, *rest)) for part in parts]
    return ops.reshape(ops.concatenate(parts, axis=1), (-1, *rest))
