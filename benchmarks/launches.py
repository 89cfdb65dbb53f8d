"""Counts the operations of a training step. On small batches, launching them may take longer than running them.

On PyTorch, it counts the operations of forward, losses, backward and update, for our layers and for
vector-quantize-pytorch. It also counts copies from the host and waits for the device. Views and allocations are left
out, because they run nothing. The update is plain gradient descent, one operation per weight. With `--fit`, it counts
the whole `fit` step of a `VQVAE` and of a `VQGAN`, including its logs. On JAX, it counts the instructions of the
compiled step; each is a kernel or a loop. Counts differ between devices.

KERAS_BACKEND=torch python -m benchmarks.launches --names
KERAS_BACKEND=torch python -m benchmarks.launches --times
KERAS_BACKEND=torch python -m benchmarks.launches --fit
KERAS_BACKEND=jax python -m benchmarks.launches
"""

import argparse
import collections
import re
from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops

import keras_vqvae
from benchmarks import backends, timing

VECTORS = 1024
SIZES = (256, 1024, 4096, 16384)
"""Numbers of vectors for `--times`. Counts use `VECTORS`."""
CODES = 1024
DIMS = {"FSQ": 4, "LFQ": 10, "BSQ": 10}
"""Sizes of the vectors that do not have 64 dimensions."""

VQ = keras_vqvae.VectorQuantizer
OURS: dict[str, Callable[[], keras_vqvae.Quantizer]] = {
    "EMA": lambda: VQ(CODES, ema_decay=0.99),
    "optimizer": lambda: VQ(CODES),
    "cosine": lambda: VQ(CODES, ema_decay=0.99, distance="cosine"),
    "rotation": lambda: VQ(CODES, estimator="rotation"),
    "residual of 8": lambda: keras_vqvae.ResidualQuantizer(VQ(CODES, ema_decay=0.99), 8),
    "4 groups": lambda: keras_vqvae.GroupedQuantizer(VQ(CODES, ema_decay=0.99), 4),
    "FSQ": lambda: keras_vqvae.FiniteScalarQuantizer((8, 5, 5, 5)),
    "LFQ": lambda: keras_vqvae.LookupFreeQuantizer(DIMS["LFQ"]),
    "BSQ": lambda: keras_vqvae.BinarySphericalQuantizer(DIMS["BSQ"]),
    "SimVQ": lambda: keras_vqvae.SimVectorQuantizer(CODES),
    "IBQ": lambda: keras_vqvae.IndexBackpropagationQuantizer(CODES),
    "Gumbel": lambda: keras_vqvae.GumbelQuantizer(CODES),
}
VECTOR = {"dim": 64, "codebook_size": CODES, "commitment_weight": 0.25, "rotation_trick": False}
MOVING = {**VECTOR, "decay": 0.99, "threshold_ema_dead_code": 2}
LEARNED = {**VECTOR, "learnable_codebook": True, "ema_update": False, "threshold_ema_dead_code": 2}
BITS = {"codebook_size": CODES, "commitment_loss_weight": 0.25}
PEERS: dict[str, tuple[str, dict]] = {
    "EMA": ("VectorQuantize", MOVING),
    "optimizer": ("VectorQuantize", LEARNED),
    "cosine": ("VectorQuantize", {**MOVING, "use_cosine_sim": True}),
    "rotation": ("VectorQuantize", {**LEARNED, "rotation_trick": True}),
    "residual of 8": ("ResidualVQ", {**MOVING, "num_quantizers": 8}),
    "4 groups": ("VectorQuantize", {**MOVING, "heads": 4, "separate_codebook_per_head": True, "codebook_dim": 16}),
    "FSQ": ("FSQ", {"levels": [8, 5, 5, 5]}),
    "LFQ": ("LFQ", BITS),
    "BSQ": ("LFQ", {**BITS, "spherical": True}),
    "SimVQ": ("SimVQ", {"dim": 64, "codebook_size": CODES, "rotation_trick": False}),
    "Gumbel": ("VectorQuantize", {**VECTOR, "straight_through": True, "stochastic_sample_codes": True}),
}
"""The peer's class and arguments. Both sides replace dead codes, except FSQ, LFQ, BSQ, SimVQ and the peer's Gumbel."""

HOST = ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select")
"""PyTorch operations that copy a tensor from Python, or make Python wait for its values."""
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
"""XLA's instructions that run nothing."""


