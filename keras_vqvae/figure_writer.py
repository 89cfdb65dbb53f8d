"""A Keras callback that writes figures during training."""

import importlib.util
import io
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras

from keras_vqvae import validation
from keras_vqvae.backend import backend


class FigureWriter(keras.callbacks.Callback):
    """Writes figures after each epoch, as PNG files, and to TensorBoard if the package `tensorboard` is installed.

    You pass functions that take the model and draw the figures: reconstructions while a `VQVAE` trains, samples while a
    prior trains, or anything else. With several processes of `torch.distributed`, pass the callback in one of them
    only. Within the functions, the model's `predict` does not wait for the other processes.

    ```python
    def reconstructions(model):
        return plotting.plot_reconstructions(x, model.predict(x, verbose=0))


    def samples(prior):
        return plotting.plot_samples(model.sample(prior, 12, seed=0, verbose=0))


    model.fit(train, callbacks=[FigureWriter("pictures", {"reconstructions": reconstructions})])
    prior.fit(model.encode(train), callbacks=[FigureWriter("pictures", {"samples": samples})])
    ```

    Args:
        directory: Directory for the files `{name}_{epoch}.png`, with epochs from 1, and for TensorBoard's files.
        figures: A dict from names to functions. Each function takes the model and returns a matplotlib figure.
        every_n_epochs: Write the figures every `every_n_epochs` epochs. Defaults to `1`.
        dpi: Resolution of the files in dots per inch. Defaults to `100`.

    Raises:
        ValueError: If `figures` is not a dict of functions.

    Example:

    >>> import tempfile
    >>> from keras_vqvae import plotting
    >>> model = keras.Sequential([keras.Input((4,)), VectorQuantizer(num_embeddings=32)])
    >>> model.compile("adam", "mse")
    >>> x = keras.random.normal((64, 4))
    >>> use = lambda model: plotting.plot_code_use(model.layers[0].encode(x), num_embeddings=32)
    >>> directory = tempfile.mkdtemp()
    >>> history = model.fit(x, x, epochs=2, callbacks=[FigureWriter(directory, {"use": use})], verbose=0)
    >>> sorted(path.name for path in pathlib.Path(directory).glob("*.png"))
    ['use_0001.png', 'use_0002.png']
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        figures: dict[str, Callable[[Any], Any]],
        every_n_epochs: int = 1,
        dpi: int = 100,
    ):
        super().__init__()
        if not isinstance(figures, dict) or not all(map(callable, figures.values())):
            raise ValueError(
                "`figures` must be a dict from names to functions that take the model and return a figure. "
                f"Received: figures={figures!r}"
            )
        self.directory = pathlib.Path(directory)
        self.figures = figures
        self.every_n_epochs = validation.positive_int("every_n_epochs", every_n_epochs)
        self.dpi = validation.positive_int("dpi", dpi)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._events: Any = None
        if importlib.util.find_spec("tensorboard"):
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._events = EventFileWriter(str(self.directory))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if (epoch + 1) % self.every_n_epochs:
            return
        # On JAX, reading `self.model` brings its weights up to date.
        model = self.model
        for name, draw in self.figures.items():
            content = io.BytesIO()
            with backend.local_predict(model):
                figure = draw(model)
            figure.savefig(content, format="png", dpi=self.dpi)
            (self.directory / f"{name}_{epoch + 1:04}.png").write_bytes(content.getvalue())
            if self._events is not None:
                self._write_event(name, epoch, content.getvalue(), *figure.get_size_inches() * self.dpi)

    def _write_event(self, name: str, epoch: int, png: bytes, width: float, height: float) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        # With TensorBoard's own classes, which do not need TensorFlow. `colorspace=4` means RGBA.
        image = summary_pb2.Summary.Image(encoded_image_string=png, width=int(width), height=int(height), colorspace=4)
        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, image=image)])
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=epoch, summary=summary))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._events is not None:
            self._events.close()
