"""The rows of the study: ours and, on the torch backend, vector-quantize-pytorch's of the same kind."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

import keras_vqvae

Method = Callable[..., tuple[keras.Model, list]]


def ours(quantizer: Callable[[int, int], keras_vqvae.Quantizer], adapt: bool = False, every: int = 0) -> Method:
    """Our model; `quantizer` gets the number of codes and the seed."""

    def make(encoder, decoder, num_embeddings: int, seed: int, train: np.ndarray):
        model = keras_vqvae.VQVAE(encoder, quantizer(num_embeddings, seed), decoder)
        if adapt:
            model.adapt(train[:5000], seed=seed, verbose=0)
        callbacks = [keras_vqvae.ReviveDeadCodes(train, every=every, seed=seed)] if every else []
        return model, callbacks

    return make


def peer(**keywords) -> Method:
    """The same of the peer. Its one weight is that of both losses: at .25 the encoder's is ours, and Adam does not see
    the scale of the codebook's."""

    def make(encoder, decoder, num_embeddings: int, seed: int, train: np.ndarray):
        from vector_quantize_pytorch import VectorQuantize

        keywords_of_all = {"commitment_weight": 0.25, "decay": 0.99, "rotation_trick": False}
        module = VectorQuantize(dim=32, codebook_size=num_embeddings, **{**keywords_of_all, **keywords})
        return PeerVQVAE(encoder, Peer(module), decoder), []

    return make


class Peer(layers.Layer):
    """A quantizer of the peer as a Keras layer: `[batch, height, width, D]` -> the same and indices."""

    def __init__(self, module):
        super().__init__()
        self.wrapped = layers.TorchModuleWrapper(module)

    def call(self, inputs, training=False):
        shape = inputs.shape
        quantized, indices, loss = self.wrapped(inputs.reshape(shape[0], -1, shape[-1]), training=bool(training))[:3]
        self.add_loss(loss.sum())
        return quantized.reshape(shape), indices


class PeerVQVAE(keras.Model):
    def __init__(self, encoder, quantizer, decoder):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    def call(self, inputs, training=False):
        return self.decoder(self.quantizer(self.encoder(inputs), training=training)[0])

    def encode(self, x, batch_size: int, verbose: int) -> np.ndarray:
        batches = [self.quantizer(self.encoder(x[i : i + batch_size]))[1] for i in range(0, len(x), batch_size)]
        return np.concatenate([ops.convert_to_numpy(batch) for batch in batches])


VQ = keras_vqvae.VectorQuantizer
METHODS: dict[str, Method] = {
    "plain": ours(lambda size, seed: VQ(size, seed=seed)),
    "plain + adapt": ours(lambda size, seed: VQ(size, seed=seed), adapt=True),
    "plain + revive": ours(lambda size, seed: VQ(size, seed=seed), every=100),
    "rotation": ours(lambda size, seed: VQ(size, estimator="rotation", seed=seed)),
    "EMA": ours(lambda size, seed: VQ(size, ema_decay=0.99, dead_code_threshold=0, seed=seed)),
    "EMA + rotation": ours(
        lambda size, seed: VQ(size, ema_decay=0.99, dead_code_threshold=0, estimator="rotation", seed=seed)
    ),
    "EMA + dead codes": ours(lambda size, seed: VQ(size, ema_decay=0.99, seed=seed)),
    "peer: plain": peer(learnable_codebook=True, ema_update=False),
    "peer: plain + k-means": peer(learnable_codebook=True, ema_update=False, kmeans_init=True),
    "peer: plain + revive": peer(learnable_codebook=True, ema_update=False, threshold_ema_dead_code=2),
    "peer: rotation": peer(learnable_codebook=True, ema_update=False, rotation_trick=True),
    "peer: EMA": peer(),
    "peer: EMA + rotation": peer(rotation_trick=True),
    "peer: EMA + dead codes": peer(threshold_ema_dead_code=2),
}
