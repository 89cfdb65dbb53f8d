"""Converts the package's docstrings from Keras's format to Markdown."""

import re
import textwrap

import griffe

SECTION = re.compile(r"^(Call arguments|Input shape|Output shape):\n((?:    .*\n|\n)+)", re.M)
DEFAULT = re.compile(r"(?<=[.:])\s+Defaults to\s+`[^`]*`\.")
EXAMPLE = re.compile(r"^(?:>>>|\.\.\.) .*(?:\n.+)*", re.M)


def as_markdown(text: str) -> str:
    """Makes headings of sections that Google's format does not have, and code blocks of examples."""

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
    """Converts the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each object once it is read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
