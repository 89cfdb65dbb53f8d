"""Draws the charts of the benchmarks from the figures in `docs/benchmarks/data/`. It measures nothing.

python docs/benchmark_charts.py
"""

import chart_data
from chart_data import BACKENDS, LIBRARIES, OURS, PEER, load
from matplotlib.figure import Figure


def plot_cost() -> Figure:
    """The time of a training step by the number of codes."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for library in (*BACKENDS, "vector-quantize-pytorch"):
        rows = [row for row in load("benchmarks/data/growth.csv", library=library, vectors="8192") if row["ms"]]
        label = f"keras_vqvae, {library}" if library in BACKENDS else library
        style = {"color": BACKENDS.get(library, PEER), "marker": "o" if library in BACKENDS else "s"}
        axis.plot([int(row["codes"]) for row in rows], [float(row["ms"]) for row in rows], label=label, **style)
    axis.set_xscale("log", base=2)
    axis.set(yscale="log", xlabel="codes", ylabel="ms per step")
    axis.set_title("A training step of 8,192 vectors of 64 dimensions, two cores of a Xeon")
    axis.grid(which="both", alpha=0.2)
    axis.legend()
    return figure


def plot_search() -> Figure:
    """The time of the search divided by the time of FAISS."""
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axis = figure.subplots()
    for offset, (backend, color) in zip((-0.2, 0, 0.2), BACKENDS.items(), strict=True):
        rows = load("benchmarks/data/search.csv", backend=backend)
        axis.plot(
            [i + offset for i in range(len(rows))],
            [float(row["ratio_to_faiss"]) for row in rows],
            "o",
            color=color,
            label=backend,
        )
    axis.set_xticks(range(len(rows)), [f"{int(row['vectors']):,}\n{int(row['codes']):,}" for row in rows])
    axis.axhline(1, color=PEER, linestyle="dashed", linewidth=1, label="FAISS")
    axis.set(xlabel="vectors, and codes below", ylabel="time / FAISS's", ylim=(0, 1.2))
    axis.set_title("Exact search, 64 dimensions: below 1 is faster than FAISS")
    axis.legend(ncols=4, loc="lower left")
    return figure


def plot_small_batches() -> Figure:
    """The time of a training step by the number of vectors, for each quantizer."""
    rows = load("benchmarks/data/small-batches.csv")
    names = list(dict.fromkeys(row["quantizer"] for row in rows))
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axis, name in zip(figure.subplots(3, 4, sharex=True, sharey=True).flat, names, strict=True):
        for library, color, marker in (("ours", OURS, "o"), ("peer", PEER, "s")):
            points = [row for row in rows if row["quantizer"] == name and row["library"] == library]
            times = [float(row["ms"]) for row in points]
            axis.plot(
                [int(row["vectors"]) for row in points], times, color=color, marker=marker, label=LIBRARIES[library]
            )
        axis.set(xscale="log", yscale="log", title=name)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("vectors")
    figure.supylabel("ms per step, PyTorch, two cores")
    return figure


def main() -> None:
    """Writes all charts."""
    for draw in (plot_cost, plot_search, plot_small_batches):
        chart_data.save(draw)


if __name__ == "__main__":
    main()
