"""Writes an HTML page of figures, with the pictures embedded in it."""

import argparse
import base64
import html
import io
import pathlib
from collections.abc import Callable

import keras
from matplotlib.figure import Figure

STYLE = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
Sections = dict[str, tuple[Figure, str]]
Example = tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Sections]]
"""Two functions of an example: one adds arguments to a parser, and one maps headings to figures and their captions."""


def command(description: str, name: str, *examples: Example) -> None:
    """Runs examples with the arguments of the command line, and writes one page of all their figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for add_arguments, _ in examples:
        add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo"), help="folder of the outputs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    sections: Sections = {}
    for _, draw in examples:
        keras.utils.set_random_seed(arguments.seed)
        sections |= draw(arguments)
    write(arguments.output / "index.html", f"keras_vqvae: {name}", sections)
    print("open", arguments.output / "index.html")


def write(path: pathlib.Path, title: str, sections: Sections) -> None:
    """Writes each figure as a PNG file, and a page with a heading, a caption and the picture for each."""
    parts = []
    for heading, (figure, text) in sections.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        (path.parent / f"{heading.lower().replace(' ', '_')}.png").write_bytes(content.getvalue())
        picture = base64.b64encode(content.getvalue()).decode()
        parts.append(
            f"<h2>{html.escape(heading)}</h2>\n<p>{html.escape(text)}</p>\n"
            f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{picture}">'
        )
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    path.write_text("\n".join([head, f"<h1>{html.escape(title)}</h1>", *parts, ""]), encoding="utf-8")
