"""JAX: loops are compiled, and arrays are global, spread over the devices of `keras.distribution`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
from jax.sharding import PartitionSpec

from keras_vqvae.backend import common
from keras_vqvae.backend.common import *

# JAX has no int64 unless it is started otherwise.
COUNTER = "int32"
_LARGEST = 2**31 - 1


def on_accelerator(x: Tensor) -> bool:
    if isinstance(x, jax.Array) and not is_traced(x):
        return any(device.platform != "cpu" for device in x.devices())
    # A program runs on the device that `keras.device` names, or else on JAX's first.
    device = jax.config.jax_default_device
    return (jax.default_backend() if device is None else getattr(device, "platform", device)) != "cpu"


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


def with_batch(model: keras.Model, step_arguments: tuple[Any, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    # Keras hands the values of variables to a step. Those of seed generators are among the second.
    (trainable, others, *rest), batch = step_arguments
    mapping = list(zip(model.non_trainable_variables, others, strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        batch = change(batch)
    others = [scope.get_current_value(variable) for variable, _ in mapping]
    return (trainable, others, *rest), batch


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


def add_counts(counter: keras.Variable, counts: Tensor) -> None:
    # A count that is full stays so, as it would go on from below 0.
    counter.assign(jax.numpy.minimum(counter.value, _LARGEST - counts) + counts)


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
