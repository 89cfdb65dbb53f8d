"""Packs indices into a file, with `ceil(log2(number of codes))` bits each."""

import math
import struct
from typing import NamedTuple

import numpy as np

HEADER = struct.Struct("<4sIIfBB")
MAGIC = b"VQS1"


class Packed(NamedTuple):
    """The contents of a packed file."""

    codes: np.ndarray
    """Indices, `[steps, stages]`."""
    samples: int
    """Number of samples of the sound."""
    rate: int
    loudness: float
    """Factor that the decoded samples are multiplied by."""


def bits_per_index(num_embeddings: int) -> int:
    return max(1, math.ceil(math.log2(num_embeddings)))


def pack(packed: Packed, num_embeddings: int) -> bytes:
    """Returns a header, then the indices with the highest bit first, padded with zeros to a whole byte."""
    bits, stages = bits_per_index(num_embeddings), packed.codes.shape[1]
    header = HEADER.pack(MAGIC, packed.samples, packed.rate, packed.loudness, stages, bits)
    digits = packed.codes.reshape(-1, 1) >> np.arange(bits)[::-1] & 1
    return header + np.packbits(digits.astype("u1")).tobytes()


def unpack(data: bytes, stride: int) -> Packed:
    """Reverses `pack`, for a codec with one vector per `stride` samples."""
    if data[:4] != MAGIC or len(data) < HEADER.size:
        raise ValueError(f"`data` must be a file that `pack` made. Received: {data[:4]!r} and so on, {len(data)} bytes")
    _, samples, rate, loudness, stages, bits = HEADER.unpack_from(data)
    steps = math.ceil(samples / stride)
    expected = HEADER.size + math.ceil(steps * stages * bits / 8)
    if len(data) != expected:
        raise ValueError(f"`data` must have the {expected} bytes that its header states. Received: {len(data)} bytes")
    digits = np.unpackbits(np.frombuffer(data, "u1", offset=HEADER.size), count=steps * stages * bits)
    codes = digits.reshape(steps, stages, bits) @ (1 << np.arange(bits)[::-1])
    return Packed(codes.astype("int32"), samples, rate, loudness)
