"""Which faults do the tests find? Puts one at a time into a copy of the package, and runs the tests that reach it.

KERAS_BACKEND=torch OMP_NUM_THREADS=1 python -m benchmarks.mutations --mutants 250
KERAS_BACKEND=torch OMP_NUM_THREADS=1 python -m benchmarks.mutations --only 17 101    # repeat some, by number

A fault replaces an operator or a constant, negates a condition, keeps only one operand, drops the last argument of a
call, replaces a call by its first argument, or deletes a statement. Docstrings, annotations, names and error messages
are not changed. Each test run is forked from a process that has imported the backend, but no test and not the package.
"""

import argparse
import ast
import copy
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks import timing

ROOT = pathlib.Path(__file__).parents[1]
FILES = ["ops/search.py", "ops/codebook.py", "ops/estimators.py"]
FILES += sorted(f"layers/{path.name}" for path in ROOT.glob("keras_vqvae/layers/*.py"))
LEFT_OUT = ["test_examples.py", "test_plotting.py", "test_figure_writer.py", "across"]
"""Tests that start processes or draw pictures. They take long, and do not test these files."""
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, Add Sub, Mult Div, And Or, LShift RShift"
OTHER = {"FloorDiv": "Mult", "Mod": "Mult", "Pow": "Mult"}
for pair in PAIRS.split(", "):
    OTHER |= {pair.split()[0]: pair.split()[1], pair.split()[1]: pair.split()[0]}


def changed(node: ast.AST, **fields: object) -> ast.AST:
    node = copy.copy(node)
    vars(node).update(fields)
    return node


def other(operator: ast.AST) -> ast.AST:
    return getattr(ast, OTHER[type(operator).__name__])()


