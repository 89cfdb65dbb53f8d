"""Measures median times, and writes tables and JSON, for all benchmarks."""

import json
import pathlib
import time
from collections.abc import Callable

import numpy as np

THREADS = 2
RESULTS = pathlib.Path(__file__).with_name("results")


def medians(functions: dict[str, Callable[[], object]], rounds: int = 3, repeats: int = 3) -> dict[str, dict]:
    """Returns the median and the interquartile range of each function's times, in milliseconds.

    Functions must return only when their work is done. In each round, each function runs `repeats` times after a
    warm-up. Rounds expose all functions to the same other load. The warm-up also lets threads of the previous function,
    which may spin for a while, come to rest.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for repeat in range(1 + repeats):
                start = time.perf_counter()
                function()
                if repeat:
                    times[name].append(1e3 * (time.perf_counter() - start))
    quartiles = {name: np.percentile(values, [25, 50, 75]) for name, values in times.items()}
    return {name: {"ms": middle, "spread": high - low} for name, (low, middle, high) in quartiles.items()}


def report(name: str, rows: list[dict]) -> None:
    """Prints a table and writes it as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |", flush=True)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"
