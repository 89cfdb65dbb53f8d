"""Reads the package's docstrings, which are of Keras's form, as Markdown."""

import re
import textwrap

import griffe

SECTION = re.compile(r"^(Call arguments|Input shape|Output shape):\n((?:    .*\n|\n)+)", re.M)
DEFAULT = re.compile(r"(?<=[.:])\s+Defaults to\s+`[^`]*`\.")
EXAMPLE = re.compile(r"^(?:>>>|\.\.\.) .*(?:\n.+)*", re.M)


def as_markdown(text: str) -> str:
    """A docstring with headings for what is no section of Google's form, and examples as blocks of code."""

    def section(match: re.Match) -> str:
        title, body = match[1], match[2]
        if title == "Call arguments":
            return f"Other Parameters: {title}\n{body}"
        return f"**{title}:**\n\n{textwrap.dedent(body)}"

    arguments, *rest = re.split("^(?=Call arguments:)", text + "\n", flags=re.M)
    # The signature's defaults are shown beside the types.
    text = "".join([DEFAULT.sub("", arguments), *rest])
    text = SECTION.sub(section, text)
    text = re.sub(r"^(Examples?|References?):\n\n", r"**\1:**\n\n", text, flags=re.M)
    return EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


class KerasDocstrings(griffe.Extension):
    """Does so for every object."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each object once it is read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
