"""What `VQVAE.evaluate` and the callbacks ask of quantizers, wherever they lie in a model.

Compiled code sees what holds while it is traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from keras_vqvae.arguments import Tensor

SCORING = contextvars.ContextVar("scoring", default=False)
COUNTING = contextvars.ContextVar("counting", default=False)
SEEN: contextvars.ContextVar[list | None] = contextvars.ContextVar("seen", default=None)


@contextlib.contextmanager
def _inside(variable: contextvars.ContextVar, value: Any) -> Iterator[Any]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def scoring() -> contextlib.AbstractContextManager:
    """Inside, quantizers add their losses in inference too, as `VQVAE.evaluate` needs; they learn nothing from it."""
    return _inside(SCORING, True)


def counting() -> contextlib.AbstractContextManager:
    """Inside, quantizers count their codes in inference too, as `CodebookMonitor` needs of an evaluation."""
    return _inside(COUNTING, True)


def watching() -> contextlib.AbstractContextManager[list[tuple[Any, Tensor, Tensor]]]:
    """Inside, each call of a quantizer in eager code leaves itself, its vectors `[N, D]` and which of them are kept."""
    return _inside(SEEN, [])
