"""Random states on PyTorch that need no read from the device."""

import keras
import torch

from keras_vqvae.backend import torch_gradients
from keras_vqvae.types import Tensor


class SeedGenerator(keras.random.SeedGenerator):
    """Draws the same seeds as Keras's generator, and keeps a copy of the state's values on the host.

    Otherwise each draw would read them from the device, and the processor would wait.
    """

    _known: tuple[Tensor, int, list[int]] | None = None
    """The state, its version, and its values at that version. PyTorch increments the version at each change."""

    def next(self, ordered: bool = True) -> Tensor | list[int]:
        from keras_vqvae.backend import backend

        state = self.state.value
        if not ordered or backend.is_tracing() or backend.stateless_scope() is not None or state.is_inference():
            return super().next(ordered)
        if self._known is None or self._known[0] is not state or self._known[1] != state._version:
            self._known = state, state._version, state.tolist()
        seed = self._known[2]
        with torch.no_grad():
            state.add_(torch_gradients.constants((0, 1), state.dtype, state.device))
        self._known = state, state._version, [seed[0], seed[1] + 1]
        return seed
