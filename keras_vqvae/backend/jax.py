"""The backend for JAX."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
from jax.sharding import PartitionSpec

from keras_vqvae.backend.base import Backend, Returned
from keras_vqvae.types import Tensor


class JaxBackend(Backend):
    """Loops are compiled. Arrays are global, and `keras.distribution` shards them over the devices."""

    # By default, JAX has no int64.
    COUNTER = "int32"

    def on_accelerator(self, x: Tensor) -> bool:
        if isinstance(x, jax.Array) and not self.is_traced(x):
            return any(device.platform != "cpu" for device in x.devices())
        # A program runs on the device that `keras.device` names, or else on JAX's default backend.
        device = jax.config.jax_default_device
        return (jax.default_backend() if device is None else getattr(device, "platform", device)) != "cpu"

    def is_traced(self, x: Tensor) -> bool:
        return isinstance(x, jax.core.Tracer)

    def has_value(self, variable: keras.Variable) -> bool:
        return self.stateless_scope() is not None or variable._value is not None

    def undonated(self, x: Tensor) -> Tensor:
        # Keras's trainer donates its state. A donated array must not be in the state twice, or be read later.
        return jax.numpy.copy(x)

    @staticmethod
    def jit(function: Callable[..., Returned], static_argnums: tuple[int, ...] = ()) -> Callable[..., Returned]:
        # The distribution is an argument, because the program depends on it.
        compiled = jax.jit(
            lambda distribution, *arguments: function(*arguments), static_argnums=(0, *(1 + n for n in static_argnums))
        )

        @functools.wraps(function)
        def call(*arguments: Any) -> Returned:
            # Accelerators multiply float32 in fewer bits by default.
            with jax.default_matmul_precision("highest"):
                return compiled(keras.distribution.distribution(), *arguments)

        return call

    def with_batch(
        self, model: keras.Model, step_arguments: tuple[Any, ...], change: Callable[[Any], Any]
    ) -> tuple[Any, ...]:
        # Keras passes the values of variables to a step. The seed generators' values are among the non-trainable ones.
        (trainable, others, *rest), batch = step_arguments
        mapping = list(zip(model.non_trainable_variables, others, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            batch = change(batch)
        others = [scope.get_current_value(variable) for variable, _ in mapping]
        return (trainable, others, *rest), batch

    def block_codes(self, num_embeddings: int) -> int:
        # One block, so that every device searches its part of a sharded codebook at the same time.
        return num_embeddings if _codes_sharded() else super().block_codes(num_embeddings)

    def in_groups(self, num_embeddings: int) -> bool:
        # With a sharded codebook, the scores of the best group would have to cross devices.
        return not _codes_sharded() and super().in_groups(num_embeddings)

    def argmax(self, x: Tensor) -> Tensor:
        # `Search.argmax` takes a maximum, which XLA would compute from all scores, and not from the maxima of groups.
        return jax.lax.argmax(x, 1, "int32")

    def parts_of_rows(self, rows: int) -> int:
        distribution = keras.distribution.distribution()
        if distribution is None:
            return 1
        parts = distribution.device_mesh.backend_mesh.shape[distribution.batch_dim_name]
        return 1 if rows % parts else parts

    def spread_rows(self, x: Tensor) -> Tensor:
        if self.parts_of_rows(x.shape[0]) == 1:
            return super().spread_rows(x)
        return keras.distribution.distribute_tensor(x, keras.distribution.distribution().get_data_layout(x.shape))

    def add_counts(self, counter: keras.Variable, counts: Tensor) -> None:
        # Counts are limited to the largest integer. Otherwise they would overflow to negative numbers.
        counter.assign(jax.numpy.minimum(counter.value, jax.numpy.iinfo(self.COUNTER).max - counts) + counts)

    def best_indices(self, scores: Tensor, count: int) -> Tensor:
        best_indices = super().best_indices
        if self.parts_of_rows(scores.shape[0]) == 1:
            return best_indices(scores, count)
        # On each device separately, because XLA would gather all rows on every device.
        distribution = keras.distribution.distribution()
        mesh, rows = distribution.device_mesh.backend_mesh, PartitionSpec(distribution.batch_dim_name)
        own = functools.partial(best_indices, count=count)
        return jax.shard_map(own, mesh=mesh, in_specs=(rows,), out_specs=rows)(scores)


def _codes_sharded() -> bool:
    """Whether a codebook may be sharded."""
    return isinstance(keras.distribution.distribution(), keras.distribution.ModelParallel)
