"""What the wrappers of quantizers share."""

import dataclasses
import inspect
import math
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.quantizer_outputs import QuantizerOutputs, once
from keras_vqvae.types import Tensor

MOST_COPIES = 1024
"""Each copy is a layer; a larger number is a mistake, and would take hours."""


@dataclasses.dataclass(frozen=True)
class Template:
    """Hides from Keras the quantizer that a wrapper makes copies of.

    As a layer of a model it would count as one that was never built, which `model.quantize("int8")` does not take.
    """

    quantizer: Quantizer


def template(quantizer: object) -> Template:
    """Returns the quantizer that a wrapper makes copies of, given it or what Keras saved of it."""
    if isinstance(quantizer, dict):
        quantizer = keras.saving.deserialize_keras_object(quantizer)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"`quantizer` must be a Quantizer. Received: quantizer={quantizer!r}")
    if quantizer.of_grids:
        raise ValueError(
            "`quantizer` must quantize each vector by itself, and no grids: put what wraps it inside. "
            f"Received: quantizer={quantizer!r}"
        )
    if quantizer.built:
        raise ValueError(
            "`quantizer` must not be built yet: a wrapper works with copies, and what this one has learned would be "
            f"lost. Received: quantizer={quantizer.name}, built=True"
        )
    return Template(quantizer)


def copy(quantizer: Quantizer, number: int, trainable: bool = True) -> Quantizer:
    """A new quantizer of the same configuration, with a seed of its own where the seed is fixed."""
    config = serialization.live_config(quantizer)
    _check_config(quantizer, config)
    # What is frozen from the start has no layers yet to hand it on to.
    config["trainable"] = trainable and quantizer.trainable
    config["name"] = f"{quantizer.name}_{number}"
    if config.get("seed") is not None:
        config["seed"] = (config["seed"] + number) % validation.LARGEST_INT
    if config.get("embeddings_initializer") is not None:
        # Equal draws in two levels would be equal codes.
        config["embeddings_initializer"] = serialization.fresh_initializer(config["embeddings_initializer"], number)
    if isinstance(config.get("quantizer"), Quantizer):
        config["quantizer"] = copy(config["quantizer"], number)
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
    """So many copies of a wrapper's template, or as many times the same one."""
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
    """What float32 vectors `[N, D]` become in inference, whatever the quantizer's dtype: `[N, D]`."""
    rows = vectors.shape[0]
    with backend.full_precision(vectors):
        return quantizer.quantize_vectors(vectors, ops.ones((rows,), dtype="bool"), False, rows).codes


def dropout_share(dropout: bool | float) -> float:
    """Returns the share of the samples that use fewer quantizers, given it or whether all do."""
    return validation.share("dropout", float(dropout) if isinstance(dropout, bool) else dropout)


def draw_used(wrapper: Quantizer, vectors: Tensor, samples: Tensor, training: bool) -> list[Tensor | None]:
    """Which vectors use each of a wrapper's quantizers: booleans `[N]`, all of a sample the same, or `None` for all.

    A share of the samples uses the first of them, from 1 to all, each number as likely; the others use all.
    """
    most, seed = len(wrapper.quantizers), wrapper.seed_generator
    if not (training and wrapper.trainable and wrapper.dropout):
        return [None] * most
    numbers = keras.random.randint((samples,), 1, most + 1, seed=seed)
    if wrapper.dropout < 1:
        drawn = keras.random.uniform((samples,), dtype="float32", seed=seed) < wrapper.dropout
        numbers = ops.where(drawn, numbers, most)
    at_least_one = max(samples, 1) if isinstance(samples, int) else ops.maximum(samples, 1)
    numbers = ops.repeat(numbers, ops.shape(vectors)[0] // at_least_one)
    return [i < numbers for i in range(most)]


def quantize_used(
    quantizer: Quantizer,
    vectors: Tensor,
    kept: Tensor,
    used: Tensor | None,
    training: bool,
    samples: Tensor,
    **options: Tensor,
) -> QuantizerOutputs:
    """Calls `quantizer.quantize_vectors`. Vectors that do not use the quantizer get the code 0 and the index -1."""
    if used is None:
        return quantizer.quantize_vectors(vectors, kept, training, samples, **options)
    outputs = quantizer.quantize_vectors(vectors, ops.logical_and(kept, used), training, samples, **options)
    row = ops.expand_dims(used, -1)
    return dataclasses.replace(
        outputs,
        quantized=once(lambda: ops.where(row, outputs.quantized(), 0.0)),
        codes=ops.where(row, outputs.codes, 0.0),
        indices=ops.where(ops.reshape(used, (-1,) + (1,) * len(quantizer.index_shape)), outputs.indices, -1),
    )


def lookup_used(quantizer: Quantizer, indices: Tensor) -> Tensor:
    """The codes `[N, D]` of indices `[N, *index_shape]`; none, 0, where the first is -1."""
    used = ops.reshape(indices, (-1, math.prod(quantizer.index_shape)))[:, :1] >= 0
    return ops.where(used, quantizer.lookup(ops.maximum(indices, quantizer.lowest_index)), 0.0)
