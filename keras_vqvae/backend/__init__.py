"""The few things that `keras.ops` cannot say: `common`, and what another backend does otherwise.

The one module that knows which backend runs.

**Search.** A block of scores is written by a product and read again for its maximum. `BLOCK_SCORES`, 4 MB, stay
in a processor's cache in between; an accelerator wants larger tiles. The fastest way to the maximum and its
place differs: XLA fuses a comparison with the maximum, and is slow in `argmax` and `top_k`; PyTorch fuses nothing.

**Statistics.** Sums by code go through an index, never through one-hot rows.

**Replicas.** State that a layer updates in `call` must be the same in every replica. On JAX arrays are global, and so
is every sum over a batch. On PyTorch each process has its own part of the batch, and they must exchange their sums. On
TensorFlow an exchange within `call` corrupts the losses that `add_loss` gathers, without a word: so quantizers are
updated after `VQVAE` has read the losses, and there alone.
"""

import keras

if keras.backend.backend() == "jax":
    from keras_vqvae.backend.jax import *
elif keras.backend.backend() == "tensorflow":
    from keras_vqvae.backend.tensorflow import *
elif keras.backend.backend() == "torch":
    from keras_vqvae.backend.torch import *
else:
    from keras_vqvae.backend.common import *