def batch(name: str, vectors: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, vectors // 4, DIMS.get(name, 64))).astype("float32")


def torch_step(forward: Callable[[object], tuple[object, list]], weights: Iterable, x: object) -> Callable[[], None]:
    """Returns a training step for `forward`, which maps a batch to quantized vectors and a list of losses."""
    import torch

    weights, accelerator = list(weights), torch.accelerator.is_available()
    x = x.clone().requires_grad_()

    def step() -> None:
        for tensor in (x, *weights):
            tensor.grad = None
        quantized, losses = forward(x)
        sum(losses, quantized.square().mean()).backward()
        with torch.no_grad():
            for weight in weights:
                weight.sub_(weight.grad, alpha=1e-3)
        if accelerator:
            torch.accelerator.synchronize()

    return step


def torch_steps(name: str, vectors: int) -> dict[str, Callable[[], None]]:
    import vector_quantize_pytorch

    x, layer = ops.convert_to_tensor(batch(name, vectors)), OURS[name]()
    layer.build(x.shape)
    ours = [variable.value for variable in layer.trainable_variables]
    steps = {"ours": torch_step(lambda x: (layer(x, training=True), layer.losses), ours, x)}
    if name in PEERS:
        kind, keywords = PEERS[name]
        module = getattr(vector_quantize_pytorch, kind)(**keywords).to(x.device)

        def forward(x: object) -> tuple[object, list]:
            quantized, _, *losses = module(x)
            return quantized, [loss.sum() if loss.ndim else loss for loss in losses]

        steps["peer"] = torch_step(forward, module.parameters(), x)
    return steps


def operations(step: Callable[[], None]) -> tuple[collections.Counter, int]:
    """Returns the count of each operation in a step, and how many of them copy from the host or wait for the device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names, host = collections.Counter(), []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            if name in HOST or not (function.is_view or name.startswith(("empty", "new_empty"))):
                names[name] += 1
            # Indexing with booleans waits for the number of true ones.
            indices = args[1] if name in ("index", "index_put", "index_put_") else []
            if name in HOST or any(index is not None and index.dtype == torch.bool for index in indices):
                host.append(name)
            return function(*args, **(kwargs or {}))

    # Warm up, so that one-time work is not counted.
    step(), step()
    with Count():
        step()
    return names, len(host)


def instructions(name: str) -> collections.Counter:
    """Counts the instructions of the compiled step by kind. A loop counts once, whatever its number of iterations."""
    import jax

    layer, x = OURS[name](), batch(name, VECTORS)
    layer.build(x.shape)

    def loss(weights, others, x):
        # Keras's trainer calls the layer in the same way.
        quantized, others, losses = layer.stateless_call(weights, others, x, training=True, return_losses=True)
        return ops.mean(ops.square(quantized)) + sum(losses), others

    def step(weights, others, x):
        (value, others), (of_weights, of_x) = jax.value_and_grad(loss, (0, 2), has_aux=True)(weights, others, x)
        return value, [w - 1e-3 * g for w, g in zip(weights, of_weights, strict=True)], others, of_x

    state = [[v.value for v in of] for of in (layer.trainable_variables, layer.non_trainable_variables)]
    text = jax.jit(step).lower(*state, x).compile().as_text()
    entry = re.search(r"^ENTRY .*?^}", text, re.M | re.S).group()
    kinds = re.findall(r"^  (?:ROOT )?\S+ = .*? ([a-z][\w-]*)\(", entry, re.M)
    return collections.Counter(kind for kind in kinds if kind not in FREE)


def row_of_counts(name: str, names: int) -> dict[str, object]:
    if backends.BACKEND == "jax":
        found = instructions(name)
        return {"quantizer": name, "ours": found.total(), **found}
    row = {"quantizer": name}
    for whose, step in torch_steps(name, VECTORS).items():
        found, host = operations(step)
        row |= {whose: found.total(), f"{whose}: host": host}
        if names:
            row[f"{whose}: most frequent"] = ", ".join(f"{key} {count}" for key, count in found.most_common(names))
    return row


def discriminator(features: bool) -> keras.Model:
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="leaky_relu")(inputs)
    logits = keras.layers.Dense(1)(hidden)
    return keras.Model(inputs, {"logits": logits, "features": [hidden]} if features else logits)


def row_of_fit(loss: str, kind: str = "VQVAE") -> dict[str, object]:
    """Counts a step of `fit`, with encoder and decoder of three dense layers and a discriminator of two."""
    encoder, decoder = keras_vqvae.build(64, embedding_dim=8)
    parts = encoder, VQ(64, ema_decay=0.99), decoder
    if kind == "VQVAE":
        model = keras_vqvae.VQVAE(*parts)
    else:
        model = keras_vqvae.VQGAN(*parts, discriminator(features="features" in kind))
    model.compile(keras.optimizers.SGD(1e-3), loss=loss)
    x = ops.convert_to_tensor(batch("fit", 32)[0])
    found, host = operations(lambda: model.train_step(x))
    return {"model": kind, "loss": loss, "ours": found.total(), "ours: host": host}


def row_of_times(name: str) -> dict[str, object]:
    row = {"quantizer": name}
    for vectors in SIZES:
        times = timing.medians(torch_steps(name, vectors), repeats=max(3, 8192 // vectors))
        row |= {f"{vectors:,}: {whose} ms": time["ms"] for whose, time in times.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--names", type=int, nargs="?", const=8, default=0, help="list this many of the most frequent operations"
    )
    parser.add_argument("--times", action="store_true", help="measure times in milliseconds instead of counts")
    parser.add_argument("--fit", action="store_true", help="count a whole step of `fit`, with its logs")
    parser.add_argument("--rows", nargs="+", default=list(OURS), choices=list(OURS))
    arguments = parser.parse_args()
    if backends.BACKEND != "torch" and (
        backends.BACKEND != "jax" or arguments.times or arguments.names or arguments.fit
    ):
        parser.error("`launches` supports PyTorch and, without `--names`, `--times` or `--fit`, JAX.")
    if arguments.fit:
        rows = [row_of_fit(loss) for loss in ("normalized_mse", "mse")]
        rows += [row_of_fit("normalized_mse", kind) for kind in ("VQGAN", "VQGAN with features")]
        timing.report("launches-fit", rows)
    elif arguments.times:
        timing.report("launches-times", [row_of_times(name) for name in arguments.rows])
    else:
        rows = [row_of_counts(name, arguments.names) for name in arguments.rows]
        timing.report(f"launches-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
