"""The one module that knows which backend runs, for what `keras.ops` cannot say: training in several replicas.

State that a layer updates in `call` must be the same in every replica. On JAX arrays are global, and so is every sum
over a batch. On PyTorch each process has its own part of the batch, and they must exchange their sums. On TensorFlow an
exchange within `call` corrupts the losses that `add_loss` gathers, without a word: there we stop.
"""

import keras

from keras_vqvae.arguments import Tensor

if keras.backend.backend() == "torch":
    from torch import distributed

    def _alone() -> bool:
        return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)

    def sum_over_replicas(x: Tensor) -> Tensor:
        """The sum of `x` over all replicas; `x` itself where there is one."""
        if not _alone():
            distributed.all_reduce(x)
        return x

    def of_first_replica(x: Tensor) -> Tensor:
        """The first replica's `x`, in every replica."""
        if not _alone():
            distributed.broadcast(x, src=0)
        return x

elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def sum_over_replicas(x: Tensor) -> Tensor:
        """`x` itself, for there is one replica."""
        if tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise NotImplementedError(
                "A quantizer cannot be trained in several TensorFlow replicas: its statistics would differ between "
                "them. `keras.distribution.DataParallel` on JAX and `torch.distributed` on PyTorch keep them equal. "
                f"Received: a strategy of {tf.distribute.get_strategy().num_replicas_in_sync} replicas"
            )
        return x

    def of_first_replica(x: Tensor) -> Tensor:
        """`x` itself, for there is one replica."""
        return x

else:

    def sum_over_replicas(x: Tensor) -> Tensor:
        """`x` itself, for it is global."""
        return x

    def of_first_replica(x: Tensor) -> Tensor:
        """`x` itself, for it is global."""
        return x
