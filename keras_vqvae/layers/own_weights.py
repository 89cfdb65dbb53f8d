"""What Keras leaves out about a layer's weights."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae.backend import backend


class OwnWeights(keras.Layer):
    """Makes `seed_generator` of the layer's `seed`, if it has one, and saves it; names a weight that cannot be made."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        if hasattr(self, "seed"):
            # Here its path says whose it is, as a weight's does: Orbax's checkpoints go by paths.
            self.seed_generator = keras.random.SeedGenerator(self.seed, name="seed_generator")

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        try:
            return super().add_weight(*args, name=name, **kwargs)
        except ValueError as error:
            # Such as one that does not divide over as many devices as its layout says.
            raise ValueError(f"The weight `{name}` of `{self.name}` cannot be made: {error}") from error

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Keras leaves it out, and training resumed from a checkpoint would draw other numbers.
        if hasattr(self, "seed_generator"):
            store["seed"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        # Asked for its keys, because a store of Keras's has no other way to tell them.
        names = set(store.keys())
        super().load_own_variables({name: _loaded(store[name]) for name in names - {"seed"}})
        if "seed" in names:
            self.seed_generator.state.assign(np.asarray(store["seed"]))


def _loaded(value: Any) -> Any:
    """A saved variable. A count from another backend stops at the largest number that this one has."""
    return np.minimum(value, np.iinfo(backend.COUNTER).max) if value.dtype == "int64" else value
