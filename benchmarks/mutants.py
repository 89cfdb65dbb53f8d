"""Which faults do the tests find? Draws a sample of mutmut's mutants, and reports what became of them.

python -m benchmarks.mutants --sample 300 --seed 0    # prints the names of a sample, for `mutmut run`
python -m benchmarks.mutants                          # prints a table by folder, and the survivors

`make mutants` runs mutmut with both. This file is also a pytest plugin. It lets mutmut change Keras layers, and bounds
the time of the tests of each mutant.
"""

import argparse
import inspect
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from benchmarks import timing

SECONDS = 30
"""Time of the tests of a mutant, without the mutant. The shortest tests run first."""
FOLDER = pathlib.Path("mutants/keras_vqvae")
SURVIVED, NO_TESTS, TIMEOUT = 0, 33, 36
"""Exit codes of mutmut."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Gives mutmut's wrappers of constructors a signature, before the package is imported.

    Keras reads it with `inspect.getfullargspec`, which ignores `functools.wraps`. Without it, no layer can be created.
    """
    from mutmut.mutation import trampoline

    original = trampoline.wrap_in_trampoline

    def wrap_in_trampoline(*options, **named):
        def decorate(function):
            wrapper = original(*options, **named)(function)
            if function.__name__ == "__init__":
                vars(wrapper)["__signature__"] = inspect.signature(function)
            return wrapper

        return decorate

    if original.__module__ != __name__:
        trampoline.wrap_in_trampoline = wrap_in_trampoline


def pytest_collection_modifyitems(items: list) -> None:
    """Keeps the shortest tests, and ends the process if a mutant makes them several times as long."""
    mutant = os.environ.get("MUTANT_UNDER_TEST", "stats")
    # mutmut sets an empty name when it runs the chosen tests once without a mutant.
    if not mutant or "__mutmut_" in mutant:
        times = json.loads(pathlib.Path("mutmut-stats.json").read_text())["duration_by_test"]
        items.sort(key=lambda item: times.get(item.nodeid, 0))
        sums = itertools.accumulate([times.get(item.nodeid, 0) for item in items])
        items[:] = [item for item, total in zip(items, sums, strict=True) if total < SECONDS] or items[:1]
    if "__mutmut_" in mutant:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(TIMEOUT))
        signal.alarm(60 + 4 * SECONDS)


def results() -> dict[str, dict[str, int | None]]:
    """Returns the exit code of each mutant, or `None` if it was not run, by file."""
    files = {str(file.relative_to(FOLDER)): json.loads(file.read_text()) for file in sorted(FOLDER.rglob("*.meta"))}
    return {name.removesuffix(".py.meta"): file["exit_code_by_key"] for name, file in files.items()}


def sample(count: int, seed: int) -> list[str]:
    """Returns the names of about `count` mutants: the same fraction of each file's, and at least one."""
    files, generator = results(), random.Random(seed)
    fraction = count / sum(map(len, files.values()))
    sizes = {file: min(len(names), max(1, round(fraction * len(names)))) for file, names in files.items()}
    return [name for file, names in files.items() for name in generator.sample(sorted(names), sizes[file])]


def report() -> None:
    """Prints how many mutants of each folder the tests found. Then prints each mutant that they missed."""
    rows, survivors = {}, []
    for file, codes in results().items():
        folder = file.split("/")[0] if "/" in file else "other files"
        row = rows.setdefault(folder, {"folder": folder, "mutants": 0, "tried": 0, "missed": 0})
        missed = [name for name, code in codes.items() if code in (SURVIVED, NO_TESTS)]
        row["mutants"] += len(codes)
        row["tried"] += sum(code is not None for code in codes.values())
        row["missed"] += len(missed)
        survivors += missed
    timing.report("mutants", list(rows.values()))
    for name in survivors:
        subprocess.run([sys.executable, "-m", "mutmut", "show", name], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.sample:
        print(" ".join(sample(arguments.sample, arguments.seed)))
    else:
        report()
