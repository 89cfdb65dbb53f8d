"""`predict` by one process alone."""

from typing import Any

import keras

from keras_vqvae.backend import backend
from keras_vqvae.types import Data


def predict(model: keras.Model, x: Data, **keywords: Any) -> Any:
    """Returns `model.predict(x, **keywords)`, computed by this process without waiting for others."""
    with backend.local_predict(model):
        return model.predict(x, **keywords)


def predict_on_batch(model: keras.Model, x: Any) -> Any:
    """Returns `model.predict_on_batch(x)`, computed by this process without waiting for others."""
    with backend.local_predict(model):
        return model.predict_on_batch(x)
