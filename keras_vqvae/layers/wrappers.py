"""Functions shared by the wrappers of quantizers."""

import dataclasses
import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import input_checks
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.types import Tensor

MAX_COPIES = 1024
"""Largest number of copies. Each copy is a layer, and making more would take hours."""


@dataclasses.dataclass(frozen=True)
class Untracked:
    """Hides a wrapper's template, the quantizer that it copies, from Keras.

    Keras would track the template as a layer that is never built, and `model.quantize("int8")` does not accept such
    layers.
    """

    quantizer: Quantizer


def _checked(quantizer: object) -> Quantizer:
    """Returns `quantizer`, or the quantizer of a saved configuration, if a wrapper can hold it."""
    if isinstance(quantizer, dict):
        quantizer = keras.saving.deserialize_keras_object(quantizer)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(
            "`quantizer` must be a Quantizer, such as `VectorQuantizer(num_embeddings=512)`. "
            f"Received: quantizer={validation.shown(quantizer)}"
        )
    if quantizer.quantizes_grids:
        raise ValueError(
            f"`{type(quantizer).__name__}` quantizes whole grids, so it can only be the outermost wrapper. Wrap its "
            f"inner quantizer instead. Received: quantizer={validation.shown(quantizer)}"
        )
    return quantizer


def template(quantizer: object) -> Untracked:
    """Returns the template of a wrapper, given a quantizer or its saved configuration."""
    quantizer = _checked(quantizer)
    built = [each for each in quantizer._flatten_layers() if isinstance(each, Quantizer) and each.built]
    if built:
        raise ValueError(
            "`quantizer` must not be built: a wrapper uses new copies of it, without its trained weights. Use a new "
            f"quantizer. Received: quantizer={built[0].name}, built=True"
        )
    return Untracked(quantizer)


def stages(wrapper: Quantizer, quantizers: Sequence[object]) -> list[Quantizer]:
    """Returns the stages of a residual, given a list of quantizers or of their saved configurations."""
    if not 1 <= len(quantizers) <= MAX_COPIES:
        raise ValueError(
            f"`quantizer` must be a list of 1 to {MAX_COPIES} stages. Received: quantizer with {len(quantizers)} stages"
        )
    made = [_checked(quantizer) for quantizer in quantizers]
    if len({id(stage) for stage in made}) < len(made):
        raise ValueError(
            "`quantizer` must not have a stage twice. To share one codebook between all stages, pass one quantizer "
            f"and `shared_codebook=True`. Received: quantizer={validation.shown(quantizers)}"
        )
    if any(stage.has_fixed_codes for stage in made):
        raise ValueError(
            "A list of stages cannot contain quantizers with fixed codes, because each stage needs finer codes than "
            "the one before. Pass one `quantizer` and `num_quantizers`. "
            f"Received: quantizer={validation.shown(quantizers)}"
        )
    if len({stage.index_shape for stage in made}) > 1:
        raise ValueError(
            "All stages in `quantizer` must have indices of the same shape. "
            f"Received: stages whose `index_shape` is {[stage.index_shape for stage in made]}"
        )
    for stage in made:
        # A wrapper that is made with `trainable=False` is frozen before it has layers to freeze.
        stage.trainable = stage.trainable and wrapper.trainable
    return made


def keeps_codes(wrapper: Quantizer, quantizer: Quantizer) -> bool:
    """Whether `adapt` skips a quantizer: it is frozen, and its wrapper is not."""
    return wrapper.trainable and not quantizer.trainable


def codebook_sizes(quantizers: Iterable[Quantizer]) -> tuple[int, ...]:
    """Returns the number of codes of each codebook of the given quantizers."""
    return tuple(size for quantizer in quantizers for size in quantizer.codebook_sizes)


def build_once(quantizers: Iterable[Quantizer], dim: int) -> None:
    """Builds quantizers for vectors of size `dim`. Checks the size of those that are built already."""
    for quantizer in quantizers:
        if quantizer.built:
            input_checks.last_axis(quantizer, (None, dim), dim=quantizer._dim)
        else:
            quantizer.build((None, dim))


