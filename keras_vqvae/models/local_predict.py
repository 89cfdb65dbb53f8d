"""`predict` by one process alone."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vqvae.backend import backend
from keras_vqvae.types import Data


def predict(model: keras.Model, x: Data, **keywords: Any) -> Any:
    """Returns `model.predict(x, **keywords)`, computed by this process without waiting for others."""
    with backend.local_predict(model):
        return model.predict(x, **keywords)


def predict_in_equal_batches(
    model: keras.Model,
    samples: int,
    batch_of: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    batch_size: int,
    verbose: str | int,
) -> Any:
    """Returns the outputs of `predict` for a number of samples, in batches of one size, at most `batch_size`.

    A compiled program is for batches of one size. `batch_of(rows)` makes the batch of these samples. The last batch is
    filled up with the first samples.
    """
    steps = -(-samples // batch_size)
    size = -(-samples // steps)
    batches = ((batch_of(np.arange(start, start + size) % samples),) for start in range(0, samples, size))
    if steps == 1:
        # On TensorFlow each generator that `predict` is given leaves some 20 kB behind.
        return predict(model, *next(batches), batch_size=size, verbose=verbose)
    return predict(model, batches, steps=steps, verbose=verbose)[:samples]


def predict_on_batch(model: keras.Model, x: Any) -> Any:
    """Returns `model.predict_on_batch(x)`, computed by this process without waiting for others."""
    with backend.local_predict(model):
        return model.predict_on_batch(x)
