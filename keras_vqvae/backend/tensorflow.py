"""TensorFlow: gradients of a gather are not dense, and replicas are threads that take turns."""

import warnings
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import ops

from keras_vqvae.backend.common import *


def on_accelerator(x: Tensor) -> bool:
    # In a graph a tensor has a device only where `keras.device` named one.
    if device := getattr(x, "device", ""):
        return "CPU" not in device.upper()
    return bool(tf.config.get_visible_devices("GPU"))


def compile_draws(model: keras.Model) -> None:
    # Keras leaves XLA out on a processor, where a loop of small steps takes a quarter of the time with it.
    if replicas_in_turns() == 1:
        with warnings.catch_warnings():
            # Where XLA cannot be had, Keras says so, and goes on without.
            warnings.simplefilter("ignore")
            model.jit_compile = True


def is_traced(x: Tensor) -> bool:
    return tf.is_symbolic_tensor(x)


def map_blocks(function: Callable[[Tensor], Sequence[Tensor]], blocks: Tensor, outputs: Outputs) -> Sequence[Tensor]:
    # `ops.map` would make lists of tensors, which OpenVINO does not take.
    def search(block: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
        news = function(blocks[:, block])
        return block + 1, *(tf.tensor_scatter_nd_update(f, [[block]], [n]) for f, n in zip(found, news, strict=True))

    n, count, _ = ops.shape(blocks)
    none = (0, *(tf.zeros((count, n, *shape), dtype) for shape, dtype in outputs))
    return tf.while_loop(lambda block, *_: block < count, search, none)[1:]


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    # The gradient of a gather is a list of rows, and Adam is wrong where a row occurs twice in it. That of a
    # product is dense.
    return ops.take(x * 1.0, indices, axis=0)


def searchsorted(ascending: Tensor, values: Tensor) -> Tensor:
    # That of Keras 3.10 asks for a length that a graph does not know.
    return tf.searchsorted(ascending, values)


def replicas_in_turns() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def refuse_updates_in_call() -> None:
    # An exchange lets the other replicas run, and Keras keeps the losses of all of them in one list.
    if replicas_in_turns() > 1:
        raise NotImplementedError(
            "In several TensorFlow replicas a quantizer can be trained by `VQVAE.fit` alone: elsewhere its statistics "
            "would differ between them. `keras.distribution.DataParallel` on JAX and `torch.distributed` on PyTorch "
            f"keep them equal. Received: a strategy of {replicas_in_turns()} replicas"
        )


def _replica() -> tf.distribute.ReplicaContext | None:
    """The replica that takes its turn, if there are several; none outside of a step, where all see the same."""
    return tf.distribute.get_replica_context() if replicas_in_turns() > 1 else None


def sum_over_replicas(x: Tensor) -> Tensor:
    replica = _replica()
    return x if replica is None else replica.all_reduce("sum", x)


def of_first_replica(x: Tensor) -> Tensor:
    replica = _replica()
    if replica is None:
        return x
    numbers = ops.cast(x, "float32")
    first = ops.where(replica.replica_id_in_sync_group == 0, numbers, ops.zeros_like(numbers))
    return ops.cast(replica.all_reduce("sum", first), x.dtype)


def mean_over_replicas(x: Tensor) -> Tensor:
    if _replica() is not None:
        raise NotImplementedError(
            "The entropy of a batch cannot be had in several TensorFlow replicas, but with JAX's "
            "`keras.distribution.DataParallel` and PyTorch's `torch.distributed`. "
            f"Received: a strategy of {replicas_in_turns()} replicas"
        )
    return x
