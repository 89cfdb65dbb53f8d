"""Draws the time of a training step against the number of codes, as `benchmarks.growth` wrote it, to `docs/cost.png`.

python -m benchmarks.plot
"""

import json
import pathlib

from matplotlib.figure import Figure

from benchmarks import timing

ROWS = 8192


def main() -> None:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for path in sorted(timing.RESULTS.glob("growth-*.json")):
        rows = [row for row in json.loads(path.read_text()) if row["N"] == ROWS]
        rows.sort(key=lambda row: row["K"])
        for name, label, style in (
            ("ours", f"keras_vqvae, {rows[0]['backend']}", "o-"),
            ("peer", "vector-quantize-pytorch", "ks--"),
        ):
            points = [(row["K"], row[f"{name} ms"]) for row in rows if f"{name} ms" in row]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=label)
    axis.set(xscale="log", yscale="log", xlabel="codes", ylabel="ms a step")
    axis.set_title(f"A training step of {ROWS:,} vectors of 64 dimensions, two cores")
    axis.set_xscale("log", base=2)
    axis.grid(which="both", alpha=0.2)
    axis.legend()
    target = pathlib.Path(__file__).parents[1] / "docs" / "cost.png"
    figure.savefig(target, dpi=130)
    print("wrote", target)


if __name__ == "__main__":
    main()
