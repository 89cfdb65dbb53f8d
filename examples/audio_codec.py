"""Trains an audio codec of 1D convolutions and a residual quantizer. Sounds can be sent with any number of its stages.

    python examples/speech.py speech
    KERAS_BACKEND=torch python examples/audio_codec.py --folder speech
    KERAS_BACKEND=torch python examples/audio_codec.py --codec audio_codec/codec.keras --file another.wav

It trains on all WAV files of a folder except the last one, and saves the codec. The default folder belongs to the
Debian package `alsa-utils`. Then it packs the indices of the last file, or of `--file`, into one file for each number
of stages, and decodes these files. It prints their bit rates, two distances and the signal-to-distortion ratio, and
writes the decoded sounds.
"""

import argparse
import pathlib

import keras
import numpy as np
from codec_networks import build_decoder, build_encoder
from packed_codes import HEADER, Packed, bits_per_index, pack, unpack
from scipy.io import wavfile
from sounds import load, loudness, mel_distance, signal_to_distortion, spectral_distance

import keras_vqvae

RATE = 16_000
WIDTH, DIM, BLOCKS = 128, 32, 2
"""Channels of the networks, size of a vector, and number of residual blocks."""
BATCH = 16


def windows(sound: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Returns windows of the sound, scaled to a standard deviation of 1, `[windows, size, 1]`."""
    return np.lib.stride_tricks.sliding_window_view(sound / loudness(sound), size)[::hop, :, None]


def build_codec(arguments: argparse.Namespace) -> keras_vqvae.VQVAE:
    sizes = arguments.stride, WIDTH, DIM, BLOCKS, not arguments.look_ahead
    encoder, decoder = build_encoder(*sizes), build_decoder(*sizes)
    # The commitment losses of all stages add up.
    settings = {"ema_decay": 0.99, "commitment_weight": 0.25 / arguments.stages}
    stage = keras_vqvae.VectorQuantizer(arguments.codes, seed=arguments.seed, **settings)
    # In training, every window is decoded from a random number of stages, so that the decoder works with any number.
    dropout = {"quantizer_dropout": 1.0, "seed": arguments.seed}
    quantizer = keras_vqvae.ResidualQuantizer(stage, arguments.stages, **dropout)
    if not arguments.adversarial:
        return keras_vqvae.VQVAE(encoder, quantizer, decoder)
    judge = keras_vqvae.build_spectrogram_discriminator((arguments.window, 1), (512, 128), filters=(16, 32))
    return keras_vqvae.VQGAN(encoder, quantizer, decoder, judge, adversarial_weight=arguments.adversarial)


def train(codec: keras_vqvae.VQVAE, x: np.ndarray, spectral: float, epochs: int) -> None:
    losses = [keras.losses.MeanSquaredError(), keras_vqvae.SpectralLoss()]
    loss = keras_vqvae.LossSum(losses, [1.0, spectral]) if spectral else losses[0]
    steps = epochs * -(-len(x) // BATCH)
    codec.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), loss=loss)
    codec.fit(x, batch_size=BATCH, epochs=epochs, verbose=2)


def stride_of(codec: keras_vqvae.VQVAE) -> int:
    """Returns the number of samples per vector, which is the largest stride in the encoder."""
    return max(layer.strides[0] for layer in codec.encoder.layers if hasattr(layer, "strides"))


def is_causal(codec: keras_vqvae.VQVAE) -> bool:
    try:
        return codec.latency > 0
    except ValueError:
        return False


def encode(codec: keras_vqvae.VQVAE, sound: np.ndarray) -> Packed:
    size = loudness(sound)
    codes = codec.encode(sound[None, :, None] / size, verbose=0)[0]
    return Packed(codes, len(sound), RATE, size)


def decode(codec: keras_vqvae.VQVAE, packed: Packed) -> np.ndarray:
    return packed.loudness * codec.decode(packed.codes[None], size=packed.samples, verbose=0)[0, :, 0]


def streams_alike(codec: keras_vqvae.VQVAE, sound: np.ndarray) -> tuple[float, float]:
    """Streams a sound in parts of 20 ms. Returns the fraction of equal indices and the largest sample difference."""
    x = sound[None, :, None] / loudness(sound)
    codes, whole = codec.encode(x, verbose=0), codec.predict(x, verbose=0)
    parts = np.split(x, range(RATE // 50, len(sound), RATE // 50), axis=1)
    in_parts = list(codec.encode_stream(parts))
    decoded = np.concatenate(list(codec.decode_stream(in_parts)), axis=1)[:, : len(sound)]
    return np.mean(np.concatenate(in_parts, axis=1) == codes), np.abs(decoded - whole).max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = pathlib.Path("/usr/share/sounds/alsa")
    parser.add_argument("--folder", type=pathlib.Path, nargs="+", default=[folder], help="folders of WAV files")
    parser.add_argument("--codec", type=pathlib.Path, help="saved codec to load instead of training one")
    parser.add_argument("--file", type=pathlib.Path, help="WAV file to encode; by default the last one of the folders")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--stride", type=int, default=64, help="samples per vector")
    parser.add_argument("--look-ahead", action="store_true", help="make the codec non-causal; it then cannot stream")
    parser.add_argument("--window", type=int, default=2048, help="samples per training example")
    parser.add_argument("--hop", type=int, default=4096, help="samples between the starts of training examples")
    parser.add_argument("--spectral", type=float, default=0.25, help="weight of the spectral loss")
    parser.add_argument("--adversarial", type=float, default=0, help="weight of a discriminator of spectrograms")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="audio_codec", help="folder of the outputs")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    paths = [path for folder in arguments.folder for path in sorted(folder.glob("*.wav"))]
    if arguments.codec is None and len(paths) < 2:
        parser.error(f"--folder needs two WAV files or more. Received: {len(paths)} in {arguments.folder}")
    if arguments.codec is not None and arguments.file is None:
        parser.error("--codec needs a --file")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.codec is None:
        sounds = [load(path, RATE) for path in paths[:-1]]
        x = np.concatenate([windows(s, arguments.window, arguments.hop) for s in sounds if len(s) >= arguments.window])
        codec = build_codec(arguments)
        train(codec, x, arguments.spectral, arguments.epochs)
        codec.save(arguments.output / "codec.keras")
    else:
        codec = keras.models.load_model(arguments.codec)

    path = arguments.file or paths[-1]
    sound = load(path, RATE)
    whole, stride = encode(codec, sound), stride_of(codec)
    wavfile.write(arguments.output / "original.wav", RATE, sound)
    print(f"{path.name}: {len(sound) / RATE:.2f} s, {whole.codes.shape[0]} x {whole.codes.shape[1]} indices")
    print("| stages | kbit/s | bytes | log-spectral dB | mel dB | SI-SDR dB |\n| --- | --- | --- | --- | --- | --- |")
    for stages in range(1, whole.codes.shape[1] + 1):
        file = arguments.output / f"{stages}_stages.vqs"
        file.write_bytes(pack(whole._replace(codes=whole.codes[:, :stages]), codec.quantizer.num_embeddings))
        # A receiver needs only the codec and this file.
        decoded = decode(codec, unpack(file.read_bytes(), stride))
        wavfile.write(file.with_suffix(".wav"), RATE, np.clip(decoded, -1, 1).astype("float32"))
        bits = stages * bits_per_index(codec.quantizer.num_embeddings) * RATE / stride
        pair = sound / whole.loudness, decoded / whole.loudness
        distances = spectral_distance(*pair), mel_distance(*pair, RATE), signal_to_distortion(*pair)
        row = (stages, f"{bits / 1000:.1f}", file.stat().st_size - HEADER.size, *(f"{each:.2f}" for each in distances))
        print(f"| {' | '.join(map(str, row))} |")
    if is_causal(codec):
        alike, difference = streams_alike(codec, sound)
        print(f"in parts of 20 ms: {alike:.2%} of the indices are equal, samples differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
