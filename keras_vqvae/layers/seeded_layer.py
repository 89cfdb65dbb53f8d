"""Layers whose random state is saved, and whose errors name the weight that could not be created."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend


class SeededLayer(keras.Layer):
    """Creates `seed_generator` from the layer's `seed`, if it has one, and saves its state."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        if hasattr(self, "seed"):
            # Created in `build`, so that its path contains the layer's name, which Orbax checkpoints rely on.
            self.seed_generator = backend.seed_generator(self.seed, "seed_generator")

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        try:
            return super().add_weight(*args, name=name, **kwargs)
        except ValueError as error:
            # For example, if the weight cannot be sharded by its layout.
            raise ValueError(f"The weight `{name}` of `{self.name}` could not be created: {error}") from error

    def add_float32(
        self,
        name: str,
        shape: tuple[int | None, ...],
        initializer: Any = "zeros",
        trainable: bool = False,
        **kwargs: Any,
    ) -> keras.Variable:
        """Adds a weight that is float32 under every dtype policy. In bfloat16, small updates would be lost."""
        return self.add_weight(
            shape, initializer, dtype="float32", autocast=False, trainable=trainable, name=name, **kwargs
        )

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Keras does not save the random state. Without it, training that resumes would draw other numbers.
        if hasattr(self, "seed_generator"):
            store["seed"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        # `keys` is the only way to list the entries of a Keras store.
        names = set(store.keys())
        super().load_own_variables({name: _loaded(store[name]) for name in names - {"seed"}})
        if "seed" in names:
            self.seed_generator.state.assign(np.asarray(store["seed"]))


def _loaded(value: Any) -> Any:
    """Returns a saved value, with counts clipped to the largest integer that this backend's counters can hold."""
    return np.minimum(value, np.iinfo(backend.COUNTER).max) if value.dtype == "int64" else value
