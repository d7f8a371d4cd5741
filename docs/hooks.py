"""What `make docs` makes of the code: the tables of all settings, and docstrings with Sphinx' roles as plain code."""

from __future__ import annotations

import html
import re
from pathlib import Path, PurePosixPath
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from settings import settings_page

from tna_lightning.running.home import home

BOOST = {"reference/python.md": 0.2}  # who searches wants settings and guides first
INCLUDED = re.compile(r"^.*\]\((?:\.\./)+([\w./-]+)(?:#[\w-]+)?\).*<!-- include(?:: (\w+))? -->$", re.MULTILINE)
RESULTS = "experiments/results/"  # whose pages the site takes in, with what they show: results/NAME/README.md
ROW = re.compile(r'<td><a id="([^"]+)" href="[^"]+">(.+?)</a></td>\s*<td>(.*?)</td>(?:\s*<td>(.*?)</td>)?', re.DOTALL)

rows_found: list[dict[str, Any]] = []  # an entry of the search for each row of the settings


class Roles(Extension):
    """Sphinx' roles, which editors read, as code: ``:class:`~tna_lightning.data.Batch``` is `Batch`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite a docstring once it is read."""
        if obj.docstring:
            obj.docstring.value = without_roles(obj.docstring.value)


def without_roles(text: str) -> str:
    """The text with roles as code, and double backquotes as single ones."""
    text = re.sub(r":(?:class|func|meth|attr|mod|data|exc):`(~?)\.?([^`]+)`", _name, text)
    return text.replace("``", "`")


def _name(match: re.Match[str]) -> str:
    return f"`{match[2].rpartition('.')[2] if match[1] else match[2]}`"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of results, their pictures and the pages of their reports."""
    rows_found.clear()
    for path in sorted((home() / RESULTS).rglob("*")):
        is_page = path.suffix == ".md" and path.name != "table.md"  # which the report's page has
        if is_page or path.suffix == ".png" or path.name == "index.html":
            uri = path.relative_to(home() / "experiments").as_posix()
            # not index.html, which a report may be called
            dest = {"dest_uri": str(PurePosixPath(uri).with_name("about.html"))} if path.name == "README.md" else {}
            files.append(File(uri, str(home() / "experiments"), config.site_dir, use_directory_urls=False, **dest))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Take in what `<!-- include -->` stands beside, and name files that a page links to but the site has not."""
    page.meta["search"] = {"boost": BOOST.get(page.file.src_uri, 1)}
    if page.file.src_uri.startswith("results/"):
        return re.sub(r"(?<!!)\[([^\]]+)\]\(([\w./-]+)\)", lambda match: _in_results(match, page), markdown)
    up = "../" * (page.file.src_uri.count("/") + 1)

    def included(match: re.Match[str]) -> str:
        text = (home() / match[1]).read_text()
        if match[2]:
            text = text.partition(f"<!-- {match[2]} -->\n")[2].partition("<!-- end -->")[0]
        if not text:
            raise PluginError(f"{page.file.src_uri}: {match[1]} has no part {match[2]}")
        text = re.sub(r"\]\((?!https?:|#|docs/)", f"]({up}", text)
        return re.sub(r"\]\(docs/", f"]({up[3:]}", text)

    def named(match: re.Match[str]) -> str:
        path = home() / match[2]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: links to {match[2]}, which is not in the repository")
        about = path / "README.md" if path.is_dir() else path
        if match[2].startswith(RESULTS) and about.suffix == ".md" and about.exists():
            return f"[{match[1]}]({up[3:]}{about.relative_to(home() / 'experiments').as_posix()})"
        return _in_words(match)

    if page.file.src_uri == "reference/settings.md":
        markdown = markdown.replace("<!-- settings -->\n", settings_page())
    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}((?!docs/)[\w./-]+)\)", named, INCLUDED.sub(included, markdown))


def _in_results(match: re.Match[str], page: Page) -> str:
    """A link of a page of results: a folder is the page of the report in it."""
    path = Path(page.file.abs_src_path or "").parent / match[2]
    if path.is_dir() and (path / "index.html").exists():
        return f"[{match[1]}]({match[2].rstrip('/')}/index.html)"
    return match[0] if path.suffix in (".md", ".html") else _in_words(match)


def _in_words(match: re.Match[str]) -> str:
    """A link to what the site has not: its name, and the file; in brackets, unless it stands in some."""
    if match[1].strip("`") == match[2]:
        return f"`{match[2]}`"
    before = match.string[: match.start()].rpartition("\n\n")[2]
    is_inside = before.count("(") > before.count(")")
    return (
        f"{match[1]}, `{match[2]}` in the repository" if is_inside else f"{match[1]} (`{match[2]}` in the repository)"
    )


def on_page_content(content: str, page: Page, **kwargs: Any) -> str:
    """Of the settings each row is found by the search, in place of the table that it stands in."""
    if page.file.src_uri != "reference/settings.md":
        return content
    for name, typed, meaning, of in ROW.findall(content):
        words = [html.unescape(re.sub(r"<[^>]+>", "", text)) for text in (typed, meaning, of)]
        text = f"{words[1]} ({words[2]})" if words[2] else words[1]
        entry = {"title": words[0], "text": html.escape(text, quote=False), "boost": 4 if name.count(".") > 1 else 6}
        rows_found.append({"location": f"{page.url}#{name}"} | entry)
    return content.replace(
        "<table>\n<thead>\n<tr>\n<th>setting", '<table data-search-exclude="true">\n<thead>\n<tr>\n<th>setting'
    )


@event_priority(100)  # before the index is written
def on_post_build(config: MkDocsConfig) -> None:
    """Add the rows of the settings to the search."""
    config.plugins["material/search"].search_index.entries.extend(rows_found)
