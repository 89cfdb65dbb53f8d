"""A loss of sounds that compares their spectrograms."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.losses.sample_loss import SampleLoss
from keras_vqvae.ops import spectrogram
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class SpectralLoss(SampleLoss):
    """The distance between the spectrograms of sounds, at several resolutions.

    The squared error of a waveform is dominated by its loudest frequencies, usually the lowest, and depends on
    inaudible phases. This loss compares the magnitudes `S` of short-time Fourier transforms, and their logarithms, in
    which quiet frequencies count as much as loud ones. For window size `i` it is

        mean |S_i - S'_i| + log_weight * mean |log S_i - log S'_i|

    and the value of a sound is its mean over `window_sizes`. Long windows resolve frequencies, short windows resolve
    time. The windows are Hann windows with a hop of a quarter of their size.

    The first term and `floor` are in units of the data. Train on data with a standard deviation close to 1. Spectral
    losses hardly constrain the phases, so this one works best when added to a loss of the waveform: see `LossSum`.

    Everything is computed in float32. If the predictions have a mask, masked steps are silent in both sounds, and the
    mean is over the valid steps. `sample_weight` has one value for each sound.

    Args:
        window_sizes: Sizes of the windows in steps, multiples of 4. Defaults to `(1024, 256, 64)`.
        log_weight: Weight of the difference of logarithms, at least 0. Defaults to `1.0`.
        floor: Magnitude of silence, above 0. White noise with a standard deviation of `floor` has an `|X|` of about
            `floor`. Magnitudes are `sqrt(|X|^2 + floor^2)`, so that quieter sounds do not count in the logarithms, and
            gradients at silence are finite. Defaults to `1e-3`.
        reduction: As for every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss. Defaults to `"spectral_loss"`.

    Call arguments:
        y_true: Sounds `[batch, steps]` or `[batch, steps, channels]`, in the order of
            `keras.config.image_data_format()`.
        y_pred: Their reconstructions, of the same shape.
        sample_weight: `[batch]`, optional.

    Raises:
        ValueError: If sounds are shorter than the largest window. Compiled code can check this only if the model's
            shape includes the number of steps.

    Example:

    >>> sounds = np.random.default_rng(0).normal(size=(2, 4096, 1))
    >>> loss = SpectralLoss()
    >>> float(loss(sounds, sounds)), bool(loss(sounds, 0.1 * sounds) > loss(sounds, 0.5 * sounds) > 0)
    (0.0, True)
    >>> model = keras.Sequential([keras.Input((4096, 1)), keras.layers.Conv1D(1, 9, padding="same")])
    >>> model.compile(loss=SpectralLoss())

    Reference:

    - [Engel et al., 2020](https://arxiv.org/abs/2001.04643), the multi-scale spectral loss, here with means in place of
      sums
    """

    def __init__(
        self,
        window_sizes: Any = (1024, 256, 64),
        log_weight: float = 1.0,
        floor: float = spectrogram.FLOOR,
        reduction: str | None = "sum_over_batch_size",
        name: str = "spectral_loss",
    ):
        super().__init__(reduction, name)
        self.window_sizes = spectrogram.window_sizes("window_sizes", window_sizes)
        self.log_weight = validation.non_negative("log_weight", log_weight)
        self.floor = validation.positive("floor", floor)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the distances `[batch]`."""
        if len(y_pred.shape) not in (2, 3):
            raise ValueError(
                "`y_pred` must be sounds of shape [batch, steps] or [batch, steps, channels]. "
                f"Received: y_pred of shape {tuple(y_pred.shape)}"
            )
        sounds = [_channels_before_steps(each) for each in (y_true, y_pred)]
        spectrogram.check_steps("y_pred", y_pred.shape, sounds[1].shape[-1], self.window_sizes)
        distances = [self._distance(sounds[0], sounds[1], size) for size in self.window_sizes]
        return sum(distances) / len(distances)

    def _distance(self, target: Tensor, sound: Tensor, window_size: int) -> Tensor:
        target, sound = (spectrogram.magnitudes(each, window_size, self.floor) for each in (target, sound))
        difference = ops.abs(target - sound) + self.log_weight * ops.abs(ops.log(target) - ops.log(sound))
        return ops.mean(difference, axis=(1, 2, 3))

    def get_config(self) -> dict[str, Any]:
        return {
            "window_sizes": self.window_sizes,
            "log_weight": self.log_weight,
            "floor": self.floor,
            **super().get_config(),
        }


def _channels_before_steps(sounds: Tensor) -> Tensor:
    """Returns sounds as `[batch, channels, steps]`."""
    if len(sounds.shape) == 2:
        return ops.expand_dims(sounds, 1)
    return sounds if spectrogram.channels_first() else ops.swapaxes(sounds, 1, 2)
