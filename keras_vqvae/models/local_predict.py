"""`predict` by one process alone."""

from typing import Any

import keras

from keras_vqvae.backend import backend
from keras_vqvae.types import Data


def predict(model: keras.Model, x: Data, **keywords: Any) -> Any:
    """Returns `model.predict(x, **keywords)`, computed by this process without waiting for others."""
    with backend.local_predict(model):
        return model.predict(x, **keywords)
