"""The operations that `keras.ops` lacks: `base.Backend`, and a subclass for each backend that overrides some of them.

This is the only package that knows which backend runs.

**Search.** A product writes a block of scores, from which the search then reads the maximum. `BLOCK_SCORES` scores
(4 MB) stay in a processor's cache in between. An accelerator needs larger blocks. Finding a maximum is fast, and
finding its index is slow. Therefore the search reads all scores once, for the maxima of groups of 64 codes, and then
finds the index in the best group.

**Statistics.** Sums by code use indices, never one-hot rows.

**Replicas.** State that a layer updates in `call` must be the same in every replica. On JAX arrays are global, and so
is every sum over a batch. On PyTorch each process has its own part of the batch, and the processes must exchange their
sums. On TensorFlow an exchange within `call` silently corrupts the losses that `add_loss` collects. With
several replicas of TensorFlow, therefore, only `VQVAE` updates quantizers, after it has read the losses.
"""

import keras

from keras_vqvae.backend.base import Backend


def _running_backend() -> Backend:
    # Only one file is imported, because the other backends may not be installed.
    if keras.backend.backend() == "jax":
        from keras_vqvae.backend.jax import JaxBackend

        return JaxBackend()
    if keras.backend.backend() == "tensorflow":
        from keras_vqvae.backend.tensorflow import TensorFlowBackend

        return TensorFlowBackend()
    if keras.backend.backend() == "torch":
        from keras_vqvae.backend.torch import TorchBackend

        return TorchBackend()
    return Backend()


backend = _running_backend()
