"""What does a training step of a layer cost? On the torch backend, it is compared with vector-quantize-pytorch.

KERAS_BACKEND=torch python -m benchmarks.step --codes 1024 8192
"""

import argparse
from collections.abc import Callable

import numpy as np

import keras_vqvae
from benchmarks import backends, timing


def peer_step(x: np.ndarray, num_embeddings: int, ema: bool, compile_it: bool) -> Callable[[], None]:
    """Returns a training step of vector-quantize-pytorch, with an EMA codebook or one that the optimizer learns."""
    import torch
    from vector_quantize_pytorch import VectorQuantize

    keywords = {} if ema else {"learnable_codebook": True, "ema_update": False}
    layer = VectorQuantize(dim=x.shape[-1], codebook_size=num_embeddings, **keywords)
    forward = torch.compile(layer) if compile_it else layer
    scale = torch.nn.Parameter(torch.ones(x.shape[-1]))
    optimizer = torch.optim.Adam([scale, *(p for p in layer.parameters() if p.requires_grad)])
    x = torch.from_numpy(x)

    def step() -> None:
        optimizer.zero_grad()
        quantized, _, loss = forward(x * scale)
        (quantized.mean() + loss.sum()).backward()
        optimizer.step()

    return step


def peer_lookup_free_step(x: np.ndarray) -> Callable[[], None]:
    """Returns a training step of the peer's lookup-free quantizer, with one bit for each feature of `x`."""
    import torch
    from vector_quantize_pytorch import LFQ

    layer = LFQ(codebook_size=2 ** x.shape[-1])
    scale = torch.nn.Parameter(torch.ones(x.shape[-1]))
    optimizer = torch.optim.Adam([scale])
    x = torch.from_numpy(x)

    def step() -> None:
        optimizer.zero_grad()
        quantized, _, loss = layer(x * scale)
        (quantized.mean() + loss).backward()
        optimizer.step()

    return step


def our_step(x: np.ndarray, num_embeddings: int, ema: bool, jit_compile: bool | str = "auto") -> Callable[[], None]:
    layer = keras_vqvae.VectorQuantizer(num_embeddings, ema_decay=0.8 if ema else None, dead_code_threshold=0)
    return backends.training_step(layer, x, jit_compile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=16384)
    parser.add_argument("--codes", type=int, nargs="+", default=[1024])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--compiled", action="store_true", help="also run both with torch.compile; takes minutes")
    arguments = parser.parse_args()
    x = np.random.default_rng(0).normal(size=(64, arguments.vectors // 64, arguments.dim)).astype("float32")
    rows = []
    for num_embeddings in arguments.codes:
        for ema in (True, False):
            functions = {"ours": our_step(x, num_embeddings, ema)}
            if backends.BACKEND == "torch":
                functions["peer"] = peer_step(x, num_embeddings, ema, compile_it=False)
                if arguments.compiled:
                    functions["ours compiled"] = our_step(x, num_embeddings, ema, jit_compile=True)
                    functions["peer compiled"] = peer_step(x, num_embeddings, ema, compile_it=True)
            found = timing.medians(functions)
            owner = "EMA" if ema else "optimizer"
            rows.append({"backend": backends.BACKEND, "N": arguments.vectors, "K": num_embeddings, "codebook": owner})
            for name, value in found.items():
                rows[-1][f"{name} ms"] = value["ms"]
                rows[-1][f"{name} spread"] = value["spread"]
            for name in list(found)[1:]:
                rows[-1][f"{name} / ours"] = found[name]["ms"] / found["ours"]["ms"]
    timing.report(f"step-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
