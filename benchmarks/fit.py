"""What does a quantizer add to `fit`? Trains a small convolutional autoencoder on Fashion-MNIST with and without one.

On the torch backend, it is compared with the same network in plain PyTorch with vector-quantize-pytorch, on the same
batches.

    KERAS_BACKEND=torch python -m benchmarks.fit --data-dir FOLDER_OF_IDX_FILES --codes 1024 4096
"""

import argparse
from collections.abc import Callable

import numpy as np

import keras_vqvae
from benchmarks import backends, networks, timing
from examples import images

DIM = 32


def our_model(num_embeddings: int | None):
    import keras

    encoder, decoder = networks.small_autoencoder(28, DIM)
    if num_embeddings is None:
        model = keras.Sequential([encoder, decoder])
        model.compile(keras.optimizers.Adam(1e-3), "mse")
        return model
    quantizer = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.99, seed=0)
    model = keras_vqvae.VQVAE(encoder, quantizer, decoder)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


class Peer:
    """`networks.small_autoencoder` in plain PyTorch. Inputs are channels-last, as in Keras."""

    def __init__(self, num_embeddings: int | None):
        import torch
        from torch import nn
        from vector_quantize_pytorch import VectorQuantize

        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.GELU(),
            nn.Conv2d(16, DIM, 3, padding=1),
            nn.MaxPool2d(2),
        )
        self.decoder = nn.Sequential(
            *(nn.Upsample(scale_factor=2), nn.Conv2d(DIM, 16, 3, padding=1), nn.GELU()),
            *(nn.Upsample(scale_factor=2), nn.Conv2d(16, 1, 3, padding=1)),
        )
        self.layer = None
        if num_embeddings is not None:
            self.layer = VectorQuantize(
                DIM, num_embeddings, decay=0.99, accept_image_fmap=True, threshold_ema_dead_code=2
            )
        self.parts = [part for part in (self.encoder, self.layer, self.decoder) if part is not None]
        self.optimizer = torch.optim.Adam([p for part in self.parts for p in part.parameters()], lr=1e-3)

    def forward(self, x):
        z, loss = self.encoder(x), 0.0
        if self.layer is not None:
            z, _, loss = self.layer(z)
        return self.decoder(z), loss

    def step(self, x: np.ndarray) -> None:
        import torch

        x = torch.from_numpy(x).permute(0, 3, 1, 2)
        self.optimizer.zero_grad()
        reconstruction, loss = self.forward(x)
        (torch.nn.functional.mse_loss(reconstruction, x) + loss).backward()
        self.optimizer.step()

    def error(self, x: np.ndarray) -> float:
        import torch

        for part in self.parts:
            part.eval()
        with torch.no_grad():
            x = torch.from_numpy(x).permute(0, 3, 1, 2)
            squares = [((self.forward(part)[0] - part) ** 2).mean().item() for part in x.split(500)]
        return float(np.mean(squares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--codes", type=int, nargs="+", default=[1024])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement")
    parser.add_argument("--training-steps", type=int, default=0, help="steps to train after that; adds test errors")
    arguments = parser.parse_args()
    train, test = images.load("fashion_mnist", arguments.data_dir)
    size, steps = arguments.batch_size, arguments.steps
    rows = []
    for num_embeddings in arguments.codes:
        models = {"plain": our_model(None), "ours": our_model(num_embeddings)}
        peers = {}
        if backends.BACKEND == "torch":
            peers = {"peer plain": Peer(None), "peer": Peer(num_embeddings)}

        def run(name: str, models=models, peers=peers) -> Callable[[], None]:
            some = train[: size * steps]
            if name in peers:
                return lambda: [peers[name].step(batch) for batch in np.split(some, steps)]
            target = some if name == "plain" else None
            return lambda: models[name].fit(some, target, batch_size=size, verbose=0)

        found = timing.medians({name: run(name) for name in (*models, *peers)})
        ms = {name: value["ms"] / steps for name, value in found.items()}
        rows.append({"backend": backends.BACKEND, "K": num_embeddings, **{f"{name} ms": ms[name] for name in ms}})
        rows[-1]["added ms"] = ms["ours"] - ms["plain"]
        if peers:
            rows[-1]["peer added ms"] = ms["peer"] - ms["peer plain"]
            rows[-1]["added: peer / ours"] = rows[-1]["peer added ms"] / rows[-1]["added ms"]
            rows[-1]["step: peer / ours"] = ms["peer"] / ms["ours"]
        if arguments.training_steps:
            batches = train[np.random.default_rng(0).integers(len(train), size=arguments.training_steps * size)]
            models["ours"].fit(batches, batch_size=size, shuffle=False, verbose=0)
            result = models["ours"].evaluate(test, batch_size=500, verbose=0, return_dict=True)
            rows[-1]["error"] = f"{result['reconstruction_loss']:.5f}"
            if peers:
                for batch in np.split(batches, arguments.training_steps):
                    peers["peer"].step(batch)
                rows[-1]["peer error"] = f"{peers['peer'].error(test):.5f}"
    timing.report(f"fit-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