def faults(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that may replace `node` as a fault."""
    match node:
        case ast.Compare():
            yield changed(node, ops=[other(node.ops[0]), *node.ops[1:]])
            if isinstance(node.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                yield ast.UnaryOp(ast.Not(), node)
        case ast.BinOp() if type(node.op).__name__ in OTHER:
            yield changed(node, op=other(node.op))
            yield node.left
            yield node.right
        case ast.BoolOp():
            yield changed(node, op=other(node.op))
            yield node.values[0]
            yield node.values[-1]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.IfExp():
            yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1)
        case ast.Constant(value=float()):
            yield ast.Constant(node.value * 2 + 0.1)
        case ast.Call() if len(node.args) + len(node.keywords) > 1:
            fields = {"keywords": node.keywords[:-1]} if node.keywords else {"args": node.args[:-1]}
            yield changed(node, **fields)
    if isinstance(node, ast.Call) and node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    if isinstance(node, ast.Expr | ast.Raise | ast.AugAssign):
        yield ast.Pass()


def sites(node: ast.AST, lines: range, around: range) -> Iterator[tuple[ast.AST, ast.AST, range, range]]:
    """Yields each node, its replacement, the lines of its statement, and the lines of the function around it."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        lines = range(node.lineno, body[0].lineno if body else node.end_lineno + 1)
    if isinstance(node, ast.FunctionDef):
        around = range(node.body[0].lineno, node.end_lineno + 1)
    if isinstance(node, ast.If | ast.While):
        yield node.test, ast.UnaryOp(ast.Not(), node.test), lines, around
    for fault in faults(node):
        yield node, fault, lines, around
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if (
                isinstance(child, ast.AST)
                and field not in ("annotation", "returns")
                and not isinstance(node, ast.Raise)
            ):
                yield from sites(child, lines, around)


def mutants() -> list[dict]:
    """Returns all mutants, in the order of their numbers."""
    found = []
    for file in FILES:
        source = (ROOT / "keras_vqvae" / file).read_text()
        rows = source.splitlines(keepends=True)
        starts = [sum(map(len, rows[:i])) for i in range(len(rows))]
        for node, fault, lines, around in sites(ast.parse(source), range(0), range(len(rows) + 1)):
            # `col_offset` counts bytes. These are characters, because the package is ASCII.
            start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(fault) if isinstance(fault, ast.stmt) else f"({ast.unparse(fault)})"
            was = " ".join(source[start:end].split())
            site = {"file": file, "line": node.lineno, "was": was, "is": text, "lines": [*lines], "around": [*around]}
            found.append({"number": len(found), **site, "source": source[:start] + text + source[end:]})
    return found


class Recorder:
    """A pytest plugin that records which lines of the package each test runs, and how long it takes."""

    def __init__(self, folder: str):
        self.package, self.tests = f"{folder}/keras_vqvae/", {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.lines, self.start = set(), time.perf_counter()
        sys.settrace(self.trace)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename.startswith(self.package):
            self.lines.add((frame.f_code.co_filename[len(self.package) :], frame.f_lineno))
            return self.trace
        return None

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" and report.passed:
            seconds = time.perf_counter() - self.start
            self.tests[report.nodeid] = {"seconds": seconds, "lines": sorted(self.lines)}

    def pytest_sessionfinish(self) -> None:
        pathlib.Path("recorded.json").write_text(json.dumps(self.tests))


class Chooser:
    """A pytest plugin that runs only the `chosen` tests, in this order, and records a failed one."""

    def __init__(self, chosen: list[str]):
        self.order = {nodeid: i for i, nodeid in enumerate(chosen)}

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda x: self.order[x.nodeid])

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            pathlib.Path("failed.txt").write_text(report.nodeid)


def run_tests(folder: str, plugin: object, files: list[str]) -> None:
    import pytest

    os.chdir(folder)
    sys.path[:0] = [folder]
    with open("log.txt", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os._exit(pytest.main(["-x" if isinstance(plugin, Chooser) else "-q", *files], plugins=[plugin]))


def fork(*arguments: object, limit: float | None = None) -> int | None:
    """Runs `run_tests` in a fork. Returns its exit status, or `None` if it took longer than `limit`."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=arguments)
    process.start()
    process.join(limit)
    process.kill()
    return process.exitcode


def outcome(folder: str, mutant: dict, tests: dict[str, dict], seconds: float) -> tuple[str, str]:
    """Returns "killed", "survived" or "endless", and the test that failed or the number of tests that passed."""
    ran = {name: {line for file, line in test["lines"] if file == mutant["file"]} for name, test in tests.items()}
    for lines in (mutant["lines"], mutant["around"], range(10**4)):
        chosen = sorted((name for name in ran if ran[name].intersection(lines)), key=lambda x: tests[x]["seconds"])
        if chosen:
            break
    sums = [sum(tests[name]["seconds"] for name in chosen[:i]) for i in range(len(chosen))]
    chosen = [name for name, before in zip(chosen, sums, strict=True) if before < seconds]
    path, failed = pathlib.Path(folder, "keras_vqvae", mutant["file"]), pathlib.Path(folder, "failed.txt")
    original = path.read_text()
    failed.unlink(missing_ok=True)
    path.write_text(mutant["source"])
    # Set a different modification time for each mutant, so that Python does not reuse cached bytecode of another.
    os.utime(path, (mutant["number"], mutant["number"]))
    status = fork(folder, Chooser(chosen), sorted({name.split("::")[0] for name in chosen}), limit=60 + 4 * seconds)
    path.write_text(original)
    if status == 0:
        return "survived", f"{len(chosen)} tests passed"
    return ("killed", failed.read_text() if failed.exists() else "import") if status is not None else ("endless", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="test time per mutant; the shortest tests run first")
    parser.add_argument("--only", type=int, nargs="+")
    parser.add_argument("--recorded", help="file of test lines and times that an earlier run recorded")
    arguments = parser.parse_args()
    import keras
    import pytest  # noqa: F401

    sys.dont_write_bytecode = False
    # Train once before forking, so that Keras's late imports are done.
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(keras.ops.ones((2, 2)), keras.ops.ones((2, 2)), verbose=0)
    every = mutants()
    numbers = arguments.only or sorted(random.Random(arguments.seed).sample(range(len(every)), arguments.mutants))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "demo", "dist"), dirs_exist_ok=True)
        recorded = pathlib.Path(arguments.recorded or f"{folder}/recorded.json")
        if not arguments.recorded:
            # Skip tests of torch.compile: they take hours when each line is recorded.
            options = ["-k", "not torch_compile", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]
            fork(folder, Recorder(folder), ["tests", *options])
            timing.RESULTS.mkdir(exist_ok=True)
            shutil.copy(recorded, timing.RESULTS / "mutations-recorded.json")
        tests = json.loads(recorded.read_text())
        print(f"{len(tests)} tests, {len(every)} mutants, {len(numbers)} of them tried", flush=True)
        rows = {file: {"file": file, "killed": 0, "endless": 0, "survived": 0} for file in FILES}
        for number in numbers:
            mutant = every[number]
            became, by = outcome(folder, mutant, tests, arguments.seconds)
            rows[mutant["file"]][became] += 1
            place = f"{mutant['file']}:{mutant['line']}"
            print(f"{number} {became} {place}: {mutant['was'][:120]} -> {mutant['is'][:120]} | {by}", flush=True)
    timing.report("mutations", [row for row in rows.values() if sum(list(row.values())[1:])])


if __name__ == "__main__":
    main()
