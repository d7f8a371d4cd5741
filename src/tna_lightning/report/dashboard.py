"""W&B dashboards as code (extra ``[dashboards]``): a workspace and a report for each study."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tna_lightning.packages import require

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

CURVES = {
    "Accuracy": ("val/acc", "val/companion_acc", "train/acc", "train/companion_acc"),
    "Loss": ("train/loss", "train/cross_entropy", "train/companion_cross_entropy", "train/match", "val/match"),
}
LAYERS = {"Firing rate by layer": "firing_rate", "Share of zeros by layer": "zeros"}
FIGURES = (
    "test/acc",
    "test/companion_acc",
    "cost.firing_rate",
    "cost.energy_uj",
    "weights.bytes",
    "weights.zero_share",
)
GROUPING = ("choices.baseline", "choices.quant")


def publish(target: str, studies: Sequence[str], text: str) -> list[str]:
    """Make workspace and report of each study in ``ENTITY/PROJECT`` and return their addresses.

    Args:
        target: where the runs are.
        studies: names of studies, which are the runs' groups.
        text: Markdown that the reports carry: the tables of our own report.

    Raises:
        ValueError: ``target`` is no ``ENTITY/PROJECT``, there is no key, or the server refuses it.
        MissingPackage: the extra is not installed.
    """
    entity, slash, project = target.partition("/")
    if not slash or not entity or not project or "/" in project:
        raise ValueError(f"wandb={target!r}: must be ENTITY/PROJECT")
    _import("workspaces")
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ValueError(f"wandb={target!r}: needs a key; call `wandb login` first")
    addresses = []
    try:
        for study in studies:
            addresses.append(workspace(entity, project, study).save().url)
            page = report(entity, project, study, text)
            page.save()
            addresses.append(page.url)
    except wandb.errors.Error as error:
        raise ValueError(f"wandb={target!r}: {' '.join(str(error).split())}") from error
    return addresses


def workspace(entity: str, project: str, study: str) -> Workspace:
    """Curves and final figures of a study's runs, grouped by baseline and precision."""
    ws = _import("workspaces")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Study {study}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels().items()],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("group") == study], groupby=[ws.Config(key) for key in GROUPING]
        ),
    )


def report(entity: str, project: str, study: str, text: str) -> Report:
    """The tables of our own report as text, and below them the live panels."""
    wr = _import("reports.v2")
    runs = wr.Runset(
        entity=entity,
        project=project,
        name=study,
        filters=f"Metric('group') == '{study}'",
        groupby=[f"config.{key}" for key in GROUPING],
    )
    blocks = [wr.MarkdownBlock(text=text)]
    blocks += [wr.PanelGrid(runsets=[runs], panels=panels) for panels in _panels().values()]
    return wr.Report(entity=entity, project=project, title=f"Study {study}", blocks=blocks)


def _panels() -> dict[str, list[Any]]:
    wr = _import("reports.v2")
    panels: dict[str, list[Any]] = {
        section: [wr.LinePlot(title=name, x="epoch", y=[name]) for name in names] for section, names in CURVES.items()
    }
    for title, prefix in LAYERS.items():
        panels[title] = [wr.LinePlot(title=title, x="epoch", metric_regex=f"^{prefix}/.*")]
    panels["Final figures"] = [wr.BarPlot(title=name, metrics=[name]) for name in FIGURES]
    panels["Pictures and layers"] = [
        wr.MediaBrowser(media_keys=["curves", "weights"]),
        *(wr.WeavePanelSummaryTable(table_name=name) for name in ("layers", "neurons")),
    ]
    return panels


def _import(module: str) -> Any:
    require("wandb", "wandb_workspaces", extra="dashboards")
    return import_module(f"wandb_workspaces.{module}")
