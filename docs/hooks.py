"""What `make docs` makes of the code: the tables of all settings, and docstrings with Sphinx' roles as plain code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page
from settings import settings_page

from tna_lightning.running.home import home

BOOST = {"reference/settings.md": 2, "reference/python.md": 0.2}  # who searches wants settings and guides first
INCLUDED = re.compile(r"^.*\]\((?:\.\./)+([\w./-]+)(?:#[\w-]+)?\).*<!-- include(?:: (\w+))? -->$", re.MULTILINE)


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


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Take in what `<!-- include -->` stands beside, and name files that a page links to but the site has not."""
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
        return match[1] if f"`{match[2]}`" == match[1] else f"{match[1]} (`{match[2]}` in the repository)"

    page.meta["search"] = {"boost": BOOST.get(page.file.src_uri, 1)}
    if page.file.src_uri == "reference/settings.md":
        markdown = markdown.replace("<!-- settings -->\n", settings_page())
    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}((?!docs/)[\w./-]+)\)", named, INCLUDED.sub(included, markdown))
