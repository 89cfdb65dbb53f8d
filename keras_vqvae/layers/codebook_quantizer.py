"""What the quantizers share that keep their codes in a codebook."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.quantizer_outputs import QuantizerOutputs
from keras_vqvae.ops import clustering, codebook, estimators, geometry, search
from keras_vqvae.types import FromKeras, Seed, Tensor

COUNTS_DECAY = 0.99
"""Decay of `ema_counts` where the layer has none of its own."""


def default_initializer(
    estimator: estimators.Estimator, seed: int | None, length: float = 1.0
) -> keras.initializers.Initializer:
    """Codes of a length, or as short as the rotation needs them; see `docs/studies.md`.

    Where the optimizer owns the codebook, length 1 had the least error of eight initializers or next to it; the usual
    N(0, 1) and +-1 / K leave a few codes in use. The rotation scales gradients by `|q| / |z|`, and codes that begin
    longer than the vectors fall out of use: of 1,024 codes 1% stay with length 1, 93% within `+-sqrt(3 / 16 K)`.
    """
    if estimator is estimators.rotation:
        return keras.initializers.VarianceScaling(1 / 16, mode="fan_in", distribution="uniform", seed=seed)
    return keras.initializers.VarianceScaling(length**2, mode="fan_out", distribution="untruncated_normal", seed=seed)


class CodebookQuantizer(Quantizer):
    """Base class of the quantizers that assign each vector to the nearest code of a codebook.

    It keeps the codebook, searches it, fills it by `adapt`, and passes the gradient by an estimator. How the codebook
    is trained is up to the subclass: by `compute_losses`, or by `update` with `codebook_trainable = False`. The weight
    `ema_counts`, the moving average of how often each code is chosen in a step, tells the dead codes.

    Args:
        num_embeddings: Number of codes, `K`.
        embedding_dim: Size of a code, `D`, or `None`: the size of the input's last axis.
        distance: How a vector finds its code. `"euclidean"`: the nearest one. `"direction"`: the one with the most
            similar direction, which is returned as it is. `"cosine"`: the same among vectors and codes that are scaled
            to length 1, also in the losses and the output.
        estimator: How the gradient passes the assignment: a name, or a function of vectors and codes.
        embeddings_initializer: Initializer of the codebook, `[K, D]`, or `None`: normal with a standard deviation of
            `1 / sqrt(D)`; for the rotation uniform within `sqrt(3 / (16 K))`.
        embeddings_regularizer: Regularizer of the codebook, or `None`.
        embeddings_constraint: Constraint of the codebook, or `None`.
        seed: Integer seed of the default initializer and of all draws, or `None`.
    """

    listed = True
    has_codebook = True
    codebook_trainable = True
    revivable = True
    """Whether a vector's place is a good one for a code, as `ReviveDeadCodes` presumes."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None,
        distance: str = "euclidean",
        estimator: str | estimators.Estimator = "straight_through",
        embeddings_initializer: FromKeras = None,
        embeddings_regularizer: FromKeras = None,
        embeddings_constraint: FromKeras = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._recorded: list[tuple[Tensor, Tensor]] | None = None
        self.seed = validation.seed(seed)
        self.num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = None if embedding_dim is None else validation.positive_int("embedding_dim", embedding_dim)
        self.distance = search.check_distance(distance)
        # Codes of length 1 do not get smaller from stage to stage.
        self.refines = distance != "cosine"
        # A beam ranks sums of codes by their squared error.
        self.listed = self.listed and distance != "direction"
        self.estimator = estimators.get(estimator)
        if embeddings_initializer is None:
            embeddings_initializer = default_initializer(self.estimator, seed)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = keras.constraints.get(embeddings_constraint)
        if embeddings_regularizer is not None and not validation.takes(self.embeddings_regularizer, 1):
            raise ValueError(
                "`embeddings_regularizer` must be a function of the codebook alone. A function of vectors, codebook "
                "and which vectors are kept, such as `EntropyRegularizer`, is an `assignment_regularizer` of "
                f"`VectorQuantizer`. Received: embeddings_regularizer={embeddings_regularizer!r}"
            )
        if distance == "cosine" and embeddings_constraint is not None:
            raise ValueError(
                "`embeddings_constraint` must be None where `distance` is 'cosine', which keeps codes at length 1. "
                f"Received: embeddings_constraint={embeddings_constraint!r}"
            )

    def _refuse_estimator(self) -> None:
        """Raises if an estimator was given to a quantizer whose gradient is that of its own softmax."""
        if self.estimator is not estimators.straight_through:
            raise ValueError(
                f"`estimator` must be left at its default: `{type(self).__name__}` has the gradient of a softmax. "
                f"Received: estimator={estimators.serialize(self.estimator)!r}"
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.embedding_dim = self._check_input_shape(input_shape, "embedding_dim", self.embedding_dim)
        self.build_codebook()
        self.ema_counts = self.add_weight(
            shape=(self.num_embeddings,),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            trainable=False,
            name="ema_counts",
        )
        super().build(input_shape)

    def build_codebook(self) -> None:
        """Creates `codebook`, `[num_embeddings, embedding_dim]`."""
        constraint = keras.constraints.UnitNorm(axis=-1) if self.distance == "cosine" else self.embeddings_constraint
        # float32 under every policy: steps of a slow codebook are lost in bfloat16.
        self.codebook = self.add_weight(
            shape=(self.num_embeddings, self.embedding_dim),
            initializer=self._initial_codebook,
            dtype="float32",
            autocast=False,
            trainable=self.codebook_trainable,
            regularizer=self.embeddings_regularizer,
            # The optimizer applies it after its step.
            constraint=constraint,
            name="codebook",
        )

    def _initial_codebook(self, shape: tuple[int, int], dtype: str) -> Tensor:
        return self.project(self.embeddings_initializer(shape, dtype=dtype))

    def set_codebook(self, values: Tensor) -> None:
        """Assigns the codebook, `[K, D]`, under its constraint."""
        values = ops.convert_to_tensor(values, dtype="float32")
        if self.codebook.constraint is not None:
            # A code that stays does so to the last bit.
            moved = ops.any(values != ops.convert_to_tensor(self.codebook), axis=-1, keepdims=True)
            values = ops.where(moved, self.codebook.constraint(values), values)
        self.codebook.assign(values)

    @contextlib.contextmanager
    def recorded_inputs(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Within it, each call adds its vectors `[N, D]` and which of them are kept to the list that it yields."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def quantize_vectors(
        self, vectors: Tensor, kept: Tensor, training: bool, samples: Tensor, indices: Tensor | None = None
    ) -> QuantizerOutputs:
        if self._recorded is not None:
            self._recorded.append((vectors, kept))
        return super().quantize_vectors(vectors, kept, training, samples, indices)

    def copies_gradient(self, training: bool) -> bool:
        kind = type(self)
        own = kind.estimate is not CodebookQuantizer.estimate or kind.project is not CodebookQuantizer.project
        return not own and self.estimator is estimators.straight_through and self.distance != "cosine"

    def project(self, vectors: Tensor) -> Tensor:
        return geometry.unit(vectors)[0] if self.distance == "cosine" else vectors

    def compared(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors and codes that `distance` compares, `[N, D]` and `[K, D]`."""
        codes = ops.convert_to_tensor(self.codebook)
        if self.distance == "direction":
            return geometry.unit(vectors)[0], geometry.unit(codes)[0]
        return vectors, codes

    def assign(self, vectors: Tensor) -> Tensor:
        return search.nearest_code(*self.compared(vectors))

    def lookup(self, indices: Tensor) -> Tensor:
        return codebook.gather_codes(self.codebook, indices)

    def estimate(self, vectors: Tensor, codes: Tensor, training: bool) -> Tensor:
        return estimators.apply(self.estimator, vectors, codes, self.seed_generator, training)

    def update(self, vectors: Tensor, indices: Tensor, kept: Tensor, counts: Tensor) -> None:
        self.ema_counts.assign(codebook.ema_of_counts(ops.convert_to_tensor(self.ema_counts), counts, COUNTS_DECAY))

    def adapt(self, vectors: Tensor, seed: int | None = None, **keywords: Any) -> np.ndarray:
        """Fills the codebook by k-means, as a start that is better than the initializer's.

        Args:
            vectors: Outputs of the encoder, `[..., D]`; 256 a code are plenty.
            seed: Integer. Defaults to `None`: the layer's own.
            **keywords: `init`, `epochs`, `batch_size` and `verbose` of `keras_vqvae.kmeans`. `init="codebook"` starts
                from the codes that the layer has.

        Returns:
            How many vectors chose each code, int64 `[K]`.
        """
        if not self.built:
            self.build(tuple(vectors.shape))
        seed = self.seed if seed is None else seed
        init = keywords.get("init")
        if isinstance(init, str) and init == "codebook":
            keywords["init"] = ops.convert_to_tensor(self.codebook)
        codes, counts = clustering.kmeans(vectors, self.num_embeddings, distance=self.distance, seed=seed, **keywords)
        self.set_codebook(codes)
        # One vector a code on average: the first batches weigh more.
        self.ema_counts.assign(counts * (self.num_embeddings / counts.sum()))
        return counts

    def revive_dead_codes(self, vectors: Tensor, kept: Tensor, threshold: float, seed: Seed) -> None:
        """Moves each code that is chosen less often than `threshold` times uniform use onto one of the kept vectors.

        Args:
            vectors: `[N, D]`, as `project` returns them.
            kept: Booleans `[N]`, which of them may be drawn.
            threshold: Share of uniform use.
            seed: Integer or `keras.random.SeedGenerator`.
        """
        rows, any_kept = codebook.draw_kept(kept, self.num_embeddings, seed)
        embeddings, ema_counts = codebook.revive_dead_codes(
            ops.convert_to_tensor(self.codebook),
            ops.convert_to_tensor(self.ema_counts),
            backend.of_first_replica(codebook.take_rows(vectors, rows)),
            backend.of_first_replica(ops.cast(ops.where(any_kept, threshold, 0.0), "float32")),
        )
        self.set_codebook(embeddings)
        self.ema_counts.assign(ema_counts)

    def resize(self, num_embeddings: int) -> tuple["CodebookQuantizer", np.ndarray]:
        """Returns a new layer of another number of codes, and where the old ones went.

        Fewer: those with the highest `code_counts` remain, in their order. More: the old ones come first and keep their
        indices, the rest is drawn by the initializer.

        Args:
            num_embeddings: Number of codes of the new layer.

        Returns:
            `(layer, new_indices)`: the layer, built, and an int32 array `[K]` from old indices to new ones, with -1 for
            codes that are gone.
        """
        num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
        most_used = np.argsort(-ops.convert_to_numpy(self.code_counts), kind="stable")
        return self._with_codes(np.sort(most_used[:num_embeddings]), num_embeddings)

    def prune_unused(self) -> tuple["CodebookQuantizer", np.ndarray]:
        """Returns a new layer of the codes in use, those whose `code_counts` are above 0; else as `resize`.

        Raises:
            ValueError: If no code has been counted since the last reset.
        """
        used = np.flatnonzero(ops.convert_to_numpy(self.code_counts))
        if not len(used):
            raise ValueError("`code_counts` must have counted a code before a layer is pruned. Received: all are 0")
        return self._with_codes(used, len(used))

    def _with_codes(self, rows: np.ndarray, num_embeddings: int) -> tuple["CodebookQuantizer", np.ndarray]:
        config = serialization.live_config(self)
        config["embeddings_initializer"] = serialization.fresh_initializer(self.embeddings_initializer, 0)
        layer = type(self).from_config({**config, "num_embeddings": num_embeddings})
        layer.build((None, self.embedding_dim))
        for old, new in zip(self.weights, layer.weights, strict=True):
            values, drawn = ops.convert_to_numpy(old), ops.convert_to_numpy(new)
            # A row a code, or nothing that depends on their number.
            new.assign(values if old.shape == new.shape else np.concatenate([values[rows], drawn[len(rows) :]]))
        new_indices = np.full(self.num_embeddings, -1, "int32")
        new_indices[rows] = np.arange(len(rows))
        return layer, new_indices

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "distance": self.distance,
            "estimator": estimators.serialize(self.estimator),
            "embeddings_initializer": serialization.saved(self.embeddings_initializer),
            "embeddings_regularizer": serialization.saved(self.embeddings_regularizer),
            "embeddings_constraint": serialization.saved(self.embeddings_constraint),
            "seed": self.seed,
        }
