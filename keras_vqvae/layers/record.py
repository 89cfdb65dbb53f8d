"""What a quantizer did with the vectors of one call, as plain data.

`Quantizer.quantize_vectors` returns a record. The layer's output, losses and updates are functions of it, and each is
computed only where it is needed: `predict` needs no losses, and a residual of straight-through stages no stage's
output.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


@dataclasses.dataclass
class Record:
    """Vectors `[N, D]` and what a quantizer made of them.

    Attributes:
        quantizer: The `Quantizer` that made the record.
        vectors: `[N, D]`, as they were quantized, with the gradient of the encoder.
        valid: Booleans `[N]`: which vectors count.
        indices: Integers `[N, *index_shape]`.
        codes: `[N, D]`, with the gradient of the codebook.
        training: Whether the call was one of training.
        parts: Records of the quantizers within a wrapper.
        used: Booleans `[N]`: which vectors use the quantizer, under quantizer dropout; `None` for all. The others get
            the code 0 and the index -1.
        losses: The losses of the record and its parts, with their names; `None` until they are computed.
    """

    quantizer: Any
    vectors: Tensor
    valid: Tensor
    indices: Tensor
    codes: Tensor
    training: bool
    parts: Sequence["Record"] = ()
    used: Tensor | None = None
    losses: list[tuple[str, Tensor]] | None = None
    _output: Tensor | None = None
    _differences: Tensor | None = None
    _count: list[Tensor] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for part in self.parts:
            for each in part.walk():
                if each.valid is self.valid:
                    # Counted once for all of them.
                    each._count = self._count

    @property
    def updates_state(self) -> bool:
        """Whether the call trains the quantizer's own state: codes, averages and draws."""
        return self.training and self.quantizer.trainable

    @property
    def output(self) -> Tensor:
        """The quantizer's output `[N, D]`, with the gradient of the encoder. Computed once, because it may be drawn."""
        if self._output is None:
            output = self.quantizer.compute_output(self)
            self._output = output if self.used is None else backend.masked(output, self.used)
        return self._output

    @property
    def used_codes(self) -> Tensor:
        """The codes `[N, D]`, and 0 for vectors that do not use the quantizer."""
        return self.codes if self.used is None else backend.masked(self.codes, self.used)

    @property
    def used_indices(self) -> Tensor:
        """The indices `[N, *index_shape]`, and -1 for vectors that do not use the quantizer."""
        if self.used is None:
            return self.indices
        return ops.where(ops.reshape(self.used, (-1,) + (1,) * (len(self.indices.shape) - 1)), self.indices, -1)

    @property
    def count(self) -> Tensor:
        """How many vectors are valid, a float32 scalar."""
        if not self._count:
            self._count.append(backend.count_true(self.valid))
        return self._count[0]

    @property
    def differences(self) -> Tensor:
        """`vectors - codes`, and 0 where a vector is not valid, as a constant `[N, D]`."""
        if self._differences is None:
            differences = ops.stop_gradient(self.vectors) - ops.stop_gradient(self.codes)
            self._differences = backend.masked(differences, self.valid)
        return self._differences

    def squared_errors(self, commitment_weight: float, codebook_weight: float) -> dict[str, Tensor]:
        """Returns the commitment loss and the codebook loss, those of them that have a weight above 0."""
        weights = commitment_weight, codebook_weight
        if not any(weights):
            return {}
        losses, self._differences = backend.squared_errors(self.vectors, self.codes, self.valid, self.count, weights)
        names = ("commitment_loss", "codebook_loss")
        return {name: loss for name, loss in zip(names, losses, strict=True) if loss is not None}

    def walk(self) -> Iterator["Record"]:
        """Yields the records of all parts, and then this one."""
        for part in self.parts:
            yield from part.walk()
        yield self


def apply_updates(record: Record, within_call: bool = True) -> None:
    """Updates counts and state of each quantizer of a record.

    This comes after the losses, which read what is updated here. A quantizer that several stages share is updated once,
    with the vectors of all of them.
    """
    if not any(each.updates_state or each.quantizer.count_in_inference for each in record.walk()):
        return
    if within_call:
        backend.refuse_updates_in_call()
    found: dict[int, list[tuple[Record, Tensor | None]]] = {}
    _count(record, found)
    for group in found.values():
        records, counts = zip(*group, strict=True)
        quantizer, updated = records[0].quantizer, records[0].updates_state
        total = None if counts[0] is None else sum(counts[1:], counts[0])
        if total is not None and quantizer.code_counts is not None and (updated or quantizer.count_in_inference):
            backend.add_counts(quantizer.code_counts, total)
        if updated:
            quantizer.update(_joined(records), total)


def _count(record: Record, found: dict[int, list[tuple[Record, Tensor | None]]]) -> Tensor | None:
    """Returns the counts of a record's codes, and adds them to those `found` for its quantizer and its parts'."""
    parts = [_count(part, found) for part in record.parts]
    counts = record.quantizer.count_record(record, parts)
    found.setdefault(id(record.quantizer), []).append((record, counts))
    return counts


def _joined(records: Sequence[Record]) -> Record:
    """One record of all the vectors of a quantizer."""
    if len(records) == 1:
        return records[0]
    names = ("vectors", "valid", "indices", "codes")
    columns = {name: _joined_rows([getattr(each, name) for each in records]) for name in names}
    nothing: dict[str, Any] = dict.fromkeys(("used", "losses", "_output", "_differences"))
    return dataclasses.replace(records[0], **columns, **nothing, parts=(), _count=[])


def _joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """The rows of several tensors: `[n_i, ...]` -> `[sum n_i, ...]`.

    Sample by sample where the sizes are known. One tensor after the other would send rows to other devices where a
    batch is spread over several.
    """
    rows = [part.shape[0] for part in parts]
    if not all(isinstance(n, int) and n for n in rows):
        return ops.concatenate(parts)
    # `[n_i, ...]` -> `[samples, n, ...]` each -> `[sum n_i, ...]`
    samples, rest = math.gcd(*rows), parts[0].shape[1:]
    parts = [ops.reshape(part, (samples, -1, *rest)) for part in parts]
    return ops.reshape(ops.concatenate(parts, axis=1), (-1, *rest))
