"""Makes a page for each public name of the package, and adds it to the navigation."""

import functools
import pathlib

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

GROUPS = {
    "Quantizers": ("layers",),
    "Models": ("models",),
    "Losses": ("losses", "constraints"),
    "Callbacks and metrics": ("callbacks", "figure_writer", "metrics"),
    "Functions": ("ops", "semantic_ids"),
}
BASES = ("CodebookQuantizer", "Prior", "Quantizer")
"""Base classes. Their pages list all members, for people who write a subclass."""
MEMBERS = (
    "adapt autoencode decode decode_stream detokenizer detokenizer_step encode encode_stream from_model generate "
    "latency log_likelihood prune_unused receptive_field reset_code_counts resize sample set_codebook tokenizer "
    "tokenizer_step"
)


def _public_names() -> dict[str, griffe.Object]:
    package = griffe.load("keras_vqvae")
    names = {name: member.final_target for name, member in package.members.items() if member.is_alias}
    undocumented = [name for name, target in names.items() if not target.has_docstring]
    if undocumented:
        raise PluginError(f"Public names without a docstring: {undocumented}")
    return names


@functools.cache
def _pages() -> dict[str, dict[str, str]]:
    """The text of each page by group and path."""
    pages = {group: {} for group in GROUPS}
    for name, target in sorted(_public_names().items(), key=lambda item: item[0].lower()):
        module = target.path.split(".")[1]
        group = next(group for group, modules in GROUPS.items() if module in modules)
        text = f"::: keras_vqvae.{name}\n"
        if target.is_class and name not in BASES:
            text += f"    options:\n      members: [{', '.join(MEMBERS.split())}]\n"
        pages[group][f"api/{name}.md"] = text
    options = "{show_root_heading: false, heading_level: 2}"
    pages["Functions"]["api/plotting.md"] = f"# plotting\n\n::: keras_vqvae.plotting\n    options: {options}\n"
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages into the navigation, at the end of the reference."""
    navigation = [{group: [{pathlib.Path(p).stem: p} for p in pages]} for group, pages in _pages().items()]
    reference = next(entry["Reference"] for entry in config.nav if isinstance(entry, dict) and "Reference" in entry)
    reference.append({"API": navigation})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for pages in _pages().values():
        for path, text in pages.items():
            files.append(File.generated(config, path, content=text))
    return files
