"""Refuses targets that a loss would broadcast against the predictions, such as labels instead of images."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
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
"""Keras losses whose targets are classes, of another shape than the predictions. They check shapes themselves."""

AT_RANDOM = ("Rand", "AugMix", "CutMix", "MixUp")
"""Prefixes of the names of Keras's random augmentation layers."""


def check_targets(loss: Any, x: Data, y: Data, y_pred: Any) -> None:
    """Checks that the targets have the shape of `y_pred`, or another shape that `loss` supports.

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
            "`y` must be given, because the inputs, which would be the targets, have another structure than the "
            f"model's outputs. Received: y=None, x={_structure(x)}, y_pred={_structure(y_pred)}"
        )
    for each, target, prediction in _pairs(loss, x if y is None else y, y_pred):
        if _fits(each, target, prediction) or (_is_custom(each) and _fits_custom(x, target, prediction)):
            continue
        received = f"y_pred of shape {tuple(prediction.shape)}"
        if y is None:
            raise ValueError(
                "`x` must have the shape of the reconstruction if `y` is not given. Change the decoder, or pass "
                f"targets `y`. Received: x of shape {tuple(target.shape)}, {received}"
            )
        raise ValueError(
            "`y` must have the shape of the reconstruction. To train without labels, call `fit(x)`, or drop them "
            "from a data set with `ds.map(lambda x, y: x)`. For an output that is not a reconstruction, pass a dict "
            f"with a loss for each output to `compile`. Received: y of shape {tuple(target.shape)}, {received}"
        )


def targets_of(layer: keras.Layer, x: Data) -> Data:
    """Returns the inputs of a layer, to be used as targets.

    Raises:
        ValueError: If the layer augments them at random.
    """
    random = {type(each).__name__ for each in layer._flatten_layers() if type(each).__name__.startswith(AT_RANDOM)}
    if random:
        raise ValueError(
            "`y` must be given, because random layers change the inputs: without `y`, the unchanged inputs would be "
            "the targets. Or pass these layers to `VQVAE` as `preprocessing`, whose outputs are also the targets in "
            f"`fit`. Received: y=None, layers {', '.join(sorted(random))}"
        )
    return x


def aligned_targets(
    targets: Any, y_pred: Any, shapes: Sequence[tuple[int | None, ...]]
) -> list[tuple[Tensor, Tensor]] | None:
    """Returns pairs of targets and outputs of the same shape, or `None` if `y_pred` are not a decoder's outputs.

    Args:
        targets: A tensor or a structure of tensors.
        y_pred: The predictions, in the same structure.
        shapes: Shapes of the decoder's outputs.
    """
    targets, y_pred = keras.tree.flatten(targets), keras.tree.flatten(y_pred)
    if not len(targets) == len(y_pred) == len(shapes):
        return None
    for target, prediction, shape in zip(targets, y_pred, shapes, strict=True):
        target_shape, predicted = tuple(target.shape), tuple(prediction.shape)
        if not (validation.shapes_fit(predicted, shape) and validation.target_fits(target_shape, predicted)):
            return None
    return [(ops.reshape(target, ops.shape(each)), each) for target, each in zip(targets, y_pred, strict=True)]


def _structure(tensors: Any) -> Any:
    # Losses do not distinguish tuples and lists.
    return keras.tree.map_structure(lambda _: "tensor", keras.tree.lists_to_tuples(tensors))


def _pairs(loss: Any, target: Any, prediction: Any) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yields each loss with its target and its prediction. For structures that differ, Keras raises an error later."""
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
    """Whether a loss of Keras, or another elementwise loss, supports this target."""
    shape = tuple(prediction.shape)
    if loss in ("ce", "crossentropy"):
        # If the last axis has size 1, Keras uses the binary loss, which is elementwise. Otherwise it uses a categorical
        # one, which checks shapes.
        return shape[-1] != 1 or validation.target_fits(tuple(target.shape), shape)
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name in OF_CLASSES or validation.target_fits(tuple(target.shape), shape)


def _is_custom(loss: Any) -> bool:
    module = getattr(loss, "__module__", "") if hasattr(loss, "__name__") else type(loss).__module__
    return not isinstance(loss, str) and not str(module).startswith("keras.")


def _fits_custom(x: Data, target: Tensor, prediction: Tensor) -> bool:
    """Whether a custom loss may support this target: it has the shape of `x`, holds classes, or cannot be broadcast."""
    shape, predicted = tuple(target.shape), tuple(prediction.shape)
    if not keras.tree.is_nested(x) and shape == tuple(x.shape):
        return True
    if "int" in keras.backend.standardize_dtype(target.dtype) and shape in (predicted[:-1], (*predicted[:-1], 1)):
        return True
    sizes = zip(reversed(shape), reversed(predicted), strict=False)
    return not all(m == n or None in (m, n) or 1 in (m, n) for m, n in sizes)
