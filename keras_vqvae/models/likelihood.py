"""Log-probabilities of given codes under a prior, in batches."""

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.models.local_predict import predict_in_equal_batches
from keras_vqvae.types import Tensor


class Scorer(keras.Model):
    """A model whose `predict` returns the log-probabilities of codes `[batch, *shape]` under a prior."""

    def __init__(self, prior: keras.Model):
        super().__init__(dtype=prior.dtype_policy, name="scorer")
        self.prior = prior

    def call(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        given, codes, labels = inputs
        logits = self.prior((given, labels) if self.prior.num_classes else given, training=False)
        return -ops.sparse_categorical_crossentropy(codes, logits, from_logits=True)


def check(prior: keras.Model, codes: Tensor, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns int32 codes `[n, *shape]` and classes `[n]`, checked for a prior."""
    codes = ops.convert_to_numpy(prior._check_codes(codes))
    prior._require_labels("labels", labels)
    return codes, ops.convert_to_numpy(prior._check_labels(labels, len(codes)))


def log_probabilities(
    prior: keras.Model, given: np.ndarray, codes: np.ndarray, labels: np.ndarray, batch_size: int, verbose: str | int
) -> np.ndarray:
    """Returns float32 log-probabilities of `codes` `[n, *shape]` under the logits that a prior returns for `given`."""
    batch_size = validation.positive_int("batch_size", batch_size)
    if not len(codes):
        return np.zeros(codes.shape, "float32")
    if prior._parts.scorer is None:
        prior._parts.scorer = Scorer(prior)
    return predict_in_equal_batches(
        prior._parts.scorer, len(codes), lambda rows: (given[rows], codes[rows], labels[rows]), batch_size, verbose
    )
