"""Runs random layers on random inputs: each case must be right, or raise a `ValueError` that shows what it received.

This is not part of `make test`: 10,000 cases take from a few minutes to half an hour. A workflow runs 2,000 new cases
each night.

make fuzz
KERAS_BACKEND=torch python tests/support/fuzz.py --cases 10000
KERAS_BACKEND=torch python tests/support/fuzz.py --only 123    # one case again, by its number
"""

import argparse
import collections
import os
import re
import sys
import traceback
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import ml_dtypes
import numpy as np
from definitions import check
from helpers import numpy
from keras import ops

import keras_vqvae

# Few sizes, because JAX compiles for each one.
LEADING = [(1,), (6,), (2, 3), (1, 2, 3), (2, 1, 3, 1), (0,), (2, 0), (40,)]
DIMS = [1, 2, 4]
CODES = [1, 2, 16]
DTYPES = ["float32", "float32", "float16", "bfloat16", "float64", "int32"]
WRONG = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        10**12,
        2**31,
        float("nan"),
        float("inf"),
        -0.5,
        2.0,
        "a",
        b"a",
        (),
        [],
        {},
        [2],
        {"a": 1},
    ),
    *(object(), np.array(5), np.array([1, 2]), np.float32(0.5), np.int64(3), range(10**9), 1j),
]


def vector(rng: np.random.Generator) -> tuple[type, dict]:
    keywords = {
        "num_embeddings": rng.choice(CODES).item(),
        "commitment_weight": rng.choice([0, 0.25, 1.0]).item(),
        "codebook_weight": rng.choice([0, 1.0]).item(),
        "ema_decay": rng.choice([None, 0.5, 0.99]),
        "distance": rng.choice(["euclidean", "cosine", "direction"]).item(),
        "estimator": rng.choice(["straight_through", "rotation", "diveq", "nsvq"]).item(),
        "dead_code_threshold": rng.choice([0.0, 0.1, 1.0]).item(),
        "seed": rng.integers(100).item(),
    }
    if keywords["ema_decay"] is not None:
        # With `ema_decay`, other values are refused.
        keywords["codebook_weight"] = 1.0
    if rng.random() < 0.2:
        keywords["assignment_regularizer"] = keras_vqvae.AssignmentEntropy()
    return keras_vqvae.VectorQuantizer, keywords


def sim(rng: np.random.Generator) -> tuple[type, dict]:
    keywords = vector(rng)[1]
    del keywords["ema_decay"]
    keywords["dead_code_threshold"] = 0.0
    return keras_vqvae.SimVectorQuantizer, keywords


def by_scores(rng: np.random.Generator) -> tuple[type, dict]:
    keywords = {"num_embeddings": rng.choice(CODES).item(), "seed": rng.integers(100).item()}
    if rng.random() < 0.5:
        return keras_vqvae.GumbelQuantizer, keywords | {"temperature": 0.5, "kl_weight": rng.choice([0, 0.1]).item()}
    return keras_vqvae.IndexBackpropagationQuantizer, keywords | {"entropy_weight": rng.choice([0, 0.1]).item()}


def digits(rng: np.random.Generator, dim: int) -> tuple[type, dict]:
    if rng.random() < 0.5:
        keywords = {"levels": (8, 5, 2, 3)[:dim], "symmetric": rng.random() < 0.5, "noise": rng.choice([0, 0.5]).item()}
        return keras_vqvae.FiniteScalarQuantizer, keywords | {"seed": 1}
    kind = keras_vqvae.LookupFreeQuantizer if rng.random() < 0.5 else keras_vqvae.BinarySphericalQuantizer
    return kind, {"num_bits": dim, "entropy_weight": rng.choice([0, 0.1]).item(), "temperature": 0.1}


