"""Trains a residual VQ-VAE on photographs, and compares it with JPEG on an unseen part at several rates.

    python examples/photographs.py
    KERAS_BACKEND=torch python examples/photographs.py --photograph-epochs 30 --stages 16

scikit-learn ships two photographs. The model is trained on random crops of them, without the left part of the first
photograph. That part is then reconstructed from the codes of the first stages. The script writes a page,
`index.html`, to the folder `--output`.
"""

import argparse
import io
import math

import keras
import numpy as np
import page
from keras import layers
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images

import keras_vqvae

PATCH = 8
"""Size of a patch: each vector stands for 8 x 8 pixels."""
DIM = 48
CROP = 64
BATCH = 16


def load() -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns `(unseen, seen)`: a part of a photograph, and the parts to train on, `[height, width, 3]` in 0..1."""
    temple, flower = (photograph.astype("float32") / 255 for photograph in load_sample_images().images)
    return temple[:352, :256], [temple[:, 256:], flower]


def crop(photographs: list[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Returns random crops `[count, CROP, CROP, 3]`, equally many of each photograph. Every second crop is mirrored."""
    generator = np.random.default_rng(seed)
    crops = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (generator.integers(size - CROP + 1) for size in photograph.shape[:2])
        crops.append(photograph[top : top + CROP, left : left + CROP, :][:, :: generator.choice([-1, 1])])
    return np.stack(crops)


def principal_components(crops: np.ndarray) -> np.ndarray:
    """Returns the first `DIM` principal components of patches, `[PATCH, PATCH, 3, DIM]`."""
    parts = CROP // PATCH
    patches = crops.reshape(-1, parts, PATCH, parts, PATCH, 3).swapaxes(2, 3).reshape(-1, 3 * PATCH**2)
    directions = np.linalg.eigh(patches.T @ patches)[1][:, -DIM:]
    return directions.reshape(PATCH, PATCH, 3, DIM)


def build(components: np.ndarray, num_embeddings: int, num_stages: int, seed: int) -> keras_vqvae.VQVAE:
    """Returns a model whose convolutions start as the principal components of patches."""

    def add_context(x):
        hidden = layers.Conv2D(128, 3, padding="same", activation="relu")(x)
        return x + layers.Conv2D(DIM, 1, kernel_initializer="zeros")(hidden)

    pixels, vectors = keras.Input((None, None, 3)), keras.Input((None, None, DIM))
    to_vectors = layers.Conv2D(DIM, PATCH, strides=PATCH, use_bias=False)
    to_pixels = layers.Conv2DTranspose(3, PATCH, strides=PATCH, use_bias=False)
    encoder = keras.Model(pixels, add_context(to_vectors(pixels)))
    decoder = keras.Model(vectors, to_pixels(add_context(vectors)))
    to_vectors.set_weights([components])
    to_pixels.set_weights([components])
    # Train with a random number of stages, so that the decoder works with any number.
    stage = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, seed=seed)
    residual = keras_vqvae.ResidualQuantizer(stage, num_stages, quantizer_dropout=1.0, seed=seed)
    return keras_vqvae.VQVAE(encoder, residual, decoder)


def signal_to_noise(image: np.ndarray, decoded: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of images in 0..1, in decibels."""
    return float(-10 * np.log10(np.mean(np.square(image - decoded))))


def jpeg(image: np.ndarray, num_bytes: float) -> tuple[np.ndarray, int]:
    """Returns `(decoded, bytes)` of the best JPEG within `num_bytes`, or the smallest. Tables are not counted."""
    pixels = Image.fromarray(np.round(255 * image).astype("uint8"))
    for quality in range(95, 0, -1):
        file = io.BytesIO()
        pixels.save(file, "jpeg", quality=quality, optimize=True)
        # Count only the image data from the scan marker on. The tables before it are left out, as our network is.
        size = len(file.getvalue()) - file.getvalue().index(b"\xff\xda")
        if size <= num_bytes:
            break
    return np.asarray(Image.open(file), "float32") / 255, size


def plot_rates(rows: list[list[tuple[str, np.ndarray]]]) -> Figure:
    """Draws images with their titles, row by row."""
    height, width = rows[0][0][1].shape[:2]
    columns, scale = len(rows[0]), 2.4 / width
    figure = Figure(figsize=(2.5 * columns, (scale * height + 0.55) * len(rows)), layout="constrained")
    for line, cells in zip(figure.subplots(len(rows), columns), rows, strict=True):
        for axis, (title, image) in zip(line, cells, strict=True):
            axis.imshow(image, cmap="turbo", interpolation="nearest" if image.ndim == 2 else None)
            axis.set_title(title, fontsize="medium")
            axis.axis("off")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--stage-codes", type=int, default=256, help="codes of each stage")
    parser.add_argument("--crops", type=int, default=1024, help="number of training crops of 64 x 64 pixels")
    parser.add_argument("--photograph-epochs", type=int, default=5)


def draw(arguments: argparse.Namespace) -> page.Sections:
    """Trains on photographs. Returns figures with their headings and captions."""
    unseen, seen = load()
    crops = crop(seen, arguments.crops, arguments.seed)
    model = build(principal_components(crops), arguments.stage_codes, arguments.stages, arguments.seed)
    # Initialize the codebooks with k-means, stage by stage, on some of the crops.
    model.adapt(crops[:64], seed=arguments.seed, verbose=0)
    epochs = arguments.photograph_epochs
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * math.ceil(len(crops) / BATCH))
    model.compile(keras.optimizers.Adam(rate))
    model.fit(crops, batch_size=BATCH, epochs=epochs, verbose=2)

    codes = model.encode(unseen[None], verbose=0)
    height, width, stages = codes.shape[1:]
    title = f"codes of stage 1,\n{height} x {width} of {arguments.stage_codes}"
    ours, theirs = [("original", unseen)], [(title, codes[0, ..., 0])]
    for count in (2**power for power in range(stages.bit_length())):
        # -1 means no code.
        first = np.where(np.arange(stages) < count, codes, -1)
        decoded = np.clip(model.decode(first, verbose=0)[0], 0, 1)
        num_bytes = count * height * width * math.log2(arguments.stage_codes) / 8
        compressed, size = jpeg(unseen, num_bytes)
        named = ((ours, f"{count} of {stages} stages", decoded, num_bytes), (theirs, "JPEG", compressed, size))
        for cells, name, image, each in named:
            bits, decibels = 8 * each / unseen[..., 0].size, signal_to_noise(unseen, image)
            cells.append((f"{name}\n{bits:.3g} bits/pixel, {decibels:.1f} dB", image))
            print(f"{name}: {bits:.3f} bits/pixel, {decibels:.2f} dB")
    return {
        "A photograph at several rates": (
            plot_rates([ours, theirs]),
            f"A part of a photograph that was not trained on. Each block of {PATCH} x {PATCH} pixels has one code per "
            f"stage, out of {arguments.stage_codes}. Below is JPEG with at most as many bits, or else its smallest "
            "file. The network and JPEG's tables are not counted. The model was trained on the other parts of two "
            "photographs. JPEG uses an entropy coder, and the codes do not.",
        )
    }


if __name__ == "__main__":
    page.command(__doc__, "photographs", (add_arguments, draw))
