"""The figures that the charts show, and colors that all of them share."""

import collections
import csv
import pathlib
from collections.abc import Callable, Iterable

from matplotlib.figure import Figure

DOCS = pathlib.Path(__file__).parent
OURS, PEER = "#1f5fa8", "#333333"
LIBRARIES = {"ours": "keras_vqvae", "peer": "vector-quantize-pytorch"}
BACKENDS = {"jax": "#1f5fa8", "tensorflow": "#d1691f", "torch": "#3a8a3a"}
"""Color of each backend, on all charts."""


def load(path: str, **where: str) -> list[dict[str, str]]:
    """The rows of a CSV file whose columns have the given values."""
    with (DOCS / path).open() as file:
        return [row for row in csv.DictReader(file) if all(row[name] == value for name, value in where.items())]


def by(rows: Iterable[dict[str, str]], key: str, value: str) -> dict[str, list[float]]:
    """The values of one column, grouped by another column."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[key]].append(float(row[value]))
    return groups


def save(draw: Callable[[], Figure]) -> None:
    """Writes the chart of `plot_NAME` to `docs/pictures/chart_NAME.png`."""
    name = draw.__name__.removeprefix("plot_")
    draw().savefig(DOCS / "pictures" / f"chart_{name}.png", dpi=100)
