"""Pure functions that draw codes from logits."""

import math
from typing import Any

from keras import ops

from keras_vqvae import validation
from keras_vqvae.types import Tensor

RANDOM_BITS = 22
"""Number of random bits of a uniform number. With 24, `number * sum` in float32 could round to `sum`."""


def check(num_embeddings: int, temperature: float, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    """Checks the arguments of `restrict` and returns them."""
    if top_p is not None and not validation.fraction("top_p", top_p):
        raise ValueError(f"`top_p` must be above 0, or None for no limit. Received: top_p={top_p!r}")
    return {
        "temperature": validation.positive("temperature", temperature),
        "top_k": None if top_k is None else validation.positive_int("top_k", top_k, num_embeddings),
        "top_p": None if top_p is None else float(top_p),
    }


def guide(logits: Tensor, guidance_scale: Tensor | None) -> Tensor:
    """Classifier-free guidance: combines logits `[2 n, ..., K]` to `[n, ..., K]`.

    The first half are logits `c` with a class, the second half logits `u` without. The result is
    `u + guidance_scale * (c - u)`: with 0 the class has no effect, with 1 the result is `c`, and a larger scale
    strengthens the class. `None` returns the logits unchanged.
    """
    if guidance_scale is None:
        return logits
    conditional, unconditional = ops.split(logits, 2)
    return unconditional + guidance_scale * (conditional - unconditional)


def restrict(
    logits: Tensor, temperature: Tensor = 1.0, top_k: int | None = None, top_p: Tensor | None = None
) -> Tensor:
    """Divides logits `[..., K]` by a temperature, and sets all but the most likely codes to minus infinity.

    `top_k` keeps this number of the most likely codes. Of these, `top_p` keeps the smallest set whose total probability
    is at least `top_p`.
    """
    logits = ops.convert_to_tensor(logits) / temperature
    if top_k is not None:
        least = ops.top_k(logits, top_k)[0][..., -1:]
        logits = ops.where(logits < least, -math.inf, logits)
    if top_p is not None:
        # In descending order, a code is kept if the codes before it have a total below `top_p`. The first always is.
        weights = _weights(logits)
        ordered = -ops.sort(-weights, axis=-1)
        sums = ops.cumsum(ordered, axis=-1)
        kept = sums - ordered < top_p * sums[..., -1:]
        least = ops.min(ops.where(kept, ordered, 1.0), axis=-1, keepdims=True)
        logits = ops.where(weights < least, -math.inf, logits)
    return logits


def _weights(logits: Tensor) -> Tensor:
    """Unnormalized probabilities, 1 for the most likely code. Keras's softmax warns if there is only one code."""
    logits = ops.convert_to_tensor(logits)
    return ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))


def uniforms(bits: Tensor) -> Tensor:
    """Float32 numbers strictly between 0 and 1, from integers of `RANDOM_BITS` random bits."""
    return (ops.cast(bits, "float32") + 0.5) / 2**RANDOM_BITS


def draw(logits: Tensor, bits: Tensor) -> Tensor:
    """Draws int32 codes `[...]` from logits `[..., K]` by inverting the cumulative distribution.

    The random `bits` `[...]` are an argument, so that draws are equal on every backend and in compiled loops.
    """
    sums = ops.cumsum(_weights(logits), axis=-1)
    # The drawn code is the first one whose sum exceeds the uniform number times the total. Codes of probability 0 are
    # never drawn, because their sum equals the one before.
    passed = sums <= ops.expand_dims(uniforms(bits), -1) * sums[..., -1:]
    return ops.sum(ops.cast(passed, "int32"), axis=-1)
