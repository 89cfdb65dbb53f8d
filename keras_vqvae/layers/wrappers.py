"""Functions that the wrappers of quantizers share."""

import dataclasses
import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.types import Tensor

MAX_COPIES = 1024
"""Each copy is a layer; a larger number is a mistake, and would take hours."""


@dataclasses.dataclass(frozen=True)
class Untracked:
    """Hides from Keras the quantizer that a wrapper makes copies of.

    As a layer of a model it would count as one that was never built, which `model.quantize("int8")` does not accept.
    """

    quantizer: Quantizer


def _checked(quantizer: object) -> Quantizer:
    """Returns a quantizer that a wrapper can hold, given it or its saved configuration."""
    if isinstance(quantizer, dict):
        quantizer = keras.saving.deserialize_keras_object(quantizer)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"`quantizer` must be a Quantizer. Received: quantizer={quantizer!r}")
    if quantizer.quantizes_grids:
        raise ValueError(
            f"`{type(quantizer).__name__}` quantizes whole grids, so it can only be the outermost wrapper. Wrap its "
            f"inner quantizer instead. Received: quantizer={quantizer!r}"
        )
    return quantizer


def template(quantizer: object) -> Untracked:
    """Returns the quantizer that a wrapper makes copies of, given it or its saved configuration."""
    quantizer = _checked(quantizer)
    built = [each for each in quantizer._flatten_layers() if isinstance(each, Quantizer) and each.built]
    if built:
        raise ValueError(
            "`quantizer` must not be built yet: a wrapper works with copies, and what this one has learned would be "
            f"lost. Received: quantizer={built[0].name}, built=True"
        )
    return Untracked(quantizer)


def stages(wrapper: Quantizer, quantizers: Sequence[object]) -> list[Quantizer]:
    """Returns the quantizers of a list, given them or their saved configurations, as the stages of a residual."""
    if not 1 <= len(quantizers) <= MAX_COPIES:
        raise ValueError(f"`quantizer` must have 1 to {MAX_COPIES} stages. Received: quantizer={quantizers!r}")
    made = [_checked(quantizer) for quantizer in quantizers]
    if len({id(stage) for stage in made}) < len(made):
        raise ValueError(
            "`quantizer` must not have a stage twice. For one codebook of all stages give it once, with "
            f"`shared_codebook=True`. Received: quantizer={quantizers!r}"
        )
    if any(stage.has_fixed_codes for stage in made):
        raise ValueError(
            "`quantizer` must be one quantizer, with `num_quantizers`, where codes are fixed: each stage gets finer "
            f"ones than the stage before. Received: quantizer={quantizers!r}"
        )
    if len({stage.index_shape for stage in made}) > 1:
        raise ValueError(
            "`quantizer` must have stages whose indices have one shape. "
            f"Received: stages with indices of shape {[stage.index_shape for stage in made]} a vector"
        )
    for stage in made:
        # What is frozen from the start has no layers yet to hand it on to.
        stage.trainable = stage.trainable and wrapper.trainable
    return made


def keeps_codes(wrapper: Quantizer, quantizer: Quantizer) -> bool:
    """Whether `adapt` leaves a quantizer as it is: one that is frozen on its own, not as a part of the wrapper."""
    return wrapper.trainable and not quantizer.trainable


def codebook_sizes(quantizers: Iterable[Quantizer]) -> tuple[int, ...]:
    """The number of codes of each codebook of a wrapper, given the quantizers that it holds."""
    return tuple(size for quantizer in quantizers for size in quantizer.codebook_sizes)


def build_once(quantizers: Iterable[Quantizer], dim: int) -> None:
    """Builds quantizers for vectors of a size; one that is built already must be of that size."""
    for quantizer in quantizers:
        if quantizer.built:
            quantizer._check_input_shape((None, dim), dim=quantizer._dim)
        else:
            quantizer.build((None, dim))


def copy(quantizer: Quantizer, number: int, trainable: bool = True) -> Quantizer:
    """A new quantizer of the same configuration, with a seed of its own where the seed is fixed."""
    config = serialization.live_config(quantizer)
    _check_config(quantizer, config)
    # What is frozen from the start has no layers yet to hand it on to.
    config["trainable"] = trainable and quantizer.trainable
    config["name"] = f"{quantizer.name}_{number}"
    if config.get("seed") is not None:
        config["seed"] = (config["seed"] + number) % validation.INT32_MAX
    if config.get("embeddings_initializer") is not None:
        # Equal draws in two stages would be equal codes.
        config["embeddings_initializer"] = serialization.fresh_initializer(config["embeddings_initializer"], number)
    inner = config.get("quantizer")
    if isinstance(inner, Quantizer):
        config["quantizer"] = copy(inner, number)
    elif isinstance(inner, list):
        config["quantizer"] = [copy(stage, number) for stage in inner]
    return type(quantizer).from_config(config)


