"""Checks of the codes, labels and sample weights that a prior receives."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.types import Data, Tensor


def holds_classes(labels: Data) -> bool:
    """Whether labels hold classes: they are neither `None` nor of shape `[samples, 0]`."""
    return labels is not None and tuple(getattr(labels, "shape", ())[1:]) != (0,)


def described(name: str, value: Any) -> str:
    """Describes an argument in an error message: its shape if it is an array, or its value."""
    return f"{name} of shape {tuple(value.shape)}" if getattr(value, "shape", ()) else f"{name}={value!r}"


class CodesInputs(keras.Model):
    """Base class of the priors that checks their inputs. Its subclasses have the arguments of `Prior` as attributes."""

    def _check_codes(self, codes: Tensor, masked: bool = False, name: str = "codes", lowest: int = 0) -> Tensor:
        """Returns int32 codes `[samples, *shape]` of at least `lowest`. `masked` also allows `num_embeddings`."""
        codes = validation.code_indices(name, codes, self.num_embeddings + masked, lowest)
        if not validation.shapes_fit(tuple(codes.shape), (None, *self.shape)):
            shape = ", ".join(map(str, ("samples", *self.shape)))
            raise ValueError(f"`{name}` must have shape [{shape}]. Received: {name} of shape {tuple(codes.shape)}")
        if masked:
            return codes
        return validation.within_codebooks(name, codes, self.codebook_sizes, None, self.index_shape)

    def _check_known(self, known: Tensor | None, num_samples: int) -> np.ndarray:
        """Returns int32 codes `[num_samples, L]`, with -1 for each code to draw: all of them if `known` is `None`."""
        if known is None:
            return np.full((num_samples, self.length), -1, "int32")
        known = ops.convert_to_numpy(self._check_codes(known, name="known", lowest=-1))
        if len(known) != num_samples:
            raise ValueError(
                "`known` must have codes for `num_samples` samples, with -1 for each code to draw. "
                f"Received: known of shape {known.shape}, num_samples={num_samples}"
            )
        return known.reshape(num_samples, self.length)

    def _check_labels(self, labels: Tensor | None, samples: Tensor, or_none: bool = False) -> Tensor:
        """Returns int32 classes `[samples]`. `or_none` allows `num_classes`, which means "no class"."""
        none = self.num_classes or 0
        if not holds_classes(labels):
            return ops.full((samples,), none, dtype="int32")
        if not none:
            raise ValueError(
                "`labels` need a prior that was made with `num_classes`. "
                f"Received: {described('labels', labels)}, num_classes=None"
            )
        labels = validation.code_indices("labels", labels, none + or_none)
        if len(labels.shape) == 0:
            labels = ops.broadcast_to(labels, (samples,))
        if len(labels.shape) != 1 or (isinstance(samples, int) and labels.shape[0] not in (None, samples)):
            raise ValueError(
                "`labels` must have one class for each sample, or be one class for all. "
                f"Received: labels of shape {tuple(labels.shape)} for {samples} samples"
            )
        return labels

    def _require_labels(self, name: str, labels: Data) -> None:
        """Requires labels if the prior is never trained without them."""
        if self.num_classes and not self.label_dropout and not holds_classes(labels):
            raise ValueError(
                f"`{name}` must be given: with `label_dropout=0`, the prior is never trained without classes. "
                f"Received: {name}=None"
            )

    def _check_sample_weight(self, sample_weight: Tensor, codes: Tensor) -> Tensor:
        """Returns float32 weights of the shape of `codes`."""
        weights = ops.cast(sample_weight, "float32")
        sizes = zip(weights.shape, codes.shape, strict=False)
        if len(weights.shape) > len(codes.shape) or any(a not in (None, 1, b) and b is not None for a, b in sizes):
            raise ValueError(
                "`sample_weight` must have the shape [samples], or the first axes of the shape of the codes. "
                f"Received: sample_weight of shape {tuple(weights.shape)}, codes of shape {tuple(codes.shape)}"
            )
        axes = len(codes.shape) - len(weights.shape)
        return ops.broadcast_to(ops.reshape(weights, (*ops.shape(weights), *(1,) * axes)), ops.shape(codes))
