"""A pytest plugin that lists every `ValueError` of the package, with the message that a test triggered.

`python -m pytest -p tests.support.errors --errors FILE` writes a line for each `raise ValueError` in `keras_vqvae/`.
FILE keeps the results of earlier runs, so that runs on several backends add up. Only errors in pytest's own process are
seen.
"""

import ast
import importlib.machinery
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).parents[2] / "keras_vqvae"
NEVER = "NEVER RAISED"
messages: dict[str, str] = {}


def record(site, error):
    messages.setdefault(site, " ".join(str(error).split()))
    return error


class RecordRaises(ast.NodeTransformer):
    """Turns `raise ValueError(...)` into `raise record(site, ValueError(...))`, and collects the sites."""

    def __init__(self, path):
        self.path, self.sites = path, []

    def visit_Raise(self, node):  # `ast` requires this name.
        if isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", None) == "ValueError":
            self.sites.append(f"{self.path}:{node.lineno}")
            call = ast.parse(f"__import__('sys').modules[{__name__!r}].record({self.sites[-1]!r})", mode="eval").body
            call.args.append(node.exc)
            node.exc = ast.fix_missing_locations(ast.copy_location(call, node.exc))
        return node


def recording(source, path):
    transformer = RecordRaises(pathlib.Path(path).relative_to(PACKAGE.parent).as_posix())
    return transformer.visit(ast.parse(source)), transformer.sites


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        # Ignore saved bytecode, which does not record.
        return compile(recording(self.get_data(self.path), self.path)[0], self.path, "exec")


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] != PACKAGE.name:
            return None
        spec = super().find_spec(fullname, path, target)
        spec.loader = Loader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, Finder)
sites = [site for path in sorted(PACKAGE.rglob("*.py")) for site in recording(path.read_bytes(), path)[1]]


def pytest_addoption(parser):
    parser.addoption("--errors", required=True, help="file to which every ValueError is written")


def pytest_terminal_summary(terminalreporter, config):
    file = pathlib.Path(config.getoption("--errors"))
    earlier = dict(line.split(": ", 1) for line in file.read_text().splitlines()) if file.exists() else {}
    found = {site: messages.get(site, earlier.get(site, NEVER)) for site in sites}
    file.write_text("".join(f"{site}: {message}\n" for site, message in found.items()))
    missing = [site for site, message in found.items() if message == NEVER]
    terminalreporter.write_line(f"{len(sites) - len(missing)} of {len(sites)} `raise ValueError` were seen.")
    for site in missing:
        terminalreporter.write_line(f"{site}: {NEVER}")
