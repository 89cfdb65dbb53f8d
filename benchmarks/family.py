"""Compares other quantizers with their peers: FSQ and groups on PyTorch, `encode` of a residual on every backend.

FSQ and groups are compared with vector-quantize-pytorch: forward and backward of only the layer, eager on both sides.
`encode` is compared with FAISS on 100,000 vectors of 128 dimensions and 3 x 256 codes. It is eager only on PyTorch.

KERAS_BACKEND=torch python -m benchmarks.family
"""

from collections.abc import Callable

import faiss
import numpy as np

import keras_vqvae
from benchmarks import backends, timing


def steps(layer: Callable, peer: Callable, *shape: int) -> dict[str, Callable[[], None]]:
    """Returns forward and backward of our layer and of the peer's module, whose losses are among its outputs."""
    import torch

    x = torch.randn(*shape, requires_grad=True)

    def ours() -> None:
        (layer(x, training=True).sum() + sum(layer.losses)).backward()

    def theirs() -> None:
        sum(part.sum() for part in peer(x) if part.is_floating_point()).backward()

    return {"ours": ours, "peer": theirs}


def peer_cases() -> dict[str, dict[str, Callable[[], None]]]:
    import vector_quantize_pytorch as peer

    found = {
        "FSQ, 16,384 vectors": steps(keras_vqvae.FiniteScalarQuantizer(), peer.FSQ(levels=[8, 5, 5, 5]), 1, 16384, 4)
    }
    for groups, vectors in ((2, 256), (4, 256), (4, 4096)):
        ours = keras_vqvae.GroupedQuantizer(keras_vqvae.VectorQuantizer(32, ema_decay=0.99), groups)
        theirs = peer.VectorQuantize(
            dim=32,
            codebook_size=32,
            heads=groups,
            separate_codebook_per_head=True,
            codebook_dim=32 // groups,
            decay=0.99,
            threshold_ema_dead_code=2,
            rotation_trick=False,
        )
        found[f"{groups} groups of 32 codes, {vectors:,} vectors"] = steps(ours, theirs, 1, vectors, 32)
    return found


def encoders() -> dict[str, Callable[[], object]]:
    x = np.random.default_rng(0).normal(size=(100_000, 128)).astype("float32")
    layer = keras_vqvae.ResidualQuantizer(keras_vqvae.VectorQuantizer(256, seed=0), 3)
    layer.adapt(x[:20_000], epochs=2, verbose=0)
    theirs = faiss.ResidualQuantizer(128, 3, 8)
    theirs.max_beam_size = 1
    theirs.train(x[:20_000])
    return {"ours": backends.compiled(layer.encode, x), "faiss": lambda: theirs.compute_codes(x)}


def main() -> None:
    cases = {"encode, 3 x 256 codes": encoders()} | (peer_cases() if backends.BACKEND == "torch" else {})
    rows = []
    for what, functions in cases.items():
        times = timing.medians(functions, repeats=20 if "encode" not in what else 3)
        rows.append({"what": what, "backend": backends.BACKEND})
        rows[-1] |= {f"{name} {key}": value for name, time in times.items() for key, value in time.items()}
    timing.report(f"family-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
