"""Records of calls: the data that a quantizer's output, losses and updates are computed from.

`Quantizer.quantize_vectors` returns a record. Output, losses and updates are computed from it only if they are needed.
`predict` needs no losses. A residual of straight-through stages does not need the output of each stage.
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
    """The vectors of one call of a quantizer, with their indices and codes.

    Attributes:
        quantizer: The `Quantizer` that made the record.
        vectors: Vectors `[N, D]` after `Quantizer.project`. Their gradient reaches the encoder.
        valid: Booleans `[N]`. `False` for vectors that are masked or not finite.
        indices: Integers `[N, *index_shape]`.
        codes: Codes `[N, D]`. Their gradient reaches the codebook.
        training: Whether the layer was called with `training=True`.
        parts: Records of the inner quantizers of a wrapper.
        used: Booleans `[N]` under quantizer dropout. `False` for vectors that do not use the quantizer: they get a
            vector of zeros as their code, and the index -1. `None` if all vectors use it.
        losses: Names and values of the losses of the record and its parts. `None` until they are computed.
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
                    # Records with the same `valid` share its count.
                    each._count = self._count

    @property
    def updates_state(self) -> bool:
        """Whether the call trains the quantizer: it then updates its own state and may add noise."""
        return self.training and self.quantizer.trainable

    @property
    def output(self) -> Tensor:
        """The quantizer's output `[N, D]`. It is computed only once, because it may contain noise."""
        if self._output is None:
            output = self.quantizer.compute_output(self)
            self._output = output if self.used is None else backend.masked(output, self.used)
        return self._output

    @property
    def used_codes(self) -> Tensor:
        """The codes `[N, D]`, with 0 for vectors that do not use the quantizer."""
        return self.codes if self.used is None else backend.masked(self.codes, self.used)

    @property
    def used_indices(self) -> Tensor:
        """The indices `[N, *index_shape]`, with -1 for vectors that do not use the quantizer."""
        if self.used is None:
            return self.indices
        return ops.where(ops.reshape(self.used, (-1,) + (1,) * (len(self.indices.shape) - 1)), self.indices, -1)

    @property
    def count(self) -> Tensor:
        """Number of valid vectors, a float32 scalar."""
        if not self._count:
            self._count.append(backend.count_true(self.valid))
        return self._count[0]

    @property
    def differences(self) -> Tensor:
        """`vectors - codes` without a gradient, with 0 for vectors that are not valid: `[N, D]`."""
        if self._differences is None:
            differences = ops.stop_gradient(self.vectors) - ops.stop_gradient(self.codes)
            self._differences = backend.masked(differences, self.valid)
        return self._differences

    def squared_errors(self, commitment_weight: float, codebook_weight: float) -> dict[str, Tensor]:
        """Returns the weighted commitment loss and codebook loss by name. A loss with the weight 0 is left out."""
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
    """Updates the counts and the state of each quantizer in a record.

    Compute the losses first, because they read the state before the update. A quantizer that several stages share is
    updated once, with the vectors of all these stages.
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
    """Returns how often each code of a record was chosen. Adds the record and its parts, with counts, to `found`."""
    parts = [_count(part, found) for part in record.parts]
    counts = record.quantizer.count_record(record, parts)
    found.setdefault(id(record.quantizer), []).append((record, counts))
    return counts


def _joined(records: Sequence[Record]) -> Record:
    """Joins the records of one quantizer into one record of all their vectors."""
    if len(records) == 1:
        return records[0]
    names = ("vectors", "valid", "indices", "codes")
    columns = {name: _joined_rows([getattr(each, name) for each in records]) for name in names}
    nothing: dict[str, Any] = dict.fromkeys(("used", "losses", "_output", "_differences"))
    return dataclasses.replace(records[0], **columns, **nothing, parts=(), _count=[])


def _joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Joins the rows of several tensors: `[n_i, ...]` -> `[sum n_i, ...]`.

    The rows are ordered by sample if the sizes are known. A batch that is sharded over devices then stays on its
    devices, while plain concatenation would send rows between them.
    """
    rows = [part.shape[0] for part in parts]
    if not all(isinstance(n, int) and n for n in rows):
        return ops.concatenate(parts)
    # `[n_i, ...]` -> `[samples, n, ...]` each -> `[sum n_i, ...]`
    samples, rest = math.gcd(*rows), parts[0].shape[1:]
    parts = [ops.reshape(part, (samples, -1, *rest)) for part in parts]
    return ops.reshape(ops.concatenate(parts, axis=1), (-1, *rest))
