"""What an autoencoder with codes in between is: its parts, and what they do without training."""

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae.layers.masks import ReplaceMasked
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.models.cropping import Cropping, padded_axes
from keras_vqvae.models.frozen import FrozenTokenizer
from keras_vqvae.models.local_predict import predict
from keras_vqvae.models.prior import Prior
from keras_vqvae.types import Data, Sizes, Tensor


class CodeAutoencoder(keras.Model):
    """An encoder, a quantizer and a decoder. A subclass, `VQVAE`, has their `call` and their training."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Builds models of the class once their constructor has returned, where the encoder knows its input.

        Not within the constructor of this class: Keras locks a model that is built, and what a subclass adds after
        `super().__init__()` would be refused.
        """
        super().__init_subclass__(**kwargs)
        init = cls.__init__

        @functools.wraps(init)
        def init_and_build(self: CodeAutoencoder, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            # The constructor of a base class runs within that of the model's own class.
            if type(self).__init__ is init_and_build:
                self._build_if_known()

        # Keras reads the arguments of the constructor by `inspect`, in part without regard to `functools.wraps`.
        vars(init_and_build)["__signature__"] = inspect.signature(init)
        setattr(cls, "__init__", init_and_build)  # noqa: B010

    def __init__(self, encoder: keras.Layer, quantizer: Quantizer, decoder: keras.Layer, **kwargs: Any):
        # Not an argument: `get_config` puts the shapes here that the layers of a subclass were built for.
        saved_builds = kwargs.pop("added_builds", [])
        super().__init__(**kwargs)
        for name, part in {"encoder": encoder, "quantizer": quantizer, "decoder": decoder}.items():
            kind = Quantizer if name == "quantizer" else keras.Layer
            if not isinstance(part, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__}. Received: {name}={part!r}")
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        # Within a namespace Keras does not see them. Tracked, they would be layers of this model.
        self._parts = types.SimpleNamespace(
            drop_masked=ReplaceMasked(-1), tokenizer=None, saved_builds=saved_builds, cropping=Cropping(), steps={}
        )

    def _build_if_known(self) -> None:
        # A subclass that forgets `super().__init__()` has no encoder: Keras says so at its first call.
        if getattr(getattr(self, "encoder", None), "inputs", None) and not self.built:
            inputs = inputs_like(self.encoder)
            self.build(keras.tree.map_structure(lambda x: tuple(x.shape), inputs))
            # Keras exports no model that was never called. A subclass's `call` may take other inputs than the encoder.
            with contextlib.suppress(Exception):
                self(inputs)
            self._build_as_saved()

    def build(self, input_shape: Any) -> None:
        if self._parts.tokenizer is not None:
            return
        if getattr(self.encoder, "inputs", None):
            inputs = inputs_like(self.encoder)
        else:
            # Batches of any size: the first one, by which Keras builds, need not have that of the others.
            inputs = keras.tree.map_shape_structure(lambda shape: keras.Input(shape[1:]), input_shape)
        vectors = self.encoder(inputs)
        _, indices = self.quantizer(vectors, return_indices=True)
        codes = keras.Input(batch_shape=indices.shape, dtype="int32", name="codes")
        frozen = FrozenTokenizer(self.encoder, self.quantizer)
        self._parts.tokenizer = keras.Model(inputs, frozen(inputs), name="tokenizer")
        self._parts.detokenizer = keras.Model(codes, self.decoder(self.quantizer.decode(codes)), name="detokenizer")
        # Keras exports no model that was never called.
        self._parts.tokenizer(inputs)
        self._parts.detokenizer(codes)
        outputs = [tuple(output.shape) for output in self._parts.detokenizer.outputs]
        self._prepare_training(outputs, tuple(vectors.shape))
        self._parts.cropping = Cropping(padded_axes(self.encoder, self.decoder, inputs, outputs))
        # What is not finite is left out of k-means.
        self._parts.vectors = keras.Model(inputs, ReplaceMasked(float("nan"))(vectors), name="vectors")
        # A subclass that overrides `build` builds its layers itself, after this.
        if type(self).build is CodeAutoencoder.build and not all(layer.built for layer in self._flatten_layers(False)):
            # Builds those that `call` uses, unless it takes other inputs than the encoder: then its first call does.
            with contextlib.suppress(Exception):
                self.compute_output_spec(inputs)

    def _prepare_training(self, output_shapes: list[Sizes], latent_shape: Sizes) -> None:
        """Makes the weights that training needs, given the shapes of the decoder's outputs and inputs."""

    def build_from_config(self, config: dict[str, Any]) -> None:
        super().build_from_config(config)
        self._build_as_saved()

    def _added_layers(self) -> list[keras.Layer]:
        """The layers that a subclass has added."""
        return [layer for layer in self.layers if layer not in (self.encoder, self.quantizer, self.decoder)]

    def _build_as_saved(self) -> None:
        """Builds the added layers that `call` does not use for the shapes that a file tells of."""
        for layer, config in zip(self._added_layers(), self._parts.saved_builds, strict=False):
            if config and not layer.built:
                layer.build_from_config(config)

    @property
    def tokenizer(self) -> keras.Model:
        """The functional model from inputs to codes, over this model's layers. It exists once the model is built.

        It follows this model's weights, and always runs in inference: a model that holds it changes no weight and no
        statistic of it, and gets no loss from it, whatever `training` is. Its weights are not among the `weights` of
        that model, but are saved with it.
        """
        return self._built_parts().tokenizer

    @property
    def detokenizer(self) -> keras.Model:
        """The functional model from codes to reconstructions, over this model's layers. It exists once it is built."""
        return self._built_parts().detokenizer

    def _built_parts(self) -> types.SimpleNamespace:
        if self._parts.tokenizer is None:
            raise ValueError(
                "`VQVAE` must be built: call it, or take an encoder that knows its input shape. Received: built=False"
            )
        return self._parts

    def _parts_for(self, x: Data) -> types.SimpleNamespace:
        """The parts, built by the first samples of `x` if the model never saw any."""
        if self._parts.tokenizer is None and not isinstance(x, Iterator):
            predict(self, x, steps=1, verbose=0)
        return self._built_parts()

    def encode(self, x: Data, batch_size: int | None = None, verbose: str | int = "auto") -> np.ndarray:
        """Returns the codes of inputs, in batches and with a progress bar, as `predict` does.

        Args:
            x: Inputs of the encoder, in any form that `predict` takes.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.

        Returns:
            An int32 array `[samples, ...]`.
        """
        parts = self._parts_for(x)
        parts.cropping.check("x", x)
        return predict(parts.tokenizer, x, batch_size=batch_size, verbose=verbose)

    def adapt(self, x: Data, batch_size: int | None = None, verbose: str | int = "auto", **keywords: Any) -> None:
        """Fills the quantizer's codebook by k-means of the encoder's outputs.

        Args:
            x: Inputs of the encoder, in any form that `predict` takes. The encoder's outputs are kept in memory, and
                256 vectors a code are plenty: give a part of large data.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.
            **keywords: Of the quantizer's `adapt`, such as `epochs` and `seed`.
        """
        vectors = predict(self._parts_for(x).vectors, x, batch_size=batch_size, verbose=verbose)
        self.quantizer.adapt(vectors, verbose=verbose, **keywords)

    def decode(
        self,
        codes: Tensor,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        size: int | Sequence[int] | None = None,
    ) -> np.ndarray:
        """Returns the reconstructions of codes, in batches and with a progress bar, as `predict` does.

        Args:
            codes: Integers, as `encode` returns them.
            batch_size: As in `predict`. Defaults to `None`, 32 samples.
            verbose: As in `predict`. Defaults to `"auto"`.
            size: The size that the data had before `encode`, if the encoder takes any and has strides: an integer, or
                one for each axis of any size. Codes do not tell it. Defaults to `None`, full multiples of the stride.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If a code lies outside the codebook, or `size` is larger than what the codes give.
        """
        codes = ops.convert_to_numpy(self.quantizer.check_indices("codes", ops.convert_to_numpy(codes)))
        outputs = predict(self.detokenizer, codes, batch_size=batch_size, verbose=verbose)
        return outputs if size is None else self._parts.cropping.to_size(outputs, size)

    def sample(
        self, prior: Prior, num_samples: int, labels: Tensor | None = None, verbose: str | int = "auto", **keywords: Any
    ) -> np.ndarray:
        """Draws new data: codes from `prior`, decoded.

        Args:
            prior: A prior of codes as this model's `encode` returns them.
            num_samples: Number of samples.
            labels: Their classes, integers `[n]`, or one for all. Defaults to `None`, any.
            verbose: As in `predict`. Defaults to `"auto"`.
            **keywords: Arguments of the prior's `generate`, such as `temperature`, `guidance_scale` and `seed`.

        Returns:
            An array of the decoder's outputs.

        Raises:
            ValueError: If `prior` draws codes of another number or shape.
        """
        if not isinstance(prior, Prior):
            raise ValueError(f"`prior` must be a Prior. Received: prior={prior!r}")
        own = self.quantizer.num_embeddings, *self.tokenizer.output_shape[1:]
        sizes = self.quantizer.codebook_sizes
        repeats = max(len(sizes) // len(prior.codebook_sizes), 1)
        if len(set(sizes)) > 1 and prior.codebook_sizes * repeats != sizes:
            raise ValueError(
                "`prior` must have the quantizer's `codebook_sizes` as its `num_embeddings`. "
                f"Received: prior of {list(prior.codebook_sizes)} codes, quantizer of {list(sizes)}"
            )
        of_prior = prior.num_embeddings, *prior.shape
        if len(own) != len(of_prior) or any(a not in (None, b) for a, b in zip(own, of_prior, strict=True)):
            raise ValueError(
                f"`prior` must be one of {own[0]} codes of shape {own[1:]}. "
                f"Received: prior of {of_prior[0]} codes of shape {of_prior[1:]}"
            )
        return self.decode(prior.generate(num_samples, labels, verbose=verbose, **keywords), verbose=verbose)

    def get_config(self) -> dict[str, Any]:
        parts = {"encoder": self.encoder, "quantizer": self.quantizer, "decoder": self.decoder}
        builds = [layer.get_build_config() if layer.built else None for layer in self._added_layers()]
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
            # The shapes that added layers were built for: Keras builds only what is part of the configuration, or what
            # `call` uses, before it loads weights.
            **({"added_builds": builds} if any(builds) else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "CodeAutoencoder":
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("encoder", "quantizer", "decoder")
        }
        return cls(**{**config, **parts})


def inputs_like(encoder: keras.Model) -> Any:
    """New symbolic inputs like those of a model that knows its own."""
    inputs = encoder.inputs[0] if isinstance(encoder, keras.Sequential) else encoder.input
    return keras.tree.map_structure(lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), inputs)
