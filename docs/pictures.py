"""Makes the pictures of the README and the guides, in `docs/pictures/`, by two examples and one training.

KERAS_BACKEND=torch python docs/pictures.py
"""

import argparse
import pathlib
import sys
import tempfile

import keras
from matplotlib.figure import Figure

import keras_vqvae

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import digits  # noqa: E402
import images  # noqa: E402
import photographs  # noqa: E402


def example(module, *arguments: str) -> dict[str, Figure]:
    """Runs an example, and returns its figures by heading."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    with tempfile.TemporaryDirectory() as folder:
        keras.utils.set_random_seed(0)
        parser.set_defaults(seed=0, output=pathlib.Path(folder))
        return {heading: figure for heading, (figure, _) in module.draw(parser.parse_args(arguments)).items()}


def plot_dead_codes(num_embeddings: int = 256, epochs: int = 30) -> Figure:
    """Draws usage and explained variance over the epochs, with and without dead codes that move."""
    train, test = images.load()
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for threshold, style in ((0.1, "solid"), (0.0, "dashed")):
        label = f"dead_code_threshold={threshold:g}"
        keras.utils.set_random_seed(0)
        quantizer = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, dead_code_threshold=threshold, seed=0)
        encoder, decoder = images.build_autoencoder(train.shape[1], embedding_dim=16)
        model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
        model.compile(keras.optimizers.Adam(2e-3))
        history = model.fit(train, batch_size=60, epochs=epochs, validation_data=(test,), verbose=0).history
        for axis, name in zip(axes, ("codebook_usage", "val_explained_variance"), strict=True):
            axis.plot(range(1, epochs + 1), history[name], linestyle=style, label=label)
            print(f"{label}: {name} {history[name][-1]:.3f}")
    axes[0].set(title=f"fraction of {num_embeddings} codes in use", xlabel="epoch", ylim=(0, 1.05))
    axes[1].set(title="explained variance, unseen digits", xlabel="epoch", ylim=(0, 1))
    axes[0].legend(loc="center")
    return figure


def main() -> None:
    """Writes all pictures."""
    drawn, figures = example(digits), example(photographs)
    folder = ROOT / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    figures["A photograph at several rates"].savefig(
        folder / "photograph.jpg", dpi=80, pil_kwargs={"quality": 88, "optimize": True}
    )
    # Digits of 8 x 8 pixels are easier to read when they are small.
    drawn["New images"].savefig(folder / "samples.png", dpi=45)
    drawn["Codebook usage"].savefig(folder / "code_use.png", dpi=90)
    plot_dead_codes().savefig(folder / "dead_codes.png", dpi=90)


if __name__ == "__main__":
    main()
