"""Build the site from files that have their own place in the repository: hooks of MkDocs, see mkdocs.yml.

CONTRIBUTING, CHANGELOG and the model cards become pages, the commands are documented from the program itself,
and links between all of them are made to fit. A link to a file that is no page, source code for example,
becomes plain text.
"""

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "Resources/docs"
CORE = "MedSAM2Segment/medsam2_core"
#: Files outside the folder of the documentation, and the pages they become.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    f"{CORE}/engine/weights/embedded.md": "model-cards/embedded.md",
    f"{CORE}/auto/weights/embedded-start.md": "model-cards/embedded-start.md",
}
PICTURES = {
    "Resources/model-card/results.webp": "model-cards/results.webp",
    "Resources/MedSAM2Segment.png": "icon.png",
}
#: Where links to other files lead instead.
INSTEAD = {"README.md": "index.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are not in the folder of the documentation."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_with_links_to_pages(text, source, page)))
    for source, target in PICTURES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of pages fit that lead out of the folder of the documentation."""
    name = page.file.src_uri
    return markdown if name in PAGES.values() else _with_links_to_pages(markdown, f"{DOCS}/{name}", name)


def _with_links_to_pages(text: str, source: str, page: str) -> str:
    """Return a page's text with links to pages of the site; ``source`` is the file it comes from."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / path).exists():
            return match[0]  # MkDocs reports it
        to = {**PAGES, **PICTURES, **INSTEAD}.get(path)
        if to is None and path.startswith(f"{DOCS}/"):
            to = path.removeprefix(f"{DOCS}/")
        if to is None or to.endswith(".py"):
            return words
        to = posixpath.relpath(to, posixpath.dirname(page))
        return f"{picture}[{words}]({to}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)


def _commands() -> str:
    """Document all commands, from the program itself."""
    import typer.main
    from medsam2_core.cli.app import app

    command = typer.main.get_command(app)
    parts = ["# Commands\n\nWhat `medsam2 COMMAND --help` prints.\n"]
    parts += _command("medsam2", command, command.make_context("medsam2", [], resilient_parsing=True))
    return "\n".join(parts)


def _command(name: str, command, context) -> list[str]:
    """Document a command and those below it."""
    subcommands = getattr(command, "commands", {})
    parts = []
    if not subcommands:
        with context:
            usage = " ".join([name, *command.collect_usage_pieces(context)])
        parts += [f"## {name}", "", _paragraphs(command.help), "", f"    {usage}", ""]
        rows = [param.get_help_record(context) for param in command.params]
        rows = [row for row in rows if row]
        if rows:
            parts += ["| | |", "|---|---|"]
            parts += [f"| <code>{_cell(words)}</code> | {_cell(text)} |" for words, text in rows]
        parts.append("")
    for one, below in subcommands.items():
        parts += _command(f"{name} {one}", below, type(context)(below, info_name=one, parent=context))
    return parts


def _paragraphs(text: str | None) -> str:
    return re.sub(r"\n{3,}", "\n\n", (text or "").replace("\b", "").replace("\f", "")).strip()


def _cell(text: str) -> str:
    """Return text for a cell of a table, with the characters of Markdown and HTML as entities."""
    return re.sub(r"[|\[\]<>*_]", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


class SphinxRoles(griffe.Extension):
    """Show ``:class:`~a.b.C``` in docstrings as ``C``."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Replace roles in one docstring."""
        if obj.docstring:
            text = re.sub(r":\w+:`~(?:[\w.]*\.)?(\w+)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
