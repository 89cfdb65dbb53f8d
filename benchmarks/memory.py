"""Measures the memory of a search or a step beyond its inputs and weights, as the peak of a separate process.

KERAS_BACKEND=torch python -m benchmarks.memory --vectors 16384 --codes 8192
KERAS_BACKEND=torch python -m benchmarks.memory --vectors 1024 --dim 18 --what lfq bsq peer-lfq
"""

import argparse
import os
import pathlib
import subprocess
import sys

WHATS = ("search", "ema", "optimizer", "peer-ema", "peer-optimizer")
BINARY = ("lfq", "bsq", "peer-lfq")
"""Training steps of quantizers with `--dim` bits. They ignore `--codes`."""


def status(key: str) -> float:
    """Returns the value of `key` in this process's status, in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(f"`key` is not in the status. Received: key={key!r}")


def measure(what: str, vectors: int, codes: int, dim: int) -> float:
    import numpy as np

    import keras_vqvae
    from benchmarks import backends, step

    def make(n: int, k: int):
        x = np.random.default_rng(0).normal(size=(64, n // 64, dim)).astype("float32")
        if what == "search":
            codebook = np.random.default_rng(1).normal(size=(k, dim)).astype("float32")
            return backends.compiled(keras_vqvae.nearest_code, x.reshape(-1, dim), codebook)
        if what == "peer-lfq":
            return step.peer_lookup_free_step(x)
        if what in BINARY:
            kinds = {"lfq": keras_vqvae.LookupFreeQuantizer, "bsq": keras_vqvae.BinarySphericalQuantizer}
            return backends.training_step(kinds[what](dim), x)
        if what.startswith("peer"):
            return step.peer_step(x, k, ema=what.endswith("ema"), compile_it=False)
        return step.our_step(x, k, ema=what == "ema")

    # Warm up on a small size, to create threads, kernels and other one-time allocations.
    make(64, 64)()
    run = make(vectors, codes)
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
    for _ in range(3):
        run()
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[16384])
    parser.add_argument("--codes", type=int, nargs="+", default=[8192])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--what", nargs="+", default=list(WHATS), choices=WHATS + BINARY)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments.what[0], arguments.vectors[0], arguments.codes[0], arguments.dim))
        return
    from benchmarks import timing

    backend = os.environ.get("KERAS_BACKEND", "torch")
    rows = []
    for n in arguments.vectors:
        for k in arguments.codes:
            rows.append({"backend": backend, "N": n, "K": k})
            for what in arguments.what:
                if what.startswith("peer") and backend != "torch":
                    continue
                command = ["--vectors", str(n), "--codes", str(k), "--dim", str(arguments.dim), "--what", what, "--one"]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.memory", *command], stdout=subprocess.PIPE, text=True, check=True
                )
                rows[-1][f"{what} MB"] = float(done.stdout.split()[-1])
    timing.report(f"memory-{backend}", rows)


if __name__ == "__main__":
    main()
