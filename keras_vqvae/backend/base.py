"""The contract of all backends, in the general form that `keras.ops` allows."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
from keras import ops

from keras_vqvae.backend.gradients import Gradients
from keras_vqvae.types import Tensor

Returned = TypeVar("Returned")


class Backend(Gradients):
    """Operations that differ between backends. A subclass overrides those that its backend does differently.

    The base classes group the operations by subject. This class adds compiled programs, variables and replicas.
    """

    COUNTER = "int64"
    """Dtype of counts that last a whole training. An int32 would overflow after 2^31 vectors."""

    def stateless_scope(self) -> keras.StatelessScope | None:
        """The scope in which Keras's JAX trainer collects losses and updates of variables, if one is open."""
        with keras.StatelessScope(initialize_variables=False) as scope:
            return scope.original_scope

    def has_value(self, variable: keras.Variable) -> bool:
        """Whether a variable can be read. Keras's JAX trainer takes the values away while it trains."""
        return True

    def undonated(self, x: Tensor) -> Tensor:
        """Returns `x`, or a copy of it if a trainer may donate the memory of `x`."""
        return x

    def seed_generator(self, seed: int | None, name: str) -> keras.random.SeedGenerator:
        """Creates a random state for Keras's random functions."""
        return keras.random.SeedGenerator(seed, name=name)

    @staticmethod
    def jit(function: Callable[..., Returned], static_argnums: tuple[int, ...] = ()) -> Callable[..., Returned]:
        """Compiles `function`, if the backend would otherwise compile its loops again in each call."""
        return function

    def compile_draws(self, model: keras.Model) -> None:
        """Turns on compilation of `model.predict`, if it is faster and Keras leaves it off."""

    def with_batch(
        self, model: keras.Model, step_arguments: tuple[Any, ...], change: Callable[[Any], Any]
    ) -> tuple[Any, ...]:
        """Replaces the batch by `change(batch)` in the arguments of a model's `train_step` or `test_step`.

        `change` may draw from the model's seed generators.
        """
        return (change(step_arguments[0]),)

    @contextlib.contextmanager
    def local_predict(self, model: keras.Model) -> Iterator[None]:
        """Context in which `model.predict` does not wait for other processes."""
        yield

    def add_to(self, variable: keras.Variable, value: Tensor | float) -> None:
        """Adds a value to a variable."""
        variable.assign(variable + value)

    def move_to(self, variable: keras.Variable, target: Tensor, rate: Tensor) -> None:
        """Moves a variable towards a target, at a rate from 0 to 1."""
        value = ops.convert_to_tensor(variable)
        variable.assign(value + rate * (target - value))

    def add_product(self, variable: keras.Variable, a: Tensor, b: Tensor) -> None:
        """Adds `a * b` to a variable."""
        variable.assign(ops.convert_to_tensor(variable) + a * b)

    def replace_where(self, variable: keras.Variable, condition: Tensor, values: Tensor) -> None:
        """Assigns `values` to a variable where a condition holds."""
        variable.assign(ops.where(condition, values, ops.convert_to_tensor(variable)))

    def add_counts(self, counter: keras.Variable, counts: Tensor) -> None:
        """Adds int32 `counts` to a counter of dtype `COUNTER`."""
        counter.assign_add(counts)

    def replicas_in_turns(self) -> int:
        """Number of replicas of TensorFlow, by which Keras divides losses. It is 1 on other backends."""
        return 1

    def refuse_updates_in_call(self) -> None:
        """Raises an error if a layer cannot update its state within `call`."""

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        """Sum of `x` over all replicas. It is `x` itself if `x` is global or there is one replica."""
        return x

    def of_first_replica(self, x: Tensor) -> Tensor:
        """`x` of the first replica, for all replicas. It is `x` itself if `x` is global or there is one replica."""
        return x

    def mean_over_replicas(self, x: Tensor) -> Tensor:
        """Mean of `x` over all replicas.

        Only this replica's `x` gets the gradient, because gradients are averaged over replicas later.
        """
        return x

    def refuse_separate_training(self, model: keras.Model) -> None:
        """Raises an error if `fit` would train each replica separately."""
