"""What `make docs` makes of the code: the page of all settings, and docstrings whose Sphinx roles become plain code."""

from __future__ import annotations

import inspect
import re
from typing import Any

import yaml
from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tna_lightning.models.settings import takers
from tna_lightning.running.home import home, options
from tna_lightning.running.signatures import SOURCES, arguments_in, locate

TOP_LEVEL = re.compile(r"^(\w+): ([^#\n]*?)(?: *# (.*))?$", re.MULTILINE)
INCLUDED = re.compile(r'^--8<-- "([\w./-]+?)(?::(\w+))?"$', re.MULTILINE)
GROUPS = {
    "model": "The backbone. `model@companion.model=...` gives the companion another one.",
    "neuron": "What stands where an ANN has its activation; `neuron@companion.neuron=...` for the companion's.",
    "data": "The data set; it brings its own epochs, optimizer and augmentation.",
    "augment": "Operations on training batches, by name, in their order; `~augment.flip` takes one out.",
    "baseline": "What is trained: the objective and its companions.",
    "quant": "The precision of the base's weights.",
    "optimizer": "The optimizer and its schedule.",
    "callbacks": "Callbacks beside the program's own.",
    "trainer": "Lightning's Trainer.",
    "logger": "Where the curves go, beside `metrics.csv`.",
}


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
    """Take in parts of the repository's own pages, and name files that a page links to but the site has not."""
    up = "../" * (page.file.src_uri.count("/") + 1)

    def included(match: re.Match[str]) -> str:
        text = (home() / match[1]).read_text()
        if match[2]:
            text = text.partition(f"<!-- --8<-- [start:{match[2]}] -->\n")[2].partition("<!-- --8<--")[0]
        if not text:
            raise PluginError(f"{page.file.src_uri}: {match[1]} has no part {match[2]}")
        text = re.sub(r"\]\((?!https?:|#|docs/)", f"]({up}", text)
        return re.sub(r"\]\(docs/", f"]({up[3:]}", text)

    def named(match: re.Match[str]) -> str:
        path = home() / match[2]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: links to {match[2]}, which is not in the repository")
        return match[1] if f"`{match[2]}`" == match[1] else f"{match[1]} (`{match[2]}` in the repository)"

    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}((?!docs/)[\w./-]+)\)", named, INCLUDED.sub(included, markdown))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of settings."""
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    return files


def settings_page() -> str:
    """Every setting: name, default, what is allowed, meaning."""
    parts = [
        "# Settings",
        "Written from the code: defaults and types from signatures, meanings from docstrings and from the comments in "
        "`conf/`. `python -m tna_lightning WORDS --cfg job` prints the composed settings of a command.",
        "## At the top",
        "| setting | default | meaning |\n|---|---|---|\n" + "\n".join(_top_level()),
    ]
    for group, meaning in GROUPS.items():
        parts += [f"## `{group}=`", meaning, "| choice | |\n|---|---|\n" + "\n".join(_choices(group))]
    parts += ["## What the choices are made of", "A choice sets some of these, and a word on the command line any."]
    for name, source in SOURCES.items():
        rows = list(_rows(source))
        if rows:
            head = "| setting | default | allowed | meaning |\n|---|---|---|---|\n"
            parts += [f"### {name}", f"`{source.path}`", head + "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _top_level() -> list[str]:
    text = (home() / "conf" / "config.yaml").read_text()
    own = text.partition("hydra:\n")[0].rpartition("experiments: null")[2]
    return [f"| `{name}` | `{default}` | {_cell(meaning or '')} |" for name, default, meaning in TOP_LEVEL.findall(own)]


def _choices(group: str) -> list[str]:
    rows = []
    for choice in options(group):
        text = (home() / "conf" / group / f"{choice}.yaml").read_text()
        comment = next((line[2:] for line in text.splitlines() if re.match(r"# (?!@package)", line)), "")
        rows.append(f"| `{choice}` | {_cell(comment)} |")
    return rows


def _rows(source: Any) -> list[str]:
    target = locate(source.path)
    meanings: dict[str, str] = {}
    for owner in target.__mro__ if isinstance(target, type) else (target, getattr(target, "builder", None)):
        meanings = arguments_in(inspect.getdoc(owner) or "") | meanings
    rows: dict[str, str] = {}
    for _, function in takers(target):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is parameter.empty or parameter.name in {*rows, *source.without}:
                continue
            default = yaml.safe_dump(_plain(parameter.default), default_flow_style=True).split("\n")[0]
            allowed = "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
            cells = (f"`{parameter.name}`", f"`{default}`", f"`{_cell(allowed.strip(chr(39)))}`" if allowed else "")
            rows[parameter.name] = f"| {' | '.join(cells)} | {_cell(meanings.get(parameter.name, ''))} |"
    return list(rows.values())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(text: str) -> str:
    return without_roles(text).replace("|", "\\|").replace("<", "&lt;")
