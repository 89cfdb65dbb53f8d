"""Reads sounds, and measures the distance between two sounds."""

import math
import pathlib

import numpy as np
from scipy import signal
from scipy.io import wavfile

WINDOW, BANDS = 512, 64
"""Samples per spectrum, and bands per mel spectrum."""
SILENCE = 1e-4
"""Powers below it are silence: 40 dB below white noise of variance 1."""


def load(path: pathlib.Path, rate: int) -> np.ndarray:
    """Returns the first channel of a WAV file, resampled to `rate`, float32 in -1..1."""
    own_rate, samples = wavfile.read(path)
    samples = samples if samples.ndim == 1 else samples[:, 0]
    if samples.dtype == "uint8":
        samples = (samples - 128.0) / 128
    elif samples.dtype.kind == "i":
        samples = samples / np.iinfo(samples.dtype).max
    common = math.gcd(rate, own_rate)
    return signal.resample_poly(samples, rate // common, own_rate // common).astype("float32")


def loudness(sound: np.ndarray) -> float:
    """Returns the standard deviation, by which sounds are divided, or 1 for silence."""
    return float(sound.std()) or 1.0


def powers(sound: np.ndarray) -> np.ndarray:
    """Returns the power spectrogram `[frequency, time]`. Its mean is 1 for white noise of variance 1."""
    spectra = signal.stft(sound, nperseg=WINDOW, noverlap=WINDOW * 3 // 4)[2]
    # SciPy divides by the sum of the Hann window, whose squares sum to 3/8 of its size.
    return np.square(np.abs(spectra)) * WINDOW / 4 / 0.375


def mel_filters(rate: int) -> np.ndarray:
    """Returns triangular filters of equal width on the mel scale, `[bands, frequency]`."""
    mels = 2595 * np.log10(1 + np.linspace(0, rate / 2, WINDOW // 2 + 1) / 700)
    edges = np.linspace(0, mels[-1], BANDS + 2)
    rising, falling = mels - edges[:-2, None], edges[2:, None] - mels
    return np.maximum(0, np.minimum(rising, falling)) / edges[1]


def decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(power + SILENCE)


def spectral_distance(sound: np.ndarray, decoded: np.ndarray) -> float:
    """Returns the log-spectral distance in dB: root mean square over frequencies, then mean over time."""
    difference = decibels(powers(sound)) - decibels(powers(decoded))
    return float(np.sqrt(np.mean(np.square(difference), axis=0)).mean())


def mel_distance(sound: np.ndarray, decoded: np.ndarray, rate: int) -> float:
    """Returns the mean absolute difference of mel spectra, in dB."""
    filters = mel_filters(rate)
    return float(np.abs(decibels(filters @ powers(sound)) - decibels(filters @ powers(decoded))).mean())


def signal_to_distortion(sound: np.ndarray, decoded: np.ndarray) -> float:
    """Returns the scale-invariant signal-to-distortion ratio (SI-SDR), in dB."""
    target = sound * (sound @ decoded) / (sound @ sound)
    return float(10 * np.log10(np.sum(np.square(target)) / np.sum(np.square(target - decoded))))