def layer_of(rng: np.random.Generator, dim: int, depth: int = 2) -> tuple[type, dict]:
    """Draws a class and its arguments. Wrappers are nested up to `depth` deep."""
    kind = rng.choice(
        ["vector", "vector", "sim", "scores", "digits"] + ["residual", "grouped", "projected"] * (depth > 0)
    )
    if kind == "residual":
        inner = made(*layer_of(rng, dim, depth - 1))
        shared, dropout = rng.random() < 0.3 and not inner.has_fixed_codes, float(rng.random() < 0.3)
        stages = rng.choice([1, 3]).item() if inner.refines else 1
        keywords = {"num_quantizers": stages, "shared_codebook": shared, "quantizer_dropout": dropout, "seed": 1}
        return keras_vqvae.ResidualQuantizer, {"quantizer": inner, **keywords}
    if kind == "grouped":
        groups = rng.choice([n for n in (1, 2, 4) if dim % n == 0]).item()
        inner = layer_of(rng, dim // groups, depth - 1)
        return keras_vqvae.GroupedQuantizer, {"quantizer": made(*inner), "num_groups": groups}
    if kind == "projected":
        inner_dim = rng.choice([1, 2]).item()
        inner = layer_of(rng, inner_dim, depth - 1)
        return keras_vqvae.ProjectedQuantizer, {"quantizer": made(*inner), "dim": inner_dim}
    makers = {"vector": vector, "sim": sim, "scores": by_scores}
    return digits(rng, dim) if kind == "digits" else makers[kind](rng)


def made(kind: type, keywords: dict) -> keras_vqvae.Quantizer:
    return kind(**keywords)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    scale = 10.0 ** rng.choice([-30, -20, -8, -2, 0, 0, 0, 1, 4, 9, 18])
    x = rng.normal(size=shape) * scale
    if rng.random() < 0.2:
        x += 10.0 ** rng.choice([0, 4, 18]) * rng.normal(size=shape[-1:])
    if rng.random() < 0.2:
        x *= 10.0 ** rng.integers(-12, 1, size=shape)
    if rng.random() < 0.1:
        x[...] = x.flat[0] if x.size else 0
    for junk in (0.0, np.nan, np.inf, -np.inf, 3e38):
        if rng.random() < 0.1:
            x[rng.random(shape) < 0.1] = junk
    # Processors and compilers disagree on whether smaller numbers are flushed to 0.
    x[np.abs(x) < 1e-33] = 0.0
    if dtype == "int32":
        return np.nan_to_num(x, nan=0, posinf=9, neginf=-9).clip(-(2**30), 2**30).astype(dtype)
    with np.errstate(over="ignore"):
        return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def wrong_call(rng: np.random.Generator, layer: keras_vqvae.Quantizer, dim: int) -> None:
    """Makes a call that must raise an error."""
    indices = numpy(layer.encode(np.zeros((3, dim), "float32")))
    calls = [
        lambda: layer(np.zeros((3, dim + 1), "float32")),
        lambda: layer(np.zeros((), "float32")),
        lambda: layer(np.zeros((dim,), "float32")),
        lambda: layer(np.zeros((6, dim), "float32"), mask=ops.ones((5,), "bool")),
        lambda: layer(np.zeros((6, dim), "float32"), mask=ops.ones((6, dim, 1), "bool")),
        lambda: layer.decode(indices + layer.num_embeddings),
        lambda: layer.decode(indices - layer.num_embeddings - 1),
        lambda: layer.decode(indices.astype("float32")),
        lambda: layer.decode(np.zeros((3, *layer.index_shape, 5), "int32")) if layer.index_shape else layer.decode("a"),
        lambda: layer.decode(None),
    ]
    calls[rng.integers(len(calls))]()
    raise AssertionError("a wrong call passed")


def run(number: int, seed: int) -> str:
    """Runs a case and returns `right` or `refused`. Raises an error otherwise."""
    rng = np.random.default_rng((seed, number))
    keras.utils.set_random_seed(number)
    dim = rng.choice(DIMS).item()
    kind, keywords = layer_of(rng, dim)
    what = rng.random()
    # A third of the cases have an argument that is probably wrong, and some have a wrong call.
    replaced = ()
    if what < 0.33:
        replaced = tuple(rng.choice(list(keywords), size=rng.integers(1, 3)).tolist())
        keywords |= {name: WRONG[rng.integers(len(WRONG))] for name in replaced}
    x = values(rng, (*LEADING[rng.integers(len(LEADING))], dim), rng.choice(DTYPES))
    mask = rng.random(x.shape[: rng.integers(1, x.ndim)]) < 0.7 if rng.random() < 0.3 else None
    try:
        layer = made(kind, keywords)
        layer.build((None, dim))
        if 0.33 <= what < 0.4:
            wrong_call(rng, layer, dim)
        check(layer, x, mask, with_gradients=rng.random() < 0.2)
    except ValueError as error:
        named = not replaced or any(name in str(error) for name in (*replaced, "input_shape"))
        if what >= 0.4 or not named or not re.search("[Rr]eceived", str(error)):
            raise
        return "refused"
    return "right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case and show where it fails")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.only is not None:
        print(run(arguments.only, arguments.seed))
        return
    outcomes = collections.Counter()
    for number in range(arguments.start, arguments.start + arguments.cases):
        try:
            outcomes[run(number, arguments.seed)] += 1
        except Exception as error:
            outcomes["wrong"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            lines = " ".join(str(error).split())[:150]
            print(f"case {number}: {type(error).__name__} at {where.name}:{where.lineno}: {lines}", flush=True)
    print(keras.backend.backend(), dict(outcomes))
    sys.exit(outcomes["wrong"] > 0)


if __name__ == "__main__":
    main()
