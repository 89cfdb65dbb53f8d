"""An audio codec: 1D convolutions and a residual quantizer, of which any number of levels can be sent.

    python examples/audio_codec.py
    KERAS_BACKEND=torch python examples/audio_codec.py --folder recordings --epochs 200

Trains on all WAV files of a folder but the last, by default those of the Debian package `alsa-utils`. Of the last it
prints, for each number of levels, the bits a second and the signal-to-noise ratio, and writes what is heard.
"""

import argparse
import math
import pathlib

import keras
import numpy as np
from scipy import signal
from scipy.io import wavfile

import keras_vqvae

FILTERS = (32, 32, 64, 64, 128)
"""Each halves the rate: a vector stands for 32 samples."""


def load(path: pathlib.Path, rate: int) -> np.ndarray:
    """The first channel of a WAV file at another rate, float32 in -1..1."""
    own_rate, samples = wavfile.read(path)
    samples = samples if samples.ndim == 1 else samples[:, 0]
    if samples.dtype == "uint8":
        samples = (samples - 128.0) / 128
    elif samples.dtype.kind == "i":
        samples = samples / np.iinfo(samples.dtype).max
    common = math.gcd(rate, own_rate)
    return signal.resample_poly(samples, rate // common, own_rate // common).astype("float32")


def windows(sound: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Overlapping parts of a sound, `[windows, size, 1]`."""
    return np.lib.stride_tricks.sliding_window_view(sound, size)[::hop, :, None]


def build_codec(num_embeddings: int, num_levels: int, seed: int) -> keras_vqvae.VQVAE:
    sizes = {"embedding_dim": 32, "filters": FILTERS, "num_residual_blocks": 1}
    level = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, seed=seed)
    return keras_vqvae.VQVAE(
        keras_vqvae.build_conv_encoder((None, 1), **sizes),
        # Half of the windows are decoded from fewer levels in training, so that any number makes sense.
        keras_vqvae.ResidualQuantizer(level, num_levels, quantizer_dropout=0.5, seed=seed),
        keras_vqvae.build_conv_decoder((None, 1), **sizes),
    )


def first_levels(codes: np.ndarray, levels: int) -> np.ndarray:
    """Codes `[..., all levels]` of which so many are sent: the others are -1, which decodes to nothing."""
    return np.where(np.arange(codes.shape[-1]) < levels, codes, -1)


def signal_to_noise(sound: np.ndarray, decoded: np.ndarray) -> float:
    """In decibels."""
    return float(10 * np.log10(np.sum(np.square(sound)) / np.sum(np.square(sound - decoded))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default="/usr/share/sounds/alsa", help="of WAV files")
    parser.add_argument("--rate", type=int, default=16_000, help="samples a second")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--window", type=int, default=2048, help="samples of a training example")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=pathlib.Path, default="audio_codec")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    paths = sorted(arguments.folder.glob("*.wav"))
    if len(paths) < 2:
        parser.error(f"--folder needs two WAV files or more. Received: {len(paths)} in {arguments.folder}")
    *train, last = paths
    train = np.concatenate([windows(load(path, arguments.rate), arguments.window, 512) for path in train])
    scale = train.std()
    model = build_codec(arguments.codes, arguments.levels, arguments.seed)
    steps = arguments.epochs * math.ceil(len(train) / 16)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)))
    model.fit(train / scale, batch_size=16, epochs=arguments.epochs, verbose=2)

    # A whole number of vectors.
    sound = load(last, arguments.rate)
    sound = sound[: len(sound) // 2 ** len(FILTERS) * 2 ** len(FILTERS)]
    codes = model.encode(sound[None, :, None] / scale, verbose=0)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    wavfile.write(arguments.output_dir / "original.wav", arguments.rate, sound)
    print(f"{last.name}: {len(sound) / arguments.rate:.2f} s, {codes.shape[1]} x {codes.shape[2]} codes")
    for levels in range(1, arguments.levels + 1):
        decoded = scale * model.decode(first_levels(codes, levels), verbose=0)[0, :, 0]
        bits = levels * math.log2(arguments.codes) * arguments.rate / 2 ** len(FILTERS)
        print(f"{levels} levels: {bits / 1000:.1f} kbit/s, {signal_to_noise(sound, decoded):.1f} dB")
        path = arguments.output_dir / f"{levels}_levels.wav"
        wavfile.write(path, arguments.rate, np.clip(decoded, -1, 1).astype("float32"))


if __name__ == "__main__":
    main()
