"""Draws the charts of the studies from the figures in `docs/studies/data/`. It trains nothing.

python docs/charts.py
"""

import statistics

import chart_data
from chart_data import BACKENDS, LIBRARIES, OURS, PEER, by, load
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot_seeds(axis: Axes, names: list[str], groups: dict[str, list[float]], library: str) -> None:
    """Draws a point at the mean of each group, and a line over its range. `names` are the rows, from top to bottom."""
    marker, color, offset = ("o", OURS, -0.15) if library == "ours" else ("s", PEER, 0.15)
    for name, values in groups.items():
        row = names.index(name) + offset
        axis.plot([min(values), max(values)], [row] * 2, color=color, linewidth=1.5)
        axis.plot(statistics.mean(values), row, marker, color=color, markersize=5)
    axis.plot([], [], marker, color=color, label=LIBRARIES[library])
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def plot_dead_codes() -> Figure:
    """Error and usage of each method, ours and the peer's."""
    path = "studies/data/dead-codes.csv"
    names = list(dict.fromkeys(row["method"] for row in load(path)))
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True, sharex="row")
    for column, codes in zip(axes.T, ("256", "1024", "4096"), strict=True):
        for library in LIBRARIES:
            rows = load(path, library=library, codes=codes)
            plot_seeds(column[0], names, by(rows, "method", "error"), library)
            low, high = by(rows, "method", "used_min"), by(rows, "method", "used_max")
            plot_seeds(column[1], names, {name: low[name] + high[name] for name in low}, library)
        column[0].set(title=f"{int(codes):,} codes", xlabel="test error")
        column[1].set(xlabel="fraction of codes used")
    axes[0, 2].legend(fontsize=8)
    return figure


def plot_initializer() -> Figure:
    """The fraction of codes in use by initializer, for both owners of the codebook."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, owner in zip(axes, ("optimizer", "moving average"), strict=True):
        rows = load("studies/data/initializer.csv", owner=owner)
        for key, color in zip(
            dict.fromkeys((row["data"], row["network"]) for row in rows),
            (OURS, "#d1691f", "#3a8a3a", PEER),
            strict=True,
        ):
            points = [row for row in rows if (row["data"], row["network"]) == key]
            axis.plot(
                [float(row["used"]) for row in points],
                [row["initializer"] for row in points],
                "o",
                color=color,
                label=", ".join(key),
                alpha=0.7,
            )
        axis.set(title=f"codebook of the {owner}", xlabel="fraction of 256 codes used", xlim=(-0.03, 1.03))
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="lower right")
    return figure


def plot_quantizers() -> Figure:
    """The error of each quantizer at about 1,000 codes."""
    path = "studies/data/quantizers.csv"
    names = list(dict.fromkeys(row["quantizer"] for row in load(path)))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for library in LIBRARIES:
        plot_seeds(axis, names, by(load(path, library=library), "quantizer", "error"), library)
    axis.set(xscale="log", xlabel="test error", title="Fashion-MNIST, about 1,000 codes")
    axis.set_xticks([0.01, 0.02, 0.03, 0.06], ["0.01", "0.02", "0.03", "0.06"])
    axis.minorticks_off()
    axis.legend()
    return figure


def plot_residuals() -> Figure:
    """The error of residuals: divided by that of k-means, by stage, and by the time of a beam search."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    ratio, stages, beam = figure.subplots(1, 3)
    for codes, color in (("16", OURS), ("64", "#d1691f")):
        rows = load("studies/data/residual-training.csv", codes=codes)
        depth = [int(row["depth"]) for row in rows]
        low, high = ([float(row[name]) for row in rows] for name in ("ratio_min", "ratio_max"))
        ratio.fill_between(depth, low, high, color=color, alpha=0.5, label=f"{codes} codes per stage")
    ratio.axhline(1, color=PEER, linestyle="dashed", linewidth=1)
    ratio.set(title="trained residual: error / k-means'", xlabel="stages", ylim=(0.9, 1.1))
    ratio.legend(fontsize=8, loc="lower right")
    for (method, errors), style in zip(
        by(load("studies/data/rate-distortion.csv"), "method", "error").items(),
        ("k--", "s", "o", "^", "v"),
        strict=True,
    ):
        stages.plot(range(1, 5), errors, style, label=method, markersize=5, fillstyle="none")
    stages.set(title="256 codes per stage: error", xlabel="stages", yscale="log", xticks=range(1, 5))
    stages.set_yticks([0.002, 0.004, 0.008], ["0.002", "0.004", "0.008"])
    stages.minorticks_off()
    stages.legend(fontsize=7)
    for codes, marker in (("64", "o"), ("256", "s")):
        rows = load("studies/data/beam-search.csv", codes=codes, stages="4")
        for error, ms, color, who in (("error_adapt", "ms", OURS, "ours"), ("error_faiss", "ms_faiss", PEER, "FAISS")):
            points = [[float(row[name]) for row in rows] for name in (ms, error)]
            beam.plot(*points, marker=marker, color=color, label=f"{who}, 4 x {codes} codes")
    beam.set(title="beams of 1, 2, 4, 8: error by time", xlabel="ms for 50,000 patches", xscale="log", yscale="log")
    beam.set_yticks([0.001, 0.002, 0.003], ["0.001", "0.002", "0.003"])
    beam.minorticks_off()
    beam.legend(fontsize=7)
    return figure


