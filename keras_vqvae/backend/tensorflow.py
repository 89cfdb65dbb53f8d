"""TensorFlow: gradients of a gather are not dense, and replicas are refused."""

import tensorflow as tf
from keras import ops

from keras_vqvae.backend.common import *


def on_accelerator() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def is_traced(x: Tensor) -> bool:
    return tf.is_symbolic_tensor(x)


def map_blocks(function: Callable, blocks: Tensor, outputs: tuple) -> list[Tensor]:
    # `ops.map` would make lists of tensors, which OpenVINO does not take.
    def search(block: Tensor, *found: Tensor) -> tuple:
        news = function(blocks[:, block])
        return block + 1, *(tf.tensor_scatter_nd_update(f, [[block]], [n]) for f, n in zip(found, news, strict=True))

    n, count, _ = ops.shape(blocks)
    none = (0, *(tf.zeros((count, n, *shape), dtype) for shape, dtype in outputs))
    return tf.while_loop(lambda block, *_: block < count, search, none)[1:]


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    # The gradient of a gather is a list of rows, and Adam is wrong where a row occurs twice in it. That of a
    # product is dense.
    return ops.take(x * 1.0, indices, axis=0)


def sum_over_replicas(x: Tensor) -> Tensor:
    if tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise NotImplementedError(
            "A quantizer cannot be trained in several TensorFlow replicas: its statistics would differ between "
            "them. `keras.distribution.DataParallel` on JAX and `torch.distributed` on PyTorch keep them equal. "
            f"Received: a strategy of {tf.distribute.get_strategy().num_replicas_in_sync} replicas"
        )
    return x
