"""How does the time of a training step grow as the number of vectors `N` and of codes `K` doubles?

KERAS_BACKEND=torch python -m benchmarks.growth
"""

import argparse

import numpy as np

from benchmarks import backends, step, timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doublings", type=int, default=5)
    parser.add_argument(
        "--peer-doublings",
        type=int,
        default=4,
        help="largest N x K for the peer, as doublings of 2^22; its memory grows with N x K",
    )
    parser.add_argument("--dim", type=int, default=64)
    arguments = parser.parse_args()
    sizes = [(2**12 << i, 1024) for i in range(arguments.doublings)]
    sizes += [(2**13, 512 << i) for i in range(arguments.doublings + 1)]
    rows = []
    for n, k in dict.fromkeys(sizes):
        x = np.random.default_rng(0).normal(size=(64, n // 64, arguments.dim)).astype("float32")
        functions = {"ours": step.our_step(x, k, ema=True)}
        if backends.BACKEND == "torch" and n * k <= 2 ** (22 + arguments.peer_doublings):
            functions["peer"] = step.peer_step(x, k, ema=True, compile_it=False)
        found = timing.medians(functions)
        rows.append(
            {"backend": backends.BACKEND, "N": n, "K": k, **{f"{name} ms": found[name]["ms"] for name in found}}
        )
        rows[-1]["ours ns / N K"] = 1e6 * found["ours"]["ms"] / (n * k)
    timing.report(f"growth-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
