"""The methods of the study: ours and, on the torch backend, the corresponding ones of vector-quantize-pytorch."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_vqvae

Method = Callable[..., keras.Model]


def ours(quantizer: Callable[[int, int], keras_vqvae.Quantizer], adapt: bool = False) -> Method:
    """Returns a method with our model. `quantizer` is called with the number of codes and the seed."""

    def make(encoder, decoder, num_embeddings: int, seed: int, train: np.ndarray):
        model = keras_vqvae.VQVAE(encoder, quantizer(num_embeddings, seed), decoder)
        if adapt:
            model.adapt(train[:5000], seed=seed, verbose=0)
        return model

    return make


def peer(codebook_size: Callable[[int], int] = int, **keywords) -> Method:
    """Returns a method with the peer's `VectorQuantize`, whose codebooks have `codebook_size(num_embeddings)` codes.

    Its `commitment_weight` scales both losses. At 0.25 the encoder's loss equals ours; the scale of the codebook's loss
    does not matter with Adam.
    """

    def make(encoder, decoder, num_embeddings: int, seed: int, train: np.ndarray):
        from vector_quantize_pytorch import VectorQuantize

        keywords_of_all = {
            "codebook_size": codebook_size(num_embeddings),
            "commitment_weight": 0.25,
            "decay": 0.99,
            "rotation_trick": False,
        }
        module = VectorQuantize(dim=32, **{**keywords_of_all, **keywords})
        return PeerVQVAE(encoder, Peer(module), decoder)

    return make


class Peer(layers.Layer):
    """Wraps a quantizer of the peer as a Keras layer, `[batch, height, width, D]` -> quantized vectors and indices."""

    def __init__(self, module):
        super().__init__()
        self.wrapped = layers.TorchModuleWrapper(module)

    def call(self, inputs, training=False):
        shape = inputs.shape
        quantized, indices, *loss = self.wrapped(inputs.reshape(shape[0], -1, shape[-1]), training=bool(training))
        if loss:
            self.add_loss(loss[0].sum())
        return quantized.reshape(shape), indices


class PeerVQVAE(keras.Model):
    def __init__(self, encoder, quantizer, decoder):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    def call(self, inputs, training=False):
        return self.autoencode(inputs, training)[0]

    def autoencode(self, inputs, training=False):
        latents, indices = self.quantizer(self.encoder(inputs), training=training)
        return self.decoder(latents), latents, indices


def peer_of(name: str, sizes: Callable[[int], dict] = lambda size: {}, **keywords) -> Method:
    """Returns a method with the peer's quantizer class `name`, with its defaults except for `keywords` and for
    `sizes(num_embeddings)`."""

    def make(encoder, decoder, num_embeddings: int, seed: int, train: np.ndarray):
        import vector_quantize_pytorch

        module = getattr(vector_quantize_pytorch, name)(dim=32, **sizes(num_embeddings), **keywords)
        return PeerVQVAE(encoder, Peer(module), decoder)

    return make


VQ = keras_vqvae.VectorQuantizer
METHODS: dict[str, Method] = {
    "default": ours(lambda size, seed: VQ(size, seed=seed)),
    "plain": ours(lambda size, seed: VQ(size, dead_code_threshold=0, seed=seed)),
    "plain + adapt": ours(lambda size, seed: VQ(size, dead_code_threshold=0, seed=seed), adapt=True),
    "rotation": ours(lambda size, seed: VQ(size, dead_code_threshold=0, estimator="rotation", seed=seed)),
    "EMA": ours(lambda size, seed: VQ(size, ema_decay=0.99, dead_code_threshold=0, seed=seed)),
    "EMA + rotation": ours(
        lambda size, seed: VQ(size, ema_decay=0.99, dead_code_threshold=0, estimator="rotation", seed=seed)
    ),
    "EMA + dead codes": ours(lambda size, seed: VQ(size, ema_decay=0.99, seed=seed)),
    "peer: plain": peer(learnable_codebook=True, ema_update=False),
    "peer: plain + k-means": peer(learnable_codebook=True, ema_update=False, kmeans_init=True),
    "peer: plain + dead codes": peer(learnable_codebook=True, ema_update=False, threshold_ema_dead_code=2),
    "peer: rotation": peer(learnable_codebook=True, ema_update=False, rotation_trick=True),
    "peer: EMA": peer(),
    "peer: EMA + rotation": peer(rotation_trick=True),
    "peer: EMA + dead codes": peer(threshold_ema_dead_code=2),
}

LEVELS = {64: (8, 8), 1024: (8, 5, 5, 5), 2**14: (8, 8, 8, 6, 5), 2**16: (8, 8, 8, 5, 5, 5)}
"""For each number of codes, the levels that the authors of FSQ recommend. Their product is near that number."""


def number_of_codes(name: str, num_embeddings: int) -> int:
    """Returns the number of codes, or of combinations of codes, of a method with about `num_embeddings`."""
    return math.prod(LEVELS[num_embeddings]) if name in ("FSQ", "peer: FSQ") else num_embeddings


def projected(quantizer: Callable[[int], keras_vqvae.Quantizer], dim: Callable[[int], int]) -> Method:
    """Returns a method with our quantizer in a space of `dim` dimensions. Both depend on the number of codes."""
    return ours(lambda size, seed: keras_vqvae.ProjectedQuantizer(quantizer(size), dim(size)))


def bits(size: int) -> int:
    return size.bit_length() - 1


def moving(size: int, seed: int, **keywords) -> keras_vqvae.VectorQuantizer:
    return VQ(size, ema_decay=0.99, seed=seed, **keywords)


def half(size: int, seed: int) -> keras_vqvae.VectorQuantizer:
    """Returns a codebook of `sqrt(size)` codes: two of them have `size` combinations."""
    return moving(math.isqrt(size), seed)


def estimated(estimator: str) -> Method:
    """Returns a method whose codebook learns from the reconstruction only, through the estimator."""
    return ours(lambda size, seed: VQ(size, estimator=estimator, commitment_weight=0, codebook_weight=0, seed=seed))


def codebook_size(size: int) -> dict:
    return {"codebook_size": size}


FAMILY: dict[str, Method] = {
    "VQ": ours(moving),
    "FSQ": projected(lambda size: keras_vqvae.FiniteScalarQuantizer(LEVELS[size]), lambda size: len(LEVELS[size])),
    "LFQ": projected(lambda size: keras_vqvae.LookupFreeQuantizer(bits(size)), bits),
    "BSQ": projected(lambda size: keras_vqvae.BinarySphericalQuantizer(bits(size)), bits),
    "SimVQ": ours(lambda size, seed: keras_vqvae.SimVectorQuantizer(size, seed=seed)),
    "SimVQ + rotation": ours(lambda size, seed: keras_vqvae.SimVectorQuantizer(size, estimator="rotation", seed=seed)),
    "IBQ": ours(lambda size, seed: keras_vqvae.IndexBackpropagationQuantizer(size, seed=seed)),
    "Gumbel": ours(lambda size, seed: keras_vqvae.GumbelQuantizer(size, seed=seed)),
    "DiVeQ": estimated("diveq"),
    "NSVQ": estimated("nsvq"),
    "residual of 2": ours(lambda size, seed: keras_vqvae.ResidualQuantizer(half(size, seed), 2)),
    "grouped, 2": ours(lambda size, seed: keras_vqvae.GroupedQuantizer(half(size, seed), 2)),
    "VQ in 8 dimensions": ours(lambda size, seed: keras_vqvae.ProjectedQuantizer(moving(size, seed), 8)),
    "peer: VQ": peer(threshold_ema_dead_code=2),
    "peer: FSQ": peer_of("FSQ", lambda size: {"levels": list(LEVELS[size])}),
    "peer: LFQ": peer_of("LFQ", codebook_size),
    "peer: BSQ": peer_of("LFQ", codebook_size, spherical=True),
    "peer: SimVQ": peer_of("SimVQ", codebook_size, rotation_trick=False),
    "peer: SimVQ + rotation": peer_of("SimVQ", codebook_size),
    "peer: Gumbel": peer(straight_through=True, stochastic_sample_codes=True),
    "peer: DiVeQ": peer(directional_reparam=True, threshold_ema_dead_code=2),
    "peer: residual of 2": peer_of(
        "ResidualVQ",
        lambda size: {"codebook_size": math.isqrt(size)},
        num_quantizers=2,
        decay=0.99,
        threshold_ema_dead_code=2,
        commitment_weight=0.25,
    ),
    "peer: grouped, 2": peer(
        math.isqrt, heads=2, separate_codebook_per_head=True, codebook_dim=16, threshold_ema_dead_code=2
    ),
    "peer: VQ in 8 dimensions": peer(codebook_dim=8, threshold_ema_dead_code=2),
}
"""Quantizers with about the same number of codes or combinations of codes each."""


def residual_scalars(depth: int) -> Method:
    return ours(
        lambda size, seed: keras_vqvae.ProjectedQuantizer(
            keras_vqvae.ResidualQuantizer(keras_vqvae.FiniteScalarQuantizer(), depth), 4
        )
    )


RESIDUALS: dict[str, Method] = {f"residual FSQ, {depth}": residual_scalars(depth) for depth in (1, 2, 3, 4)} | {
    f"peer: residual FSQ, {depth}": peer_of("ResidualFSQ", levels=[8, 5, 5, 5], num_quantizers=depth)
    for depth in (1, 2, 3, 4)
}
"""Residual FSQ with 1,000 codes per stage."""


def in_8_dimensions(depth: int) -> dict[str, Method]:
    """Residuals with a projection in each stage, as in the Descript codec, or one around all stages, as in the peer."""
    projected, residual = keras_vqvae.ProjectedQuantizer, keras_vqvae.ResidualQuantizer
    return {
        f"residual of projections, {depth}": ours(
            lambda size, seed: residual(projected(VQ(256, ema_decay=0.99, seed=seed), 8), depth)
        ),
        f"projected residual, {depth}": ours(
            lambda size, seed: projected(residual(VQ(256, ema_decay=0.99, seed=seed), depth), 8)
        ),
        f"peer: projected residual, {depth}": peer_of(
            "ResidualVQ",
            codebook_size=256,
            num_quantizers=depth,
            codebook_dim=8,
            decay=0.99,
            threshold_ema_dead_code=2,
            commitment_weight=0.25,
        ),
    }


PROJECTED: dict[str, Method] = {
    name: method for depth in (1, 2, 3, 4) for name, method in in_8_dimensions(depth).items()
}
"""Residuals with 256 codes per stage, in 8 dimensions."""

THRESHOLDS: dict[str, Method] = {
    f"EMA, threshold {threshold}": ours(
        lambda size, seed, threshold=threshold: moving(size, seed, dead_code_threshold=threshold)
    )
    for threshold in (0.1, 0.3, 0.5, 0.65)
}
"""Thresholds below which a code is dead, as fractions of the mean count."""


def of_length(length: float) -> Method:
    """Returns a method whose initial codes have about this length. Dead codes stay."""
    return ours(
        lambda size, seed: moving(
            size,
            seed,
            dead_code_threshold=0,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=length / 32**0.5, seed=seed),
        )
    )


LENGTHS: dict[str, Method] = {f"EMA, length {length}": of_length(length) for length in (1, 0.25, 0.04)}
"""Lengths of the initial codes. The rotation's default initializer makes codes of length 0.04, with 1,024 codes."""
ALL = METHODS | FAMILY | RESIDUALS | PROJECTED | THRESHOLDS | LENGTHS
