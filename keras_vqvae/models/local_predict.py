"""`predict` in a single process, without the others of `torch.distributed`."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vqvae.backend import backend
from keras_vqvae.types import Data


def predict(model: keras.Model, x: Data, **keywords: Any) -> Any:
    """Returns `model.predict(x, **keywords)`, computed in this process only."""
    with backend.local_predict(model):
        return model.predict(x, **keywords)


def predict_in_equal_batches(
    model: keras.Model,
    samples: int,
    batch_of: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    batch_size: int,
    verbose: str | int,
) -> Any:
    """Returns the outputs of `predict` in equal batches of at most `batch_size`, so that it compiles one program.

    Args:
        model: The model.
        samples: Number of samples.
        batch_of: A function from the indices of samples to their batch. The last batch is padded with the first
            samples.
        batch_size: Largest size of a batch.
        verbose: As in `predict`.
    """
    steps = -(-samples // batch_size)
    size = -(-samples // steps)
    batches = ((batch_of(np.arange(start, start + size) % samples),) for start in range(0, samples, size))
    if steps == 1:
        # Without a generator: on TensorFlow, `predict` leaks about 20 kB for each generator.
        return predict(model, *next(batches), batch_size=size, verbose=verbose)
    return predict(model, batches, steps=steps, verbose=verbose)[:samples]


def predict_on_batch(model: keras.Model, x: Any) -> Any:
    """Returns `model.predict_on_batch(x)`, computed in this process only."""
    with backend.local_predict(model):
        return model.predict_on_batch(x)
