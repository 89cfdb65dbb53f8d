"""Refuses targets that a loss would broadcast against the predictions, such as the labels of images."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae.types import Data, Tensor

OF_CLASSES = (
    "SparseCategoricalCrossentropy",
    "sparse_categorical_crossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "categorical_generalized_cross_entropy",
    "CTC",
    "ctc",
    "Circle",
    "circle",
)
"""Keras losses whose targets are integers, in another shape than the predictions. They check the shapes themselves."""

AT_RANDOM = ("Rand", "AugMix", "CutMix", "MixUp")
"""The names of Keras's layers for augmentation begin so."""


def check_targets(loss: Any, x: Data, y: Data, y_pred: Any) -> None:
    """Checks that the targets are `y_pred`'s shape, or another one that `loss` is made for.

    Args:
        loss: The `loss` of `compile`, or `None`.
        x: The inputs, which are the targets if `y` is `None`.
        y: The targets, or `None`.
        y_pred: The predictions, a tensor or a structure of tensors.

    Raises:
        ValueError: If a target would be broadcast, or if `y` is missing.
    """
    if loss is None:
        return
    if y is None and _structure(x) != _structure(y_pred):
        raise ValueError(
            "`y` must be given if the model's inputs and outputs have different structures: an input cannot be the "
            f"target of each output. Received: y=None, x={_structure(x)}, y_pred={_structure(y_pred)}"
        )
    for each, target, prediction in _pairs(loss, x if y is None else y, y_pred):
        if _fits(each, target, prediction) or (_is_custom(each) and _fits_custom(x, target, prediction)):
            continue
        received = f"y_pred of shape {tuple(prediction.shape)}"
        if y is None:
            raise ValueError(
                "`x` must have the shape of the reconstruction if there is no `y`. "
                f"Received: x of shape {tuple(target.shape)}, {received}"
            )
        raise ValueError(
            "`y` must have the shape of the reconstruction. To leave labels out, call `fit(x)`, or map a data set of "
            f"(x, y) with `ds.map(lambda x, y: x)`. Received: y of shape {tuple(target.shape)}, {received}"
        )


def targets_of(layer: keras.Layer, x: Data) -> Data:
    """The inputs of a layer, as the targets of reconstructions of them.

    Raises:
        ValueError: If the layer itself changes them at random.
    """
    random = {type(each).__name__ for each in layer._flatten_layers() if type(each).__name__.startswith(AT_RANDOM)}
    if random:
        raise ValueError(
            "`y` must be given where random layers change the inputs: without it, the inputs would be the targets. In "
            f"`fit`, what `preprocessing` of `VQVAE` returns is also the target. Received: y=None, {sorted(random)}"
        )
    return x


def aligned_targets(
    targets: Any, y_pred: Any, shapes: Sequence[tuple[int | None, ...]]
) -> list[tuple[Tensor, Tensor]] | None:
    """Returns each output of a decoder with its target in the same shape, or `None` if these are other outputs.

    Args:
        targets: A tensor or a structure of tensors.
        y_pred: The predictions, in the same structure.
        shapes: Shapes of the decoder's outputs.
    """
    targets, y_pred = keras.tree.flatten(targets), keras.tree.flatten(y_pred)
    if not len(targets) == len(y_pred) == len(shapes):
        return None
    for target, prediction, shape in zip(targets, y_pred, shapes, strict=True):
        sizes = zip(prediction.shape, shape, strict=False)
        if len(prediction.shape) != len(shape) or any(a != b and None not in (a, b) for a, b in sizes):
            return None
        if not _same_shape(tuple(target.shape), tuple(prediction.shape)):
            return None
    return [(ops.reshape(target, ops.shape(each)), each) for target, each in zip(targets, y_pred, strict=True)]


def _structure(tensors: Any) -> Any:
    # A tuple and a list of tensors are the same to a loss.
    return keras.tree.map_structure(lambda _: "tensor", keras.tree.lists_to_tuples(tensors))


def _pairs(loss: Any, target: Any, prediction: Any) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yields each loss with its target and its prediction. What does not match is left to Keras, which says so."""
    if isinstance(prediction, dict):
        keys = sorted(prediction)
        if isinstance(loss, list | tuple):
            loss = dict(zip(keys, loss, strict=False))
        for key in keys:
            if isinstance(target, dict) and key in target:
                yield from _pairs(loss.get(key) if isinstance(loss, dict) else loss, target[key], prediction[key])
    elif isinstance(prediction, list | tuple):
        losses = loss if isinstance(loss, list | tuple) else [loss] * len(prediction)
        if isinstance(target, list | tuple):
            for parts in zip(losses, target, prediction, strict=False):
                yield from _pairs(*parts)
    elif not keras.tree.is_nested(target):
        for each in keras.tree.flatten(loss):
            if each is not None:
                yield each, target, prediction


def _fits(loss: Any, target: Tensor, prediction: Tensor) -> bool:
    """Whether a loss of Keras, or one that is elementwise like most of them, takes such a target."""
    shape = tuple(prediction.shape)
    if loss in ("ce", "crossentropy"):
        # Keras makes it binary, thus elementwise, for a last axis of size 1, and else categorical, which checks shapes.
        return shape[-1] != 1 or _same_shape(tuple(target.shape), shape)
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name in OF_CLASSES or _same_shape(tuple(target.shape), shape)


def _same_shape(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    """Whether two shapes are equal, as far as is known, once Keras has dropped a last axis of size 1."""
    if len(a) == len(b) + 1 and a[-1] == 1:
        a = a[:-1]
    elif len(b) == len(a) + 1 and b[-1] == 1:
        b = b[:-1]
    return len(a) == len(b) and all(m == n or None in (m, n) for m, n in zip(a, b, strict=True))


def _is_custom(loss: Any) -> bool:
    module = getattr(loss, "__module__", "") if hasattr(loss, "__name__") else type(loss).__module__
    return not isinstance(loss, str) and not str(module).startswith("keras.")


def _fits_custom(x: Data, target: Tensor, prediction: Tensor) -> bool:
    """Whether a loss of the user's own may take such a target: data, integer classes, or what does not broadcast."""
    shape, predicted = tuple(target.shape), tuple(prediction.shape)
    if not keras.tree.is_nested(x) and shape == tuple(x.shape):
        return True
    if "int" in keras.backend.standardize_dtype(target.dtype) and shape in (predicted[:-1], (*predicted[:-1], 1)):
        return True
    sizes = zip(reversed(shape), reversed(predicted), strict=False)
    return not all(m == n or None in (m, n) or 1 in (m, n) for m, n in sizes)