def plot_scale() -> Figure:
    """The explained variance by the scale of the data, with both losses and with the division by `VQVAE`."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    quantizers = {
        "VectorQuantizer(1024)": "o",
        "residual of 3 x 256, ema_decay": "s",
        "FSQ, 3 stages, projected to 4 dimensions": "^",
    }
    for axis, loss in zip(axes, ("mse", "normalized_mse"), strict=False):
        for quantizer, marker in quantizers.items():
            rows = load("studies/data/loss-balance.csv", data="embeddings", quantizer=quantizer, loss=loss)
            means = {float(s): statistics.mean(v) for s, v in by(rows, "scale", "explained_variance").items()}
            axis.plot(sorted(means), [means[s] for s in sorted(means)], marker=marker, label=quantizer)
        axis.set(title=f'"{loss}", not divided')
    rows = load("studies/data/data-scale.csv", data="embeddings")
    for name, marker in zip(("VectorQuantizer", "residual, ema_decay", "projected FSQ"), "os^", strict=True):
        points = sorted((float(r["scale"]), float(r["explained_variance"])) for r in rows if r["quantizer"] == name)
        axes[2].plot(*zip(*points, strict=True), marker=marker, label=name)
    axes[2].set(title="the defaults of VQVAE")
    for axis in axes:
        axis.set(xscale="log", xlabel="scale of the embeddings", ylim=(-0.05, 0.7))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="explained variance")
    axes[1].legend(fontsize=7, loc="lower right")
    return figure


def plot_backends() -> Figure:
    """The test error after each epoch on three backends."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, data in zip(figure.subplots(1, 2), ("digits", "Fashion-MNIST"), strict=True):
        for owner, style in (("optimizer", "dashed"), ("moving average", "solid")):
            for (backend, color), width in zip(BACKENDS.items(), (5, 3, 1), strict=True):
                rows = load("studies/data/backends.csv", data=data, owner=owner, backend=backend)
                points = [[float(row[name]) for row in rows] for name in ("epoch", "error")]
                axis.plot(*points, linestyle=style, color=color, linewidth=width, label=f"{backend}, {owner}")
        axis.set(title=data, xlabel="epoch", ylabel="test error")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    return figure


def main() -> None:
    """Writes all charts."""
    for draw in (plot_backends, plot_dead_codes, plot_initializer, plot_quantizers, plot_residuals, plot_scale):
        chart_data.save(draw)


if __name__ == "__main__":
    main()
