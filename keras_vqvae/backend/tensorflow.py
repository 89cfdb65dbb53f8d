"""The backend for TensorFlow."""

import warnings
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import ops

from keras_vqvae.backend.base import Backend
from keras_vqvae.backend.rows import Outputs
from keras_vqvae.types import Tensor


class TensorFlowBackend(Backend):
    """Gradients of a gather are not dense. Replicas are threads that take turns."""

    def on_accelerator(self, x: Tensor) -> bool:
        # In a graph, a tensor has a device only if `keras.device` sets one.
        if device := getattr(x, "device", ""):
            return "CPU" not in device.upper()
        return bool(tf.config.get_visible_devices("GPU"))

    def compile_draws(self, model: keras.Model) -> None:
        # Keras does not use XLA on a processor, although it makes a loop of small steps 4 times as fast.
        if self.replicas_in_turns() == 1:
            with warnings.catch_warnings():
                # Keras warns where XLA is not available, and continues without it.
                warnings.simplefilter("ignore")
                model.jit_compile = True

    def is_traced(self, x: Tensor) -> bool:
        return tf.is_symbolic_tensor(x)

    def map_blocks(
        self, function: Callable[[Tensor], Sequence[Tensor]], blocks: Tensor, outputs: Outputs
    ) -> Sequence[Tensor]:
        # `ops.map` would create lists of tensors, which OpenVINO does not support.
        def step(block: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
            pairs = zip(found, function(blocks[:, block]), strict=True)
            return block + 1, *(tf.tensor_scatter_nd_update(old, [[block]], [new]) for old, new in pairs)

        n, count, _ = ops.shape(blocks)
        start = (0, *(tf.zeros((count, n, *shape), dtype) for shape, dtype in outputs))
        return tf.while_loop(lambda block, *_: block < count, step, start)[1:]

    def argmax(self, x: Tensor) -> Tensor:
        # `Search.argmax` takes a maximum, which XLA would compute from all scores, and not from the maxima of groups.
        return tf.argmax(x, 1, "int32")

    def pick_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        # `ops.take_along_axis` of Keras 3.15 gathers each number with its own index. Outside of XLA, the search would
        # take 1.5 times as long.
        return tf.gather(x, indices, batch_dims=1)

    def gather_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        # The gradient of a gather is a list of rows, and in Keras 3.15 Adam is wrong if a row occurs twice in it.
        # The gradient of a product is dense.
        return ops.take(x * 1.0, indices, axis=0)

    def replicas_in_turns(self) -> int:
        return tf.distribute.get_strategy().num_replicas_in_sync

    def refuse_updates_in_call(self) -> None:
        # An exchange lets the other replicas run, and Keras keeps the losses of all replicas in one list.
        if self.replicas_in_turns() > 1:
            raise NotImplementedError(
                "With several TensorFlow replicas, only `VQVAE.fit` can train a quantizer. In other models its "
                "statistics would differ between replicas. Use `VQVAE`, `DataParallel` on JAX, or "
                "`torch.distributed` on PyTorch. "
                f"Received: a strategy of {self.replicas_in_turns()} replicas"
            )

    def _replica(self) -> tf.distribute.ReplicaContext | None:
        """The running replica. `None` if there is only one replica, and outside of a step."""
        return tf.distribute.get_replica_context() if self.replicas_in_turns() > 1 else None

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        replica = self._replica()
        return x if replica is None else replica.all_reduce("sum", x)

    def of_first_replica(self, x: Tensor) -> Tensor:
        replica = self._replica()
        if replica is None:
            return x
        numbers = ops.cast(x, "float32")
        first = ops.where(replica.replica_id_in_sync_group == 0, numbers, ops.zeros_like(numbers))
        return ops.cast(replica.all_reduce("sum", first), x.dtype)

    def mean_over_replicas(self, x: Tensor) -> Tensor:
        if self._replica() is not None:
            raise NotImplementedError(
                "Entropy losses are not supported with several TensorFlow replicas. Use `entropy_weight=0` and no "
                "`AssignmentEntropy`, or use `DataParallel` on JAX, or `torch.distributed` on PyTorch. "
                f"Received: a strategy of {self.replicas_in_turns()} replicas"
            )
        return x
