"""One HTML page of figures, with the pictures inside it."""

import base64
import html
import io
import pathlib

from matplotlib.figure import Figure

STYLE = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"


def write(path: pathlib.Path, title: str, sections: dict[str, tuple[Figure, str]]) -> None:
    """Writes a page with a section for each figure: its heading, a sentence or two, the picture; and each picture."""
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
