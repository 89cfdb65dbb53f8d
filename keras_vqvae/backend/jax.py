"""JAX: loops are compiled, and arrays are global, spread over the devices of `keras.distribution`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
from jax.sharding import PartitionSpec

from keras_vqvae.backend import common
from keras_vqvae.backend.common import *


def on_accelerator() -> bool:
    return jax.default_backend() != "cpu"


def is_traced(x: Tensor) -> bool:
    return isinstance(x, jax.core.Tracer)


def undonated(x: Tensor) -> Tensor:
    # Keras's trainer donates its state, in which the same array must not be twice, nor one that others still read.
    return jax.numpy.copy(x)


def jit(function: Callable[..., Returned], static_argnums: tuple[int, ...] = ()) -> Callable[..., Returned]:
    # What is compiled depends on the distribution, too.
    compiled = jax.jit(
        lambda distribution, *arguments: function(*arguments), static_argnums=(0, *(1 + n for n in static_argnums))
    )

    @functools.wraps(function)
    def call(*arguments: Any) -> Returned:
        # Accelerators multiply float32 in fewer bits unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return compiled(keras.distribution.distribution(), *arguments)

    return call


def block_codes(num_embeddings: int) -> int:
    # The codebook may be spread over devices, and each is to search its own part all the time.
    spread = isinstance(keras.distribution.distribution(), keras.distribution.ModelParallel)
    return num_embeddings if spread else common.block_codes(num_embeddings)


def parts_of_rows(rows: int) -> int:
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    parts = distribution.device_mesh.backend_mesh.shape[distribution.batch_dim_name]
    return 1 if rows % parts else parts


def spread_rows(x: Tensor) -> Tensor:
    if parts_of_rows(x.shape[0]) == 1:
        return common.spread_rows(x)
    return keras.distribution.distribute_tensor(x, keras.distribution.distribution().get_data_layout(x.shape))


def _on_each_device(
    function: Callable[..., Tensor], in_specs: tuple[PartitionSpec, ...], out_specs: PartitionSpec
) -> Callable[..., Tensor]:
    """`function`, of what each device has, where XLA would gather what all have on each of them."""
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def best_places(scores: Tensor, count: int) -> Tensor:
    if parts_of_rows(scores.shape[0]) == 1:
        return common.best_places(scores, count)
    rows = PartitionSpec(keras.distribution.distribution().batch_dim_name)
    return _on_each_device(lambda part: common.best_places(part, count), (rows,), rows)(scores)


# Compiled, as outside of a program `shard_map` compiles each operation anew at every call.
@jit
def rows_of_ranks(kept: Tensor, ranks: Tensor) -> Tensor:
    if parts_of_rows(kept.shape[0]) == 1:
        return common.rows_of_ranks(kept, ranks)
    axis = keras.distribution.distribution().batch_dim_name

    def on_device(kept: Tensor, ranks: Tensor) -> Tensor:
        device, counts = jax.lax.axis_index(axis), jax.lax.all_gather(kept.sum(dtype="int32"), axis)
        ranks = ranks - (counts.cumsum() - counts)[device]
        found = device * kept.shape[0] + common.rows_of_ranks(kept, ranks)
        return jax.lax.psum(jax.numpy.where((ranks >= 0) & (ranks < counts[device]), found, 0), axis)

    return _on_each_device(on_device, (PartitionSpec(axis), PartitionSpec()), PartitionSpec())(kept, ranks)
