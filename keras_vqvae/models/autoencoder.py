"""Base class of the autoencoders: their parts, how they are built, and their functional models."""

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras

from keras_vqvae import validation
from keras_vqvae.layers.masks import ReplaceMasked
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.models.cropping import Cropping, padded_axes
from keras_vqvae.models.frozen import FrozenTokenizer
from keras_vqvae.models.local_predict import predict
from keras_vqvae.models.scaling import scale_layer
from keras_vqvae.types import Data, Sizes

PARTS = ("encoder", "quantizer", "decoder", "preprocessing")
"""The arguments of the constructor that are layers."""


class CodeAutoencoder(keras.Model):
    """An encoder, a quantizer and a decoder. Its subclass `VQVAE` adds `call` and training."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets the constructor of a subclass build the model when it returns, if the encoder's input shape is known.

        The constructor of this class cannot do so. Keras locks a model once it is built, so a subclass could not add
        layers after `super().__init__()`.
        """
        super().__init_subclass__(**kwargs)
        init = cls.__init__

        @functools.wraps(init)
        def init_and_build(self: CodeAutoencoder, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            # Constructors of base classes run within this one. Only the outermost one builds.
            if type(self).__init__ is init_and_build:
                self._build_if_known()

        # Keras reads the constructor's arguments with `inspect`, and in some places ignores `functools.wraps`.
        init_and_build.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
        cls.__init__ = init_and_build  # type: ignore[method-assign]

    def __init__(
        self,
        encoder: keras.Layer,
        quantizer: Quantizer,
        decoder: keras.Layer,
        preprocessing: keras.Layer | None = None,
        **kwargs: Any,
    ):
        # Not a public argument: in it, `get_config` saves the shapes for which the layers of a subclass were built.
        saved_builds = kwargs.pop("added_builds", [])
        super().__init__(**kwargs)
        parts = {"encoder": encoder, "quantizer": quantizer, "decoder": decoder, "preprocessing": preprocessing}
        for name, part in parts.items():
            kind = Quantizer if name == "quantizer" else keras.Layer
            if not isinstance(part, kind) and (name != "preprocessing" or part is not None):
                expected = "quantizer, such as `VectorQuantizer`" if kind is Quantizer else "Keras layer or model"
                raise ValueError(f"`{name}` must be a {expected}. Received: {name}={part!r}")
        self.encoder, self.quantizer, self.decoder, self.preprocessing = encoder, quantizer, decoder, preprocessing
        self.data_scale = scale_layer(encoder, dtype=self.dtype_policy)
        # In a namespace, so that Keras does not track them as layers of this model.
        self._parts = types.SimpleNamespace(
            drop_masked=ReplaceMasked(-1),
            tokenizer=None,
            saved_builds=saved_builds,
            cropping=Cropping(),
            steps={},
            scales=False,
            reconstructs=False,
        )

    def _build_if_known(self) -> None:
        # A subclass that forgets `super().__init__()` has no encoder: Keras says so at its first call.
        if hasattr(self, "encoder") and not self.built and (inputs := self._known_inputs()) is not None:
            self.build(keras.tree.map_structure(lambda x: tuple(x.shape), inputs))
            # `export` needs a model that was called. This fails if a subclass's `call` takes other inputs.
            with contextlib.suppress(Exception):
                self(inputs)
            self._build_as_saved()

    def build(self, input_shape: Any) -> None:
        if self._parts.tokenizer is not None:
            return
        inputs = self._known_inputs()
        if inputs is None:
            # Keras builds with the shape of the first batch. Later batches may have another size.
            inputs = keras.tree.map_shape_structure(lambda shape: keras.Input(shape[1:]), input_shape)
        encoded = inputs if self.preprocessing is None else self.preprocessing(inputs)
        self._parts.scales = isinstance(encoded, keras.KerasTensor) and keras.backend.is_float_dtype(encoded.dtype)
        encoder = keras.Model(inputs, self.encoder(self._scaled(encoded)), name=self.encoder.name)
        vectors = encoder(inputs)
        _, indices = self.quantizer(vectors, return_indices=True)
        codes = keras.Input(batch_shape=indices.shape, dtype="int32", name="codes")
        frozen = FrozenTokenizer(encoder, self.quantizer)
        self._parts.tokenizer = keras.Model(inputs, frozen(inputs), name="tokenizer")
        reconstructions = self._scaled(self.decoder(self.quantizer.decode(codes)), reverse=True)
        self._parts.detokenizer = keras.Model(codes, reconstructions, name="detokenizer")
        # `export` needs models that were called.
        self._parts.tokenizer(inputs)
        self._parts.detokenizer(codes)
        outputs = [tuple(output.shape) for output in self._parts.detokenizer.outputs]
        # Inputs and outputs can share one scale only if they have one shape.
        single = self._parts.scales and len(outputs) == 1
        self._parts.reconstructs = single and validation.shapes_fit(encoded.shape, outputs[0])
        self._prepare_training(outputs, tuple(vectors.shape))
        self._parts.cropping = Cropping(padded_axes(self.encoder, self.decoder, encoded, outputs))
        # k-means leaves NaN out.
        self._parts.vectors = keras.Model(inputs, ReplaceMasked(float("nan"))(vectors), name="vectors")
        # A subclass that overrides `build` builds its layers itself, after this.
        if type(self).build is CodeAutoencoder.build and not all(layer.built for layer in self._flatten_layers(False)):
            # Builds the layers that `call` uses. This fails if `call` takes other inputs: its first call builds them.
            with contextlib.suppress(Exception):
                self.compute_output_spec(inputs)

    def _scaled(self, x: Any, reverse: bool = False) -> Any:
        """The encoder's inputs divided by the scale of the data, or the decoder's outputs multiplied by it."""
        return self.data_scale(x, reverse=reverse) if self._parts.scales and not keras.tree.is_nested(x) else x

    def _known_inputs(self) -> Any:
        """Symbolic inputs for the first layer, or `None` if its input shape is unknown."""
        first = self.encoder if self.preprocessing is None else self.preprocessing
        if getattr(first, "inputs", None):
            return inputs_like(first)
        if first is self.encoder or len(getattr(self.encoder, "inputs", None) or ()) != 1:
            return None
        # Preprocessing that keeps every size takes inputs of the encoder's shape.
        shape = self.encoder.inputs[0].shape
        sizes = (None,) * (len(shape) - 1)
        probe = first(keras.Input(batch_shape=(*sizes, shape[-1])))
        return inputs_like(self.encoder) if tuple(probe.shape[:-1]) == sizes else None

    def _prepare_training(self, output_shapes: list[Sizes], latent_shape: Sizes) -> None:
        """Makes the weights that training needs, given the shapes of the decoder's outputs and inputs."""

    def build_from_config(self, config: dict[str, Any]) -> None:
        super().build_from_config(config)
        self._build_as_saved()

    @property
    def layers(self) -> list[keras.Layer]:
        return [layer for layer in super().layers if layer is not self.data_scale]

    def _added_layers(self) -> list[keras.Layer]:
        """The layers that a subclass has added."""
        own = [getattr(self, name) for name in PARTS]
        return [layer for layer in self.layers if layer not in own]

    def _build_as_saved(self) -> None:
        """Builds the added layers that `call` does not use, for the shapes in the saved configuration."""
        for layer, config in zip(self._added_layers(), self._parts.saved_builds, strict=False):
            if config and not layer.built:
                layer.build_from_config(config)

    @property
    def tokenizer(self) -> keras.Model:
        """The functional model from inputs to codes, over this model's layers. It exists once the model is built.

        It shares this model's weights and always runs in inference mode. A model that contains it does not train it:
        its weights and statistics do not change, and it adds no losses. Its weights are not among the `weights` of that
        model, but are saved with it.
        """
        return self._built_parts().tokenizer

    @property
    def detokenizer(self) -> keras.Model:
        """The functional model from codes to reconstructions, over this model's layers, once the model is built."""
        return self._built_parts().detokenizer

    def _built_parts(self) -> types.SimpleNamespace:
        if self._parts.tokenizer is None:
            raise ValueError(
                "`VQVAE` must be built: call it on a batch, or give it an encoder whose input shape is known. "
                "Received: built=False"
            )
        return self._parts

    def _parts_for(self, x: Data) -> types.SimpleNamespace:
        """Returns the parts. Builds the model with the first samples of `x` if it is not built."""
        if self._parts.tokenizer is None and not isinstance(x, Iterator):
            predict(self, x, steps=1, verbose=0)
        return self._built_parts()

    def get_config(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in PARTS}
        # The shapes for which added layers were built. Before it loads weights, Keras builds only the layers of the
        # configuration and those that `call` uses.
        builds = [layer.get_build_config() if layer.built else None for layer in self._added_layers()]
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items() if part is not None},
            **({"added_builds": builds} if any(builds) else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "CodeAutoencoder":
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in PARTS
            if name in config
        }
        return cls(**{**config, **parts})


def inputs_like(encoder: keras.Model) -> Any:
    """New symbolic inputs with the shapes, dtypes and names of a model's inputs."""
    inputs = encoder.inputs[0] if isinstance(encoder, keras.Sequential) else encoder.input
    return keras.tree.map_structure(lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), inputs)
