"""Pictures of a quantizer at work, as matplotlib figures: `figure.savefig("name.png")`."""

import numpy as np
from matplotlib.figure import Figure

from keras_vqvae import arguments


def _strips(rows: list[tuple[str, np.ndarray, dict]], max_images: int, title: str) -> Figure:
    """One strip of images a row, with the row's name in front."""
    columns = min(arguments.positive_int("max_images", max_images), len(rows[0][1]))
    figure = Figure(figsize=(columns + 1.2, len(rows) + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images, keywords) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, rotation="horizontal", horizontalalignment="right", verticalalignment="center")
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, **keywords)
            axis.set(xticks=[], yticks=[], frame_on=False)
    return figure


def _grey(images: np.ndarray) -> dict:
    return {"cmap": "gray", "vmin": 0, "vmax": 1} if images.ndim == 3 or images.shape[-1] == 1 else {}


def plot_reconstructions(images: np.ndarray, reconstructions: np.ndarray, max_images: int = 12) -> Figure:
    """Draws originals above their reconstructions.

    Args:
        images: `[samples, height, width]` or `[samples, height, width, channels]`, in 0..1.
        reconstructions: Of the same shape; clipped to 0..1.
        max_images: How many to draw. Defaults to `12`.
    """
    images, reconstructions = np.asarray(images), np.clip(reconstructions, 0, 1)
    if images.shape != reconstructions.shape:
        raise ValueError(
            "`images` and `reconstructions` must have one shape. "
            f"Received: images of shape {images.shape}, reconstructions of shape {reconstructions.shape}"
        )
    error = np.mean(np.square(images - reconstructions))
    return _strips(
        [("original", images, _grey(images)), ("reconstruction", reconstructions, _grey(images))],
        max_images,
        f"Reconstructions: mean squared error {error:.4f} on {len(images):,} images",
    )


def plot_code_maps(images: np.ndarray, codes: np.ndarray, num_embeddings: int, max_images: int = 12) -> Figure:
    """Draws images above the maps of their codes, one colour a code.

    Args:
        images: `[samples, height, width]` or `[samples, height, width, channels]`, in 0..1.
        codes: Integers `[samples, rows, columns]`.
        num_embeddings: Number of codes.
        max_images: How many to draw. Defaults to `12`.
    """
    images, codes = np.asarray(images), np.asarray(codes)
    if codes.ndim != 3:
        raise ValueError(f"`codes` must have shape [samples, rows, columns]. Received: codes of shape {codes.shape}")
    colours = {"cmap": "turbo", "vmin": 0, "vmax": num_embeddings - 1, "interpolation": "nearest"}
    return _strips(
        [("image", images, _grey(images)), ("codes", codes, colours)],
        max_images,
        f"Codes: {codes.shape[1]} x {codes.shape[2]} an image, one colour for each of {num_embeddings}",
    )


def plot_code_use(codes: np.ndarray, num_embeddings: int) -> Figure:
    """Draws how often each code is used, most used first, beside uniform use.

    Args:
        codes: Integers of any shape.
        num_embeddings: Number of codes.
    """
    counts = np.sort(np.bincount(np.ravel(codes), minlength=num_embeddings))[::-1]
    shares = counts / counts.sum()
    used = shares[shares > 0]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    # In steps: bars narrower than a pixel vanish in large codebooks.
    axis.stairs(shares, fill=True)
    axis.axhline(1 / num_embeddings, color="black", linestyle="dashed", linewidth=1, label="uniform use")
    axis.set(xlabel="code, by rank", ylabel="share of positions", xlim=(0, num_embeddings))
    axis.set_title(
        f"Use of the codebook: {len(used)} of {num_embeddings} codes, "
        f"perplexity {np.exp(-np.sum(used * np.log(used))):.0f}"
    )
    axis.legend()
    return figure