def copy(quantizer: Quantizer, number: int, trainable: bool = True) -> Quantizer:
    """Returns copy `number` of a quantizer, with its own name and, if the quantizer has a seed, its own seed."""
    config = serialization.live_config(quantizer)
    _check_config(quantizer, config)
    # A wrapper that is made with `trainable=False` is frozen before it has layers to freeze.
    config["trainable"] = trainable and quantizer.trainable
    config["name"] = f"{quantizer.name}_{number}"
    if config.get("seed") is not None:
        config["seed"] = (config["seed"] + number) % validation.INT32_MAX
    if config.get("embeddings_initializer") is not None:
        # With the same initializer, two stages would start with equal codes.
        config["embeddings_initializer"] = serialization.fresh_initializer(config["embeddings_initializer"], number)
    inner = config.get("quantizer")
    if isinstance(inner, Quantizer):
        config["quantizer"] = copy(inner, number)
    elif isinstance(inner, list):
        config["quantizer"] = [copy(stage, number) for stage in inner]
    return type(quantizer).from_config(config)


def _check_config(quantizer: Quantizer, config: dict[str, Any]) -> None:
    """Raises an error if `config` does not contain all arguments that the quantizer was made with."""
    kind = type(quantizer)
    if kind.from_config.__func__ is not keras.Layer.from_config.__func__:
        # A class with its own `from_config` may have any configuration.
        return
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    left_out, unknown = sorted(named - config.keys()), sorted(config.keys() - named)
    if left_out:
        wrong = f"`get_config` does not return {left_out}, which `__init__` takes. Add what is missing"
    elif unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters):
        wrong = f"`__init__` does not take {unknown}. Add `**kwargs`, and pass it on to `super().__init__`"
    else:
        return
    raise ValueError(
        "`quantizer` cannot be copied from its configuration, and a wrapper needs copies of it. "
        f"In `{kind.__name__}`, {wrong}. Received: quantizer={validation.shown(quantizer)}"
    )


def copies(wrapper: Quantizer, number: int, shared: bool = False) -> list[Quantizer]:
    """Returns `number` copies of the wrapper's template, or one copy repeated `number` times if `shared`."""
    made = [copy(wrapper.template.quantizer, i, wrapper.trainable) for i in range(1 if shared else number)]
    return made * number if shared else made


def check_refines(quantizer: Quantizer) -> None:
    """Raises an error if a quantizer cannot quantize the residual of other stages."""
    if not quantizer.refines:
        raise ValueError(
            "A stage or scale after the first cannot have `distance='cosine'`: its codes have unit norm, and residuals "
            "do not. Use `distance='direction'`, which compares directions and keeps the norm of the codes, or "
            "'euclidean'. Received: distance='cosine'"
        )


def nearest(quantizer: Quantizer, vectors: Tensor) -> Tensor:
    """Returns the codes `[N, D]` of float32 vectors `[N, D]`, in float32 under every dtype policy."""
    rows = vectors.shape[0]
    with backend.full_precision(vectors):
        return quantizer.quantize_vectors(vectors, ops.ones((rows,), dtype="bool"), False, rows).codes


def draw_used(wrapper: Quantizer, vectors: Tensor, batch_size: Tensor, training: bool) -> list[Tensor | None]:
    """Draws which vectors use each quantizer of a wrapper, for quantizer dropout.

    A fraction of the samples uses only the first quantizers. Their number is drawn from 1 to all, with equal
    probability.

    Returns:
        Booleans `[N]` for each quantizer, or `None` if all vectors use it.
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
    """Calls `quantizer.quantize_vectors`. Vectors that do not use the quantizer are not valid in its record."""
    if used is not None:
        valid = ops.logical_and(valid, used)
    return dataclasses.replace(quantizer.quantize_vectors(vectors, valid, training, batch_size, indices), used=used)


def lookup_used(quantizer: Quantizer, indices: Tensor) -> Tensor:
    """Returns the codes `[N, D]` of indices `[N, *index_shape]`. The code is 0 if a vector's first index is -1."""
    used = ops.reshape(indices, (-1, math.prod(quantizer.index_shape)))[:, :1] >= 0
    return ops.where(used, quantizer.lookup(ops.maximum(indices, quantizer.min_index)), 0.0)