def _check_config(quantizer: Quantizer, config: dict[str, Any]) -> None:
    """Raises where a copy by `config` would not have the arguments that the quantizer was made with."""
    kind = type(quantizer)
    if kind.from_config.__func__ is not keras.Layer.from_config.__func__:
        # It says itself what it makes of a configuration.
        return
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    left_out, unknown = sorted(named - config.keys()), sorted(config.keys() - named)
    if left_out:
        wrong = f"`get_config` does not return {left_out}, which `__init__` takes"
    elif unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters):
        wrong = f"`__init__` does not take {unknown}, as it would by `**kwargs`"
    else:
        return
    raise ValueError(
        "`quantizer` must be made anew by its configuration, because a wrapper works with copies of it. "
        f"In `{kind.__name__}`, {wrong}. Received: quantizer={quantizer!r}"
    )


def copies(wrapper: Quantizer, number: int, shared: bool = False) -> list[Quantizer]:
    """Returns `number` copies of the wrapper's template, or one copy repeated `number` times if `shared`."""
    made = [copy(wrapper.template.quantizer, i, wrapper.trainable) for i in range(1 if shared else number)]
    return made * number if shared else made


def check_refines(quantizer: Quantizer) -> None:
    """Raises if a residual of quantizers like this one would not get smaller from stage to stage."""
    if not quantizer.refines:
        raise ValueError(
            "Codes of `distance='cosine'` have length 1, so they cannot quantize what the codes before them leave. Use "
            "`distance='direction'`, which also compares directions and returns the codes as they are, or 'euclidean'. "
            "Received: distance='cosine'"
        )


def nearest(quantizer: Quantizer, vectors: Tensor) -> Tensor:
    """Quantizes float32 vectors `[N, D]` as in inference, in float32 whatever the quantizer's dtype: `[N, D]`."""
    rows = vectors.shape[0]
    with backend.full_precision(vectors):
        return quantizer.quantize_vectors(vectors, ops.ones((rows,), dtype="bool"), False, rows).codes


def draw_used(wrapper: Quantizer, vectors: Tensor, batch_size: Tensor, training: bool) -> list[Tensor | None]:
    """Draws which vectors use each of a wrapper's quantizers: booleans `[N]`, or `None` if all of them do.

    A fraction of the samples uses only the first quantizers, from 1 to all with equal probability.
    """
    most, seed = len(wrapper.quantizers), wrapper.seed_generator
    if not (training and wrapper.trainable and wrapper.quantizer_dropout):
        return [None] * most
    numbers = keras.random.randint((batch_size,), 1, most + 1, seed=seed)
    if wrapper.quantizer_dropout < 1:
        drawn = keras.random.uniform((batch_size,), dtype="float32", seed=seed) < wrapper.quantizer_dropout
        numbers = ops.where(drawn, numbers, most)
    at_least_one = max(batch_size, 1) if isinstance(batch_size, int) else ops.maximum(batch_size, 1)
    numbers = ops.repeat(numbers, ops.shape(vectors)[0] // at_least_one)
    return [i < numbers for i in range(most)]


def quantize_used(
    quantizer: Quantizer,
    vectors: Tensor,
    valid: Tensor,
    used: Tensor | None,
    training: bool,
    batch_size: Tensor,
    indices: Tensor | None,
) -> Record:
    """Calls `quantizer.quantize_vectors` for the vectors that use the quantizer."""
    if used is not None:
        valid = ops.logical_and(valid, used)
    return dataclasses.replace(quantizer.quantize_vectors(vectors, valid, training, batch_size, indices), used=used)


def lookup_used(quantizer: Quantizer, indices: Tensor) -> Tensor:
    """Returns the codes `[N, D]` of indices `[N, *index_shape]`, and 0 where the first index is -1."""
    used = ops.reshape(indices, (-1, math.prod(quantizer.index_shape)))[:, :1] >= 0
    return ops.where(used, quantizer.lookup(ops.maximum(indices, quantizer.min_index)), 0.0)
