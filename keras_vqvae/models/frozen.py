"""The frozen tokenizer of a model, which another model can contain without training it."""

import types
from typing import Any

import keras

from keras_vqvae.backend import backend
from keras_vqvae.layers.masks import ReplaceMasked
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.types import Tensor


class FrozenVariable(keras.Variable):
    """A read-only view of another variable that is never trainable.

    Keras stores `trainable` in the variable, so the same variable cannot be trained in one model and frozen in another.
    The other model gets this view instead.
    """

    def __init__(self, source: keras.Variable):
        # Without `super().__init__`, which would allocate a value.
        self.__dict__.update({name: value for name, value in vars(source).items() if name != "_value"})
        self.source = source
        # Without autocast: the layer that owns the source casts it by its own policy.
        self._autocast = False

    @property
    def trainable(self) -> bool:
        return False

    @property
    def value(self) -> Tensor:
        return backend.undonated(super().value)

    @property
    def _value(self) -> Tensor:
        return self.source._value

    @_value.setter
    def _value(self, value: Tensor) -> None:
        # Ignored: Keras's JAX trainer clears the values of variables during an epoch, and assigns them afterwards.
        pass

    def _direct_assign(self, value: Tensor) -> None:
        pass


@keras.saving.register_keras_serializable(package="keras_vqvae")
class FrozenTokenizer(keras.layers.Layer):
    """Maps inputs to indices with the encoder and the quantizer of another model, without training them.

    It always runs in inference mode, whatever `training` is. It has no trainable weights, changes no state and adds no
    losses. If the other model is trained, it uses the new weights.
    """

    def __init__(self, encoder: keras.Layer, quantizer: Quantizer, **kwargs: Any):
        # Inputs are not cast here: the encoder casts them by its own policy.
        super().__init__(**{**kwargs, "autocast": False})
        self.supports_masking = True
        # In a namespace, so that Keras does not track them: it would train their weights and add their losses.
        self._parts = types.SimpleNamespace(
            encoder=encoder, quantizer=quantizer, drop_masked=ReplaceMasked(-1), variables={}
        )

    # Properties, because Keras saves and loads the layers that it finds among the attributes.
    @property
    def encoder(self) -> keras.Layer:
        """The encoder, shared with the model that the tokenizer comes from."""
        return self._parts.encoder

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer, shared with the model that the tokenizer comes from."""
        return self._parts.quantizer

    @property
    def variables(self) -> list[FrozenVariable]:
        """A frozen view of each variable of the encoder and the quantizer, for trainers and exports."""
        found, known = {}, self._parts.variables
        for variable in (*self.encoder.variables, *self.quantizer.variables):
            found[id(variable)] = known[id(variable)] if id(variable) in known else FrozenVariable(variable)
        self._parts.variables = found
        return list(found.values())

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        values = [(variable.source, variable.value) for variable in self.variables]
        # The scope keeps updates and losses away from the layers. Both are dropped.
        with keras.StatelessScope(initialize_variables=False) as scope:
            for value in values:
                scope.add_update(value)
            vectors = self.encoder(inputs, training=False)
            _, indices = self.quantizer(vectors, training=False, return_indices=True)
            # Keras uses the last inner call's `training` for the layers after this one, so it must be the outer value.
            return self._parts.drop_masked(indices, training=training)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> None:
        # The encoder's mask is already attached to the indices.
        return None

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> keras.KerasTensor:
        vectors = self.encoder.compute_output_spec(inputs)
        return self.quantizer.compute_output_spec(vectors, return_indices=True)[1]

    def get_config(self) -> dict[str, Any]:
        parts = {"encoder": self.encoder, "quantizer": self.quantizer}
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "FrozenTokenizer":
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("encoder", "quantizer")
        }
        return cls(**{**config, **parts})
