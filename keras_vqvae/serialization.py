"""Configurations with objects, such as regularizers: serialized for a file, or as live objects for a copy."""

import contextvars
import types
import warnings
from typing import Any

import keras

_live = contextvars.ContextVar("live", default=False)


def saved(value: Any) -> Any:
    """Returns Keras's serialization of an object, or the object itself within `live_config`.

    Warns if the object's class or function is not registered, because loading the file then needs `custom_objects`.
    """
    if value is None or _live.get():
        return value
    kind = value if isinstance(value, types.FunctionType) else type(value)
    # Keras itself warns about lambda functions.
    if kind.__name__ != "<lambda>" and not _is_registered(kind):
        name = kind.__name__
        warnings.warn(
            f"`{name}` is not registered, so a file with it only loads with `custom_objects={{'{name}': {name}}}`. "
            "Put `@keras.saving.register_keras_serializable(package='my_package')` above its definition.",
            stacklevel=3,
        )
    return keras.saving.serialize_keras_object(value)


def _is_registered(kind: Any) -> bool:
    if kind.__module__.partition(".")[0] == "keras":
        return True
    return keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is not None


def live_config(layer: keras.Layer) -> dict[str, Any]:
    """Returns a layer's configuration with live objects, so that a copy does not need to serialize them."""
    token = _live.set(True)
    try:
        return layer.get_config()
    finally:
        _live.reset(token)


def fresh_initializer(initializer: Any, number: int) -> Any:
    """Returns an initializer for copy `number` of a layer, with `number` added to its seed if it takes one."""
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    # `()` stands for an initializer that takes no seed.
    seed = config.get("seed", ())
    if seed is None or isinstance(seed, int):
        return type(initializer).from_config({**config, "seed": None if seed is None else seed + number})
    return initializer
