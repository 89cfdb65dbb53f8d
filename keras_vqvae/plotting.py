"""Plots of reconstructions, samples and codes, as matplotlib figures: `figure.savefig("name.png")`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops
from matplotlib.figure import Figure

from keras_vqvae import metrics, validation
from keras_vqvae.ops import codebook


def _strips(rows: list[tuple[str, np.ndarray, dict[str, Any]]], max_images: int, title: str) -> Figure:
    """Draws rows of images, each with its name in front."""
    columns = min(validation.positive_int("max_images", max_images), len(rows[0][1]))
    for _, images, _ in rows:
        if images.ndim not in (3, 4):
            raise ValueError(
                "`images` must have shape [samples, height, width] or [samples, height, width, channels]. "
                f"Received: images of shape {images.shape}"
            )
    figure = Figure(figsize=(columns + 1.2, len(rows) + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images, keywords) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, rotation="horizontal", horizontalalignment="right", verticalalignment="center")
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, **keywords)
            axis.set(xticks=[], yticks=[], frame_on=False)
    return figure


def _grey(images: np.ndarray) -> dict[str, Any]:
    return {"cmap": "gray", "vmin": 0, "vmax": 1} if images.ndim == 3 or images.shape[-1] == 1 else {}


def plot_reconstructions(
    images: np.ndarray, reconstructions: np.ndarray | dict[str, np.ndarray], max_images: int = 12
) -> Figure:
    """Draws originals above their reconstructions.

    Args:
        images: `[samples, height, width]` or `[samples, height, width, channels]`, in 0..1.
        reconstructions: Images of the same shape, clipped to 0..1. Or a dict of several by name, for example with more
            and more codes.
        max_images: Number of images to draw. Defaults to `12`.
    """
    if not isinstance(reconstructions, dict):
        reconstructions = {"reconstruction": reconstructions}
    images, rows, errors = np.asarray(images), [], []
    for name, pictures in reconstructions.items():
        pictures = np.clip(pictures, 0, 1)
        if images.shape != pictures.shape:
            raise ValueError(
                "`reconstructions` must have the shape of `images`. "
                f"Received: images of shape {images.shape}, reconstructions of shape {pictures.shape}"
            )
        rows.append((name, pictures, _grey(images)))
        errors.append(f"{np.mean(np.square(images - pictures)):.4f}")
    return _strips(
        [("original", images, _grey(images)), *rows],
        max_images,
        f"Reconstructions: mean squared error {', '.join(errors)} on {len(images):,} images",
    )


def plot_samples(images: np.ndarray | dict[str, np.ndarray], max_images: int = 12) -> Figure:
    """Draws new images, such as the results of `VQVAE.sample`.

    Args:
        images: `[samples, height, width]` or `[samples, height, width, channels]`, clipped to 0..1. Or a dict of
            several by name, for example one for each class.
        max_images: Number of images to draw for each name. Defaults to `12`.
    """
    named = images if isinstance(images, dict) else {"samples": images}
    rows = [(name, pictures := np.clip(each, 0, 1), _grey(pictures)) for name, each in named.items()]
    return _strips(rows, max_images, f"{sum(len(pictures) for _, pictures, _ in rows):,} new images")


def plot_code_maps(images: np.ndarray, codes: np.ndarray, num_embeddings: int, max_images: int = 12) -> Figure:
    """Draws images above the maps of their codes, with one color for each code.

    Args:
        images: `[samples, height, width]` or `[samples, height, width, channels]`, in 0..1.
        codes: Integers `[samples, rows, columns]`.
        num_embeddings: Number of codes.
        max_images: Number of images to draw. Defaults to `12`.
    """
    images, codes = np.asarray(images), np.asarray(codes)
    if codes.ndim != 3:
        raise ValueError(
            "`codes` must have shape [samples, rows, columns]. Select one code per position, such as `codes[..., 0]`. "
            f"Received: codes of shape {codes.shape}"
        )
    colors = {"cmap": "turbo", "vmin": 0, "vmax": num_embeddings - 1, "interpolation": "nearest"}
    return _strips(
        [("image", images, _grey(images)), ("codes", codes, colors)],
        max_images,
        f"Codes: {codes.shape[1]} x {codes.shape[2]} per image, one color for each of {num_embeddings}",
    )


def plot_code_use(codes: np.ndarray, num_embeddings: int, num_codebooks: int | Sequence[int] = 1) -> Figure:
    """Draws how often each code is used, in descending order, and the level of uniform use.

    Args:
        codes: Integers of any shape. Negative codes are ignored.
        num_embeddings: Number of codes of each codebook.
        num_codebooks: Number of codebooks, if the last axes of `codes` have one code for each. Each codebook is drawn
            as a curve. Otherwise a sequence: how many codes of a sample belong to each codebook, such as `(1, 4, 16)`
            for the scales of a `MultiScaleQuantizer`. Defaults to `1`.
    """
    codebooks = np.array(codebook.codebooks_in_turn(num_codebooks))
    codes = ops.convert_to_numpy(codes).reshape(-1, len(codebooks))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    several, used, perplexities = max(codebooks) > 0, [], []
    for number in range(max(codebooks) + 1):
        chosen = codes[:, codebooks == number]
        counts = np.sort(np.bincount(chosen[chosen >= 0], minlength=num_embeddings))[::-1]
        # At least 1, because a codebook may never be used.
        fractions = counts / max(counts.sum(), 1)
        used.append(np.count_nonzero(fractions))
        perplexities.append(float(metrics.perplexity(counts)))
        # As steps, because the bars of a large codebook would be narrower than a pixel, and invisible.
        axis.stairs(fractions, fill=not several, label=f"codebook {number}" if several else None)
    axis.axhline(1 / num_embeddings, color="black", linestyle="dashed", linewidth=1, label="uniform use")
    axis.set(xlabel="code, by rank", ylabel="fraction of positions", xlim=(0, num_embeddings))
    title = f"Codebook usage: {used[0]} of {num_embeddings} codes, perplexity {perplexities[0]:.0f}"
    if several:
        title = (
            f"Usage of {len(used)} codebooks: {np.mean(used):.0f} of {num_embeddings} codes on average, at least "
            f"{min(used)}\nPerplexity {np.mean(perplexities):.0f} on average, at least {min(perplexities):.0f}"
        )
    axis.set_title(title)
    axis.legend(ncols=1 + len(used) // 8)
    return figure


def plot_code_atlas(images: np.ndarray, counts: np.ndarray | None = None, max_images: int = 256) -> Figure:
    """Draws a decoded image for each code, in descending order of use if `counts` is given.

    If images have `rows x columns` codes, decode an array that repeats each code at all positions:

    ```python
    codes = np.broadcast_to(np.arange(num_embeddings)[:, None, None], (num_embeddings, rows, columns))
    figure = plot_code_atlas(model.decode(codes), model.quantizer.code_counts)
    ```

    Args:
        images: The decoded image of each code, `[K, height, width]` or `[K, height, width, channels]`, clipped to 0..1.
        counts: How often each code is used, `[K]`. Defaults to `None`: codes are drawn in the order of the codebook.
        max_images: Number of images to draw. Defaults to `256`.
    """
    images = np.clip(images, 0, 1)
    order, title = np.arange(len(images)), "in order of the codebook"
    if counts is not None:
        counts = ops.convert_to_numpy(counts)
        if counts.shape != (len(images),):
            raise ValueError(
                f"`counts` must have one number for each of the {len(images)} images. "
                f"Received: counts of shape {counts.shape}"
            )
        order, title = np.argsort(-counts, kind="stable"), "most used first"
    drawn = images[order[: validation.positive_int("max_images", max_images)]]
    columns = int(np.ceil(np.sqrt(2 * len(drawn))))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(9, 9 * rows / columns + 0.6), layout="constrained")
    figure.suptitle(f"What the codes decode to: {len(drawn)} of {len(images)}, {title}")
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.axis("off")
    for axis, image in zip(figure.axes, drawn, strict=False):
        axis.imshow(image, **_grey(images))
    return figure


def plot_training(history: dict[str, list[float]]) -> Figure:
    """Draws the logs of a training over its epochs, with one panel for each log of training and validation.

    Args:
        history: A dict from the names of logs to their values by epoch: `fit(...).history`.
    """
    names = [name for name in history if not name.startswith("val_")] if isinstance(history, dict) else []
    if not names:
        received = f"history with the keys {list(history)}" if isinstance(history, dict) else f"history={history!r}"
        raise ValueError(
            f"`history` must be a dict with logs of training, as `fit(...).history` is. Received: {received}"
        )
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    for axis, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        for curve, label, style in ((name, "training", "solid"), (f"val_{name}", "validation", "dashed")):
            if curve in history:
                axis.plot(np.arange(1, len(history[curve]) + 1), history[curve], label=label, linestyle=style)
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        axis.legend()
    for axis in figure.axes[len(names) :]:
        axis.remove()
    return figure
