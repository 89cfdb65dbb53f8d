"""Replicas on PyTorch."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import torch
from torch import distributed

from keras_vqvae.backend.base import Backend
from keras_vqvae.types import Tensor


class Replicas(Backend):
    """Replicas are processes, each with its own part of the batch."""

    @contextlib.contextmanager
    def local_predict(self, model: keras.Model) -> Iterator[None]:
        if not (distributed.is_available() and distributed.is_initialized()):
            yield
            return

        def predict_batches(batches: Sequence[Any]) -> Any:
            with torch.no_grad():
                outputs = [model.predict_step(batch) for batch in batches]
            return keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

        # Keras 3.16 first wraps the model in `DistributedDataParallel`, which waits for all processes and rejects a
        # model without trainable weights. This function runs the model itself.
        made, model.predict_function = model.predict_function, predict_batches
        try:
            yield
        finally:
            model.predict_function = made

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        if not _alone():
            x = x.clone()
            distributed.all_reduce(x)
        return x

    def of_first_replica(self, x: Tensor) -> Tensor:
        if not _alone():
            # Some communication libraries do not support booleans.
            sent = x.to(torch.uint8) if x.dtype == torch.bool else x.clone()
            distributed.broadcast(sent, src=0)
            x = sent.to(x.dtype)
        return x

    def mean_over_replicas(self, x: Tensor) -> Tensor:
        # Replicas do not wait for each other in inference, because they may run different numbers of steps.
        if _alone() or not torch.is_grad_enabled():
            return x
        own = x.detach()
        return self.sum_over_replicas(own) / distributed.get_world_size() + (x - own)

    def refuse_separate_training(self, model: keras.Model) -> None:
        # Since Keras 3.16, `fit` averages gradients with `DistributedDataParallel`, and stores it as `ddp_model`.
        if not _alone() and not hasattr(model, "ddp_model"):
            raise NotImplementedError(
                "`fit` of Keras before 3.16 does not average gradients over the processes of `torch.distributed`, so "
                "each process would train a different encoder. Use Keras 3.16, or a training loop with "
                "`DistributedDataParallel` around the model. "
                f"Received: {distributed.get_world_size()} processes with Keras {keras.__version__}"
            )


def _alone() -> bool:
    """Whether this process is the only one."""
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
