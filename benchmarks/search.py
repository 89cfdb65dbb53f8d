"""Is the search as fast as FAISS's exact one? Also times the matrix product that writes the `N x K` scores.

KERAS_BACKEND=jax python -m benchmarks.search
KERAS_BACKEND=jax python -m benchmarks.search --full
"""

import argparse
import itertools

import faiss
import numpy as np
from keras import ops

import keras_vqvae
from benchmarks import backends, timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run the full grid of sizes")
    parser.add_argument("--most-flops", type=float, default=2e11, help="skip sizes with larger matrix products")
    arguments = parser.parse_args()
    grid = (
        ((4096, 16384, 65536), (512, 1024, 8192, 65536), (8, 64, 256))
        if arguments.full
        else ((16384,), (1024, 8192), (64,))
    )
    faiss.omp_set_num_threads(timing.THREADS)
    rng = np.random.default_rng(0)
    rows = []
    for n, k, d in itertools.product(*grid):
        if 2.0 * n * k * d > arguments.most_flops:
            continue
        vectors, codes = (rng.normal(size=(count, d)).astype("float32") for count in (n, k))
        index = faiss.IndexFlatL2(d)
        index.add(codes)
        functions = {
            "ours": backends.compiled(keras_vqvae.nearest_code, vectors, codes),
            "faiss": lambda index=index, vectors=vectors: index.search(vectors, 1),
        }
        if n * k <= 1 << 28:
            functions["product"] = backends.compiled(lambda v, c: ops.matmul(v, ops.transpose(c)), vectors, codes)
        found = timing.medians(functions)
        rows.append({"backend": backends.BACKEND, "N": n, "K": k, "D": d})
        for name, value in found.items():
            rows[-1][f"{name} ms"] = value["ms"]
            rows[-1][f"{name} spread"] = value["spread"]
        for name in list(found)[1:]:
            rows[-1][f"ours / {name}"] = found["ours"]["ms"] / found[name]["ms"]
    timing.report(f"search-{backends.BACKEND}", rows)


if __name__ == "__main__":
    main()
