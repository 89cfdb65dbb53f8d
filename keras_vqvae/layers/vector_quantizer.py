"""The vector quantizer of VQ-VAE, its codebook learned by the optimizer or by a moving average."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import arguments, backend, codebook, estimators, losses, search
from keras_vqvae.arguments import Tensor
from keras_vqvae.layers.quantizer import Quantizer


@keras.saving.register_keras_serializable(package="keras_vqvae")
class VectorQuantizer(Quantizer):
    """Replaces each vector of the last axis by the nearest code of a learned codebook.

    The codebook has one of two owners. By default it is the optimizer, through a codebook loss. With `ema_decay` it is
    the layer: each code follows the moving average of the vectors that chose it, and codes that fall out of use are
    moved onto vectors of the batch. Either way a commitment loss keeps the encoder near its codes.

    Args:
        num_embeddings: Number of codes, `K`. Defaults to `512`.
        embedding_dim: Size of a code, `D`. Defaults to `None`: the size of the input's last axis.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.
        codebook_weight: Weight of the codebook loss, at least 0; of no effect under `ema_decay`. Defaults to `1.0`.
        ema_decay: Decay of the moving average, between 0 and 1 (`0.99` is usual), or `None` to leave the codebook to
            the optimizer. Defaults to `None`.
        estimator: How the gradient passes the assignment: `"straight_through"`, or a function of vectors and codes.
            Defaults to `"straight_through"`.
        dead_code_threshold: Under `ema_decay`, a code is dead when it is chosen less often than this share of uniform
            use; 0 keeps dead codes where they are. Defaults to `0.1`.
        embeddings_initializer: Initializer of the codebook, `[K, D]`. Defaults to `None`: normal with a standard
            deviation of `1 / sqrt(D)`, so that codes have length 1.
        seed: Integer seed of the default initializer and of the dead codes' new places. Defaults to `None`, a random
            one.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer. `trainable=False` freezes the codebook and all
            statistics.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask: Optional booleans over the leading dimensions; what is masked touches no loss, statistics or codebook.
        training: Whether to add losses and update statistics.
        return_indices: Whether to return `(quantized, indices)`. Defaults to `False`.

    Output shape:
        `[..., D]`, in the compute dtype; the indices are int32 `[...]`.

    Raises:
        ValueError: If an argument is out of its range, or an input's last axis is not `embedding_dim`.

    Example:

    >>> layer = VectorQuantizer(num_embeddings=16)
    >>> quantized, indices = layer(keras.random.normal((2, 5, 8)), return_indices=True)
    >>> quantized.shape == (2, 5, 8), indices.shape == (2, 5)
    (True, True)
    >>> bool(keras.ops.all(layer.decode(indices) == quantized))
    True

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937)
    - [Dead codes: Zeghidour et al., 2021, section III.C](https://arxiv.org/abs/2107.03312)
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        ema_decay: float | None = None,
        estimator: str | estimators.Estimator = "straight_through",
        dead_code_threshold: float = 0.1,
        embeddings_initializer: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_embeddings = arguments.positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = None if embedding_dim is None else arguments.positive_int("embedding_dim", embedding_dim)
        self.commitment_weight = arguments.non_negative("commitment_weight", commitment_weight)
        self.codebook_weight = arguments.non_negative("codebook_weight", codebook_weight)
        self.ema_decay = None if ema_decay is None else arguments.open_fraction("ema_decay", ema_decay)
        self.estimator = estimators.get(estimator)
        self.dead_code_threshold = arguments.non_negative("dead_code_threshold", dead_code_threshold)
        if embeddings_initializer is None:
            # Of eight, the least error or next to it on each data set and network of `benchmarks/initializers.py` where
            # the optimizer owns the codebook; the usual N(0, 1) and +-1 / K leave a few codes in use there.
            embeddings_initializer = keras.initializers.VarianceScaling(
                mode="fan_out", distribution="untruncated_normal", seed=seed
            )
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = self._check_input_shape(input_shape)
        if self.embedding_dim not in (None, dim):
            raise ValueError(
                f"The input's last axis must be `embedding_dim`. "
                f"Received: embedding_dim={self.embedding_dim}, input_shape={tuple(input_shape)}"
            )
        self.embedding_dim = dim
        # float32 under every policy: steps of a slow codebook are lost in bfloat16.
        self.codebook = self.add_weight(
            shape=(self.num_embeddings, dim),
            initializer=self.embeddings_initializer,
            dtype="float32",
            autocast=False,
            trainable=self.ema_decay is None,
            name="codebook",
        )
        if self.ema_decay is not None:
            self.ema_counts = self.add_weight(
                shape=(self.num_embeddings,),
                initializer="zeros",
                dtype="float32",
                autocast=False,
                trainable=False,
                name="ema_counts",
            )
        super().build(input_shape)

    def assign(self, vectors: Tensor) -> Tensor:
        return search.nearest_code(vectors, self.codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        return codebook.gather_codes(self.codebook, indices)

    def estimate(self, vectors: Tensor, codes: Tensor) -> Tensor:
        return self.estimator(vectors, codes)

    def compute_losses(self, vectors: Tensor, codes: Tensor, kept: Tensor) -> list[Tensor]:
        added = []
        if self.commitment_weight:
            added.append(self.commitment_weight * losses.commitment_loss(vectors, codes, kept))
        if self.codebook_weight and self.ema_decay is None:
            added.append(self.codebook_weight * losses.codebook_loss(vectors, codes, kept))
        return added

    def update(self, vectors: Tensor, indices: Tensor, kept: Tensor, counts: Tensor) -> None:
        if self.ema_decay is None:
            return
        sums = backend.sum_over_replicas(codebook.sum_by_code(vectors, indices, kept, self.num_embeddings))
        embeddings, ema_counts = codebook.ema_step(
            ops.convert_to_tensor(self.codebook),
            ops.convert_to_tensor(self.ema_counts),
            counts,
            sums,
            self.ema_decay,
        )
        if self.dead_code_threshold:
            rows, any_kept = codebook.draw_kept(kept, self.num_embeddings, seed=self.seed_generator)
            embeddings, ema_counts = codebook.revive_dead_codes(
                embeddings,
                ema_counts,
                backend.of_first_replica(ops.take(vectors, rows, axis=0)),
                backend.of_first_replica(ops.where(any_kept, self.dead_code_threshold, 0.0)),
            )
        self.codebook.assign(embeddings)
        self.ema_counts.assign(ema_counts)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "commitment_weight": self.commitment_weight,
            "codebook_weight": self.codebook_weight,
            "ema_decay": self.ema_decay,
            "estimator": estimators.serialize(self.estimator),
            "dead_code_threshold": self.dead_code_threshold,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "seed": self.seed,
        }
