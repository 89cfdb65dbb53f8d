"""Base class of the quantizers with an explicit codebook."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import input_checks
from keras_vqvae.layers.codebook_weights import CodebookWeights
from keras_vqvae.layers.record import Record
from keras_vqvae.ops import clustering, codebook, dead_codes, estimators, geometry, search
from keras_vqvae.types import FromKeras, Tensor

COUNTS_RATE = 0.01
"""Rate (1 minus the decay) of the moving average `ema_counts`, if the layer has no `ema_decay`."""


def default_initializer(
    estimator: estimators.Estimator, seed: int | None, norm: float = 1.0
) -> keras.initializers.Initializer:
    """Returns the default initializer. Its codes have norms of about `norm`, or shorter ones for the rotation.

    The rotation scales gradients by `|q| / |z|`, and codes that start longer than the vectors die. `docs/studies/` has
    figures: `initializer.md` and `dead-codes.md`.
    """
    if estimator is estimators.rotation:
        return keras.initializers.VarianceScaling(1 / 16, mode="fan_in", distribution="uniform", seed=seed)
    return keras.initializers.VarianceScaling(norm**2, mode="fan_out", distribution="untruncated_normal", seed=seed)


class CodebookQuantizer(CodebookWeights):
    """Base class of the quantizers that assign each vector to the nearest code of a codebook.

    It searches the codebook, initializes it in `adapt`, moves dead codes onto vectors of the batch, and applies a
    gradient estimator. A subclass defines how the codebook is trained: by the optimizer, with losses from
    `compute_losses`, or by the layer itself, in `update` and with `codebook_trainable = False`.

    A codebook that the optimizer owns is the sum of two weights: the trainable `codebook` and, if dead codes are moved
    or codes are constrained, the non-trainable `offset_codebook`. The attribute `codebook` is the sum. The weight
    `ema_counts` is a moving average of how often each code is chosen in a step. It decides which codes are dead.

    Args:
        num_embeddings: Number of codes, `K`.
        embedding_dim: Size of a code, `D`, or `None` for the size of the input's last axis.
        distance: How vectors and codes are compared. `"euclidean"`: by Euclidean distance. `"direction"`: by cosine
            similarity; losses and output use the codes at their own norm. `"cosine"`: by cosine similarity; losses
            and output use vectors and codes scaled to unit norm. Defaults to `"euclidean"`.
        estimator: Gradient estimator: a name, or a function of vectors and codes. Defaults to `"straight_through"`.
        dead_code_threshold: A code is dead if a moving average of how often it is chosen is below this fraction of the
            mean over all codes. In training, dead codes move onto vectors of the batch. 0 turns this off. Defaults
            to `0.1`.
        embeddings_initializer: Initializer of the codebook, `[K, D]`. Defaults to `None`: normal with a standard
            deviation of `1 / sqrt(D)`. For `"rotation"`: uniform between `-sqrt(3 / (16 K))` and `sqrt(3 / (16 K))`.
        embeddings_regularizer: Regularizer of the codebook. Defaults to `None`.
        embeddings_constraint: Constraint of the codebook. Defaults to `None`.
        seed: Integer seed of the default initializer and of all draws. Defaults to `None`, a random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.
    """

    supports_beam_search = True
    revivable = True
    """Whether a dead code can move onto a vector of the batch."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None,
        distance: str = "euclidean",
        estimator: str | estimators.Estimator = "straight_through",
        dead_code_threshold: float = 0.1,
        embeddings_initializer: FromKeras = None,
        embeddings_regularizer: FromKeras = None,
        embeddings_constraint: FromKeras = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        estimator = estimators.get(estimator)
        if embeddings_initializer is None:
            embeddings_initializer = default_initializer(estimator, validation.seed(seed))
        super().__init__(
            num_embeddings,
            embedding_dim,
            embeddings_initializer,
            embeddings_regularizer,
            embeddings_constraint,
            seed,
            **kwargs,
        )
        self.estimator = estimator
        self.distance = search.check_distance(distance)
        # Residuals shrink from stage to stage, and codes of unit norm cannot follow.
        self.refines = distance != "cosine"
        # A beam ranks sums of codes by their squared error.
        self.supports_beam_search = self.supports_beam_search and distance != "direction"
        self.dead_code_threshold = validation.non_negative("dead_code_threshold", dead_code_threshold)
        self.moves_codes = self.dead_code_threshold > 0
        if self.moves_codes and not self.revivable:
            raise ValueError(
                f"`dead_code_threshold` must be 0: a code of `{type(self).__name__}` cannot move onto a vector. "
                f"Received: dead_code_threshold={dead_code_threshold!r}"
            )
        if distance == "cosine":
            self._constraint = geometry.unit
            if embeddings_constraint is not None:
                raise ValueError(
                    "`embeddings_constraint` must be None if `distance='cosine'`, which keeps codes at unit norm. "
                    f"Received: embeddings_constraint={validation.shown(embeddings_constraint)}"
                )

    def _refuse_estimator(self) -> None:
        """Raises an error if `estimator` is set. A quantizer calls this if its gradient comes from a softmax."""
        if self.estimator is not estimators.straight_through:
            raise ValueError(
                f"`estimator` must be left at its default: `{type(self).__name__}` uses the gradient of a softmax. "
                f"Received: estimator={estimators.serialize(self.estimator)!r}"
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.embedding_dim = input_checks.last_axis(self, input_shape, "embedding_dim", self.embedding_dim)
        self.build_codebook()
        self.ema_counts = self.add_float32("ema_counts", (self.num_embeddings,))
        if self.dead_code_threshold:
            self.draw_seeds = self.add_weight(
                (self.num_embeddings,), self._initial_seeds, "int32", trainable=False, name="draw_seeds"
            )
        super().build(input_shape)

    def _initial_seeds(self, shape: tuple[int], dtype: str) -> Tensor:
        return dead_codes.initial_seeds(shape, self.seed)

    def copies_gradient(self, training: bool) -> bool:
        kind = type(self)
        own = kind.estimate is not CodebookQuantizer.estimate or kind.project is not CodebookQuantizer.project
        return not own and self.estimator is estimators.straight_through and self.distance != "cosine"

    def project(self, vectors: Tensor) -> Tensor:
        return geometry.unit(vectors) if self.distance == "cosine" else vectors

    def compared(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns vectors `[N, D]` and codes `[K, D]` as the search compares them: of unit norm for `"direction"`."""
        if self.distance == "direction":
            return geometry.unit(vectors), geometry.unit(codes)
        return vectors, codes

    def search(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Returns the index of each vector's code, `[N]`, given vectors `[N, D]` and codebook `[K, D]`."""
        return search.search(*self.compared(vectors, codes))

    @property
    def searches_nearest(self) -> bool:
        """Whether `assign` is a plain search for the nearest code, so that a wrapper may search in its place."""
        names = ("quantize_vectors", "project", "search", "assign", "choose", "codebook")
        return self.distance == "euclidean" and all(
            getattr(type(self), name) is getattr(CodebookQuantizer, name) for name in names
        )

    def assign(self, vectors: Tensor) -> Tensor:
        return self.search(vectors, self.codebook)

    def choose(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.codebook
        indices = self.search(vectors, codes)
        return indices, codebook.gather_codes(codes, indices)

    def estimate(self, vectors: Tensor, codes: Tensor, training: bool) -> Tensor:
        return estimators.apply(self.estimator, vectors, codes, self.seed_generator, training)

    def update(self, record: Record, counts: Tensor) -> None:
        counts = ops.cast(counts, "float32")
        # The rate is 0 for a batch without a valid vector.
        rate = backend.at_most(backend.sum_over_replicas(record.count), COUNTS_RATE)
        backend.move_to(self.ema_counts, counts, rate)
        if self._constraint is not None and self.offset is not None:
            offsets = ops.stop_gradient(self.codebook) - ops.convert_to_tensor(self.embeddings)
            backend.replace_where(self.offset, ops.reshape(rate > 0, (1, 1)), offsets)
        if self.dead_code_threshold:
            self.move_dead_codes(record)

    def move_dead_codes(self, record: Record) -> None:
        """Moves dead codes onto vectors of a record, and raises their moving counts to the threshold."""
        vectors, usable = dead_codes.candidates(
            ops.stop_gradient(record.vectors), record.valid, ops.convert_to_tensor(self.draw_seeds)
        )
        backend.add_to(self.draw_seeds, dead_codes.STRIDE)
        counts = ops.convert_to_tensor(self.ema_counts)
        dead, alive_from = dead_codes.dead_codes(counts, usable, self.dead_code_threshold)
        backend.replace_where(self.ema_counts, dead, alive_from)
        # With `distance="cosine"` the vectors of a record have unit norm already.
        if self.embeddings_constraint is not None:
            vectors = self.embeddings_constraint(vectors)
        if self.offset is None:
            backend.replace_where(self.embeddings, ops.expand_dims(dead, -1), vectors)
        else:
            offsets = vectors - ops.convert_to_tensor(self.embeddings)
            backend.replace_where(self.offset, ops.expand_dims(dead, -1), offsets)

    def adapt(self, vectors: Tensor, seed: int | None = None, **keywords: Any) -> np.ndarray:
        """Initializes the codebook with k-means, which is better than a random initialization.

        Args:
            vectors: Outputs of the encoder, `[..., D]`. 256 vectors per code are enough.
            seed: Integer seed. Defaults to `None`, the layer's seed.
            **keywords: `init`, `epochs`, `batch_size` and `verbose` of `keras_vqvae.kmeans`. `init="codebook"` starts
                from the present codes of the layer.

        Returns:
            Number of vectors of each code, int64 `[K]`.

        Raises:
            ValueError: If the last axis is not `D`, if no vector is finite, or if an argument is out of its range.
        """
        vectors = input_checks.vectors_to_adapt(self, vectors)
        seed = self.seed if seed is None else seed
        init = keywords.get("init")
        if isinstance(init, str) and init == "codebook":
            keywords["init"] = ops.stop_gradient(self.codebook)
        codes, counts = clustering.kmeans(vectors, self.num_embeddings, distance=self.distance, seed=seed, **keywords)
        self.set_codebook(codes)
        # Scaled to a mean of one vector per code, so that the first batches outweigh these counts.
        self.ema_counts.assign(counts * (self.num_embeddings / counts.sum()))
        return counts

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "distance": self.distance,
            "estimator": estimators.serialize(self.estimator),
            "dead_code_threshold": self.dead_code_threshold,
        }
