"""The objects that a layer was made with, such as its regularizers: as Keras saves them, or as they are for a copy."""

import contextvars
import types
import warnings
from typing import Any

import keras

_live = contextvars.ContextVar("live", default=False)


def saved(value: Any) -> Any:
    """What Keras saves of an object in a configuration; the object itself within `live_config`.

    Warns of a class or function that a file cannot be loaded without.
    """
    if value is None or _live.get():
        return value
    kind = value if isinstance(value, types.FunctionType) else type(value)
    # Keras warns of functions without a name by itself.
    if kind.__name__ != "<lambda>" and not _is_registered(kind):
        name = kind.__name__
        warnings.warn(
            f"`{name}` is not registered: a file that holds it loads only with `custom_objects={{'{name}': {name}}}`. "
            "Put `@keras.saving.register_keras_serializable(package='my_package')` above its definition.",
            stacklevel=3,
        )
    return keras.saving.serialize_keras_object(value)


def _is_registered(kind: Any) -> bool:
    if kind.__module__.partition(".")[0] == "keras":
        return True
    return keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is not None


def live_config(layer: keras.Layer) -> dict[str, Any]:
    """The layer's configuration with objects as they are, so that a copy needs none of them to be saved and found."""
    token = _live.set(True)
    try:
        return layer.get_config()
    finally:
        _live.reset(token)


def fresh_initializer(initializer: Any, number: int) -> Any:
    """An initializer that draws other codes, for copy `number` of a layer; the same one if it has no seed to change."""
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    seed = config.get("seed", ())
    if seed is None or isinstance(seed, int):
        return type(initializer).from_config({**config, "seed": None if seed is None else seed + number})
    return initializer
