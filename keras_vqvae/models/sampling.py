"""Pure functions from logits of codes to codes that are drawn."""

import math
from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.types import Tensor

RANDOM_BITS = 22
"""How many make a number between 0 and 1. With 24, its product with a sum, in float32, may round to the sum."""


def check(num_embeddings: int, temperature: float, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    """Returns the arguments of `restrict`, which must make sense."""
    if top_p is not None and not validation.fraction("top_p", top_p):
        raise ValueError(f"`top_p` must be above 0. Received: top_p={top_p!r}")
    return {
        "temperature": validation.positive("temperature", temperature),
        "top_k": None if top_k is None else validation.positive_int("top_k", top_k, num_embeddings),
        "top_p": None if top_p is None else float(top_p),
    }


def guide(logits: Tensor, guidance_scale: Tensor | None) -> Tensor:
    """Classifier-free guidance: logits `[2 n, ..., K]`, with classes and then without, -> `[n, ..., K]`.

    `u + s (c - u)`, of logits `c` with a class and `u` without: 0 draws without the class, 1 with it, and more takes
    what the class makes likelier. `None` leaves the logits as they are.
    """
    if guidance_scale is None:
        return logits
    conditional, unconditional = ops.split(logits, 2)
    return unconditional + guidance_scale * (conditional - unconditional)


def restrict(
    logits: Tensor, temperature: Tensor = 1.0, top_k: int | None = None, top_p: Tensor | None = None
) -> Tensor:
    """Logits `[..., K]` at a temperature, with all but the likeliest at minus infinity.

    Those are the `top_k` likeliest, and of what is left the fewest likeliest that have a share of `top_p`.
    """
    logits = ops.convert_to_tensor(logits) / temperature
    if top_k is not None:
        least = ops.top_k(logits, top_k)[0][..., -1:]
        logits = ops.where(logits < least, -math.inf, logits)
    if top_p is not None:
        # Descending; a code stays if those before it have less than the share, as the first always does.
        weights = _weights(logits)
        ordered = -ops.sort(-weights, axis=-1)
        sums = ops.cumsum(ordered, axis=-1)
        stays = sums - ordered < top_p * sums[..., -1:]
        least = ops.min(ops.where(stays, ordered, 1.0), axis=-1, keepdims=True)
        logits = ops.where(weights < least, -math.inf, logits)
    return logits


def _weights(logits: Tensor) -> Tensor:
    """What probabilities are in proportion to, 1 for the likeliest. Keras's softmax warns where there is one code."""
    logits = ops.convert_to_tensor(logits)
    return ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))


def uniforms(bits: Tensor) -> Tensor:
    """Float32 numbers between 0 and 1, neither of them included, from integers of `RANDOM_BITS` random bits."""
    return (ops.cast(bits, "float32") + 0.5) / 2**RANDOM_BITS


def draw(logits: Tensor, bits: Tensor) -> Tensor:
    """Codes drawn by the inverse of their distribution, by random bits: `[..., K]`, `[...]` -> int32 `[...]`.

    The bits are given, so that they are the same on every backend and in a loop that is compiled.
    """
    sums = ops.cumsum(_weights(logits), axis=-1)
    # A code is passed whose sum is at most the target. Where a code's share is 0 its sum is the one before.
    passed = sums <= ops.expand_dims(uniforms(bits), -1) * sums[..., -1:]
    return ops.sum(ops.cast(passed, "int32"), axis=-1)
