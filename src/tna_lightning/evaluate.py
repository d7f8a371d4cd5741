"""A run's kept network on its test set, or on other questions: ``python -m tna_lightning.evaluate RUN``.

The companion is not even loaded, unless ``--twin`` asks for it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.data import corruptions
from tna_lightning.data.batch import Batch
from tna_lightning.data.images import ImageDataModule
from tna_lightning.evaluation import changes, figures, pictures
from tna_lightning.evaluation.answers import Answers, Samples, answers_of
from tna_lightning.export.c.library import CNetwork, load_c
from tna_lightning.export.c.timing import time_c
from tna_lightning.files import replacing, write_text
from tna_lightning.packages import require
from tna_lightning.running.console import leave, print_measured, title, warn_of_changes
from tna_lightning.running.doors import Parser, door
from tna_lightning.running.record import environment, finished_record, reading
from tna_lightning.running.trust import rebuilt, refuse_foreign

MOST_CLASSES = 10  # whose accuracy is printed; with more the lowest


def evaluate(
    folder: Path | str,
    data_root: str | None = None,
    c: Path | str | None = None,
    *,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Test results of a finished run's kept network, by name (``test/acc``, ...), as shares in [0, 1].

    Args:
        folder: the run's folder.
        data_root: where the data are, if not where they were in training; of arrays the file.
        c: a folder that ``export --format c`` has written; its code is run in the network's place.
        trust: also import and call what the run's record names that is no part of this package: code of one's own.
        settings: what is changed for this, by dotted key: one of
            :data:`~tna_lightning.evaluation.changes.MAY_CHANGE`.

    Raises:
        ValueError: no finished run, its data or its kept network are not what they were, its record names code that is
            not trusted, or a setting cannot be changed.
    """
    record = finished_record(folder)
    if c is not None:
        return _evaluate_c(load_c(c), rebuilt(folder, data_root, trust)[0])[0]
    case = _case(folder, data_root, trust, settings or {})
    return _recorded(record, answers_of(case.network, case.datamodule, folder, case.config))


@dataclass(frozen=True)
class _Case:
    """A network and what it is asked.

    Attributes:
        network: kept by the run.
        datamodule: has the test samples.
        config: the run's, as changed.
        class_names: in the order of the logits.
        about: what to say of the data, where they are not the run's.
    """

    network: nn.Module
    datamodule: Any
    config: dict[str, Any]
    class_names: list[str]
    about: dict[str, Any] | None = None


def _case(
    folder: Path | str,
    data_root: str | None,
    trust: bool,
    settings: Mapping[str, Any],
    data: str | None = None,
    whole: bool = False,
) -> _Case:
    for key in settings:
        if key not in changes.MAY_CHANGE and data is None:
            changes.parsed([f"{key}="])  # refuses it
    if data is not None:
        others = changes.other_data(folder, data, data_root, settings, whole=whole, trust=trust)
        about = {"name": data, "samples": len(others.samples.samples), "part": others.part, "missing": others.missing}
        return _Case(others.network, others.samples, others.config, others.class_names, about)
    changed = changes.change(settings)
    datamodule, spec = rebuilt(folder, data_root, trust, changed)
    config = changed(finished_record(folder)["config"])
    network = changes.network_of(folder, spec, config, settings)
    names = getattr(datamodule, "class_names", range(datamodule.num_classes))
    return _Case(network, datamodule, config, [str(name) for name in names])


def _recorded(record: Mapping[str, Any], answers: Answers) -> dict[str, float]:
    # an earlier version may have recorded fewer
    return {name: value for name, value in answers.results.items() if "acc" in name and name in record["results"]}


def _compared(record: Mapping[str, Any], results: Mapping[str, float], device: str) -> tuple[str, bool]:
    """What differs from the recorded results, in words, and whether it must not: on a CPU, where all is as it was."""
    recorded = {name: record["results"].get(name) for name in results}
    differing = [
        f"{name} {value!r} (recorded: {recorded[name]!r})"
        for name, value in results.items()
        if recorded[name] not in (None, value)
    ]
    before, here = record.get("environment") or {}, environment()
    there = {"device": record.get("device")} | {key: before.get(key) for key in ("cpu", "threads", "versions")}
    elsewhere = [
        f"{key} {there[key]} -> {value}"
        for key, value in ({"device": device} | here).items()
        if key in there and there[key] != value
    ]
    config = record["config"]
    if config.get("compile") == "network":
        elsewhere.append("compile network -> none")
    if str(config["trainer"].get("precision")) in ("bf16-true", "16-true"):
        elsewhere.append("weights are kept in float32")
    return "; ".join([*differing, *elsewhere]) if differing else "", not elsewhere and device == "cpu"


def _evaluate_c(network: CNetwork, datamodule: Any) -> tuple[dict[str, float], np.ndarray]:
    """Test results, and the first inputs."""
    datamodule.setup("test")
    first = None
    right = total = 0
    for batch in map(Batch.of, datamodule.test_dataloader()):
        x = batch.x.cpu().numpy()
        first = x if first is None else first
        classes = network(x).argmax(-1)
        target = batch.target if batch.target.ndim == 1 else batch.target.argmax(-1)
        right += int((torch.from_numpy(classes) == target.cpu()).sum())
        total += len(classes)
    assert first is not None
    return {"test/acc": float(np.float32(right) / np.float32(total))}, first  # rounded as those that are recorded


@dataclass(frozen=True)
class _Asked:
    """What the command line asks beside the runs."""

    data_root: str | None
    trust: bool
    settings: dict[str, Any]
    data: str | None
    whole: bool
    out: Path | None
    logits: Path | None

    @property
    def is_recorded(self) -> bool:
        """Whether results are to be as in the record."""
        return self.data is None and not changes.matters(self.settings)

    @property
    def is_of_other_samples(self) -> bool:
        """Whether nothing in the record is of these samples."""
        return self.data is not None or changes.of_other_samples(self.settings)

    def case(self, run: str, settings: Mapping[str, Any] | None = None) -> _Case:
        """The network of a run, with further settings."""
        return _case(run, self.data_root, self.trust, self.settings | dict(settings or {}), self.data, self.whole)


def _figures(answers: Answers, class_names: Sequence[str]) -> dict[str, Any]:
    """What follows from the answers, JSON-able."""
    confusion = figures.confusion_matrix(answers.logits, answers.labels)
    return {
        "samples": len(answers.labels),
        "accuracy": figures.accuracy(answers.logits, answers.labels),
        "class_accuracy": dict(zip(class_names, figures.class_accuracies(confusion), strict=True)),
        "calibration": figures.calibration(answers.logits, answers.labels),
        "confusion": confusion.tolist(),
    }


def _print_figures(found: Mapping[str, Any]) -> None:
    calibration = found["calibration"]
    print(f"calibration error {calibration['ece']:.4f} (ECE), negative log-likelihood {calibration['nll']:.4f} nats")
    by_class = {name: share for name, share in found["class_accuracy"].items() if share is not None}
    lowest = sorted(by_class, key=lambda name: by_class[name])[:MOST_CLASSES]
    words = "classes" if len(by_class) <= MOST_CLASSES else f"lowest of {len(by_class)} classes"
    print(f"{words}: {', '.join(f'{name} {by_class[name]:.1%}' for name in lowest)}")


def _write(asked: _Asked, entries: Mapping[str, Any]) -> None:
    """The figures as JSON, and the name of the folder."""
    assert asked.out is not None
    changed = {"settings": asked.settings, "data": asked.data}
    write_text(asked.out / "evaluation.json", json.dumps({**changed, **entries}, indent=1) + "\n")
    print(f"figures and pictures: {asked.out}")


def _draw(asked: _Asked, found: Mapping[str, Any], name: str) -> None:
    assert asked.out is not None
    confusion = torch.tensor(found["confusion"])
    pictures.plot_confusion(confusion, list(found["class_accuracy"]), asked.out / "confusion.png", name)
    pictures.plot_calibration(found["calibration"], asked.out / "calibration.png", name)


def _save_logits(path: Path, answers: Answers, class_names: Sequence[str]) -> None:
    arrays = {"logits": answers.logits.numpy(), "labels": answers.labels.numpy(), "class_names": np.array(class_names)}
    if answers.index is not None:
        arrays["index"] = answers.index.numpy()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's annotation of keywords


def _print_results(record: Mapping[str, Any], results: Mapping[str, float], asked: _Asked | None = None) -> None:
    """A line each, beside the recorded ones unless samples are others."""
    words = "recorded" if asked is None or asked.is_recorded else "as trained"
    for name, value in results.items():
        recorded = record["results"].get(name)
        is_alone = recorded is None or (asked is not None and asked.is_of_other_samples)
        print(f"{name} {value:.2%}{'' if is_alone else f' ({words}: {recorded:.2%})'}")


def _say_data(about: Mapping[str, Any] | None) -> None:
    if about is not None:
        without = f"; none is of {', '.join(about['missing'])}" if about["missing"] else ""
        print(f"data={about['name']}: {about['samples']:,} samples, {about['part']}{without}")


def _together(runs: Sequence[str], asked: _Asked) -> list[tuple[str, bool]]:
    """One run, or several as one."""
    all_answers: list[Answers] = []
    cases: list[_Case] = []
    for run in runs:
        case = asked.case(run)
        given = answers_of(case.network, case.datamodule, run, case.config)
        if all_answers:
            _refuse_others(runs[0], cases[0], all_answers[0], run, case, given)
        all_answers.append(given)
        cases.append(case)
    differing, names = [], []
    _say_data(cases[0].about)
    if changes.of_other_samples(asked.settings) and asked.data is None:
        print(f"asked about {len(all_answers[0].labels):,} test samples")
    for run, given in zip(runs, all_answers, strict=True):
        record = finished_record(run)
        with reading(run):
            names.append(title(record))
            results = _recorded(record, given)
            print(names[-1])
            _print_results(record, results, asked)
            if asked.is_recorded:
                differing.append(_compared(record, results, given.device))
    logits = all_answers[0].logits if len(runs) == 1 else figures.ensemble([each.logits for each in all_answers])
    _finish(asked, cases[0], all_answers, logits, names[0] if len(runs) == 1 else "together", runs)
    return differing


def _finish(
    asked: _Asked, case: _Case, all_answers: Sequence[Answers], logits: Tensor, name: str, runs: Sequence[str]
) -> None:
    """Print, draw and save what follows from these logits."""
    answers = replace(all_answers[0], logits=logits)
    found = _figures(answers, case.class_names)
    if len(all_answers) > 1:
        print(f"together test/acc {found['accuracy']:.2%}")
    _print_figures(found)
    if asked.logits is not None:
        _save_logits(asked.logits, answers, case.class_names)
        print(f"logits: {asked.logits}")
    if asked.out is not None:
        _draw(asked, found, name)
        each = [each.results for each in all_answers]
        _write(asked, {"runs": list(runs), "results": each, "device": answers.device, **found})


def _refuse_others(first: str, case: _Case, answers: Answers, run: str, other: _Case, given: Answers) -> None:
    """Refuse an ensemble of networks that were not asked the same."""
    same = torch.equal(answers.labels, given.labels) and case.class_names == other.class_names
    if answers.index is not None and given.index is not None:
        same &= torch.equal(answers.index, given.index)
    if not same:
        raise ValueError(f"run={run!r}: has another test set than {first}; an ensemble answers to the same samples")


def _twin(run: str, asked: _Asked) -> list[tuple[str, bool]]:
    """Base and companions of a checkpoint, each alone and together."""
    record = finished_record(run)
    case = asked.case(run)
    networks = changes.networks_of_checkpoint(run, case.datamodule, case.config, asked.trust)
    given = {name: answers_of(network, case.datamodule, run, case.config) for name, network in networks.items()}
    with reading(run):
        print(title(record))
        _print_results(record, base := _recorded(record, given["base"]), asked)
        others = {f"test/{name}_acc": each.results["test/acc"] for name, each in given.items() if name != "base"}
        _print_results(record, others, asked)
    logits = figures.ensemble([each.logits for each in given.values()])
    _finish(asked, case, list(given.values()), logits, "base and companions together", [f"{run}: {', '.join(given)}"])
    return [_compared(record, base, given["base"].device)] if asked.is_recorded else []


def _over_time_steps(run: str, asked: _Asked, steps: Sequence[int]) -> list[tuple[str, bool]]:
    record = finished_record(run)
    key = changes.time_steps_key(record["config"])
    accuracies, refused, about = {}, {}, None
    with reading(run):
        print(title(record))
        trained = record["config"]["data" if key.startswith("data") else "model"].get("time_steps")
    print(f"{'T':>4}  test accuracy")
    for number in steps:
        try:
            case = asked.case(run, {key: number})
        except ValueError as error:
            refused[number] = str(error)
            print(f"{number:>4}  cannot: {refused[number].partition(': ')[2] or refused[number]}")
            continue
        about = case.about
        accuracies[number] = answers_of(case.network, case.datamodule, run, case.config).results["test/acc"]
        print(f"{number:>4}  {accuracies[number]:.2%}{'  (trained so)' if number == trained else ''}")
    if not accuracies:
        raise ValueError(f"time-steps: none of these can be done; {refused[steps[0]]}")
    _say_data(about)
    if asked.out is not None:
        pictures.plot_time_steps(accuracies, trained, asked.out / "time_steps.png", title(record))
        _write(asked, {"runs": [run], "time_steps": accuracies, "cannot": refused, "trained": trained})
    return []


def _over_corruptions(
    run: str, asked: _Asked, kinds: Sequence[str], severities: Sequence[int], root: Path | None, seed: int
) -> list[tuple[str, bool]]:
    record = finished_record(run)
    case = asked.case(run)
    files = None if root is None else corruptions.CorruptedFiles(root)
    known = corruptions.KINDS if files is None else files.kinds
    kinds = known if list(kinds) == ["all"] else kinds
    corruptions.refuse_unknown(kinds, severities, known)
    x, labels, prepare = _images_of(case)
    if files is not None:
        labels = files.labels
        if int(labels.max()) >= len(case.class_names):
            raise ValueError(
                f"corrupt-root={str(root)!r}: its labels go up to {labels.max()}, too far for this network"
            )
    print(title(record))
    _say_data(case.about)
    clean = None
    if files is None:
        clean = answers_of(case.network, case.datamodule, run, case.config).results["test/acc"]
        print(f"as they are: {clean:.2%}")
    width = max(map(len, kinds))
    print(f"{'severity':<{width}}  {'  '.join(f'{severity:>6}' for severity in severities)}    mean")
    accuracies: dict[str, dict[int, float]] = {}
    for kind in kinds:
        accuracies[kind] = {}
        for severity in severities:
            changed = corruptions.corrupt(x, kind, severity, seed) if files is None else files.images(kind, severity)
            if changed.shape[1:] != x.shape[1:]:
                raise ValueError(
                    f"corrupt-root={str(root)!r}: {kind} has images {list(changed.shape[1:])}, the network takes "
                    f"{list(x.shape[1:])}"
                )
            batch_size = getattr(case.datamodule, "eval_batch_size", None) or case.datamodule.batch_size
            samples = Samples(changed, labels, prepare, len(case.class_names), batch_size)
            accuracies[kind][severity] = answers_of(case.network, samples, run, case.config).results["test/acc"]
        shares = [f"{share:>6.1%}" for share in accuracies[kind].values()]
        mean = corruptions.mean_by_kind({kind: accuracies[kind]})
        print(f"{kind:<{width}}  {'  '.join(shares)}  {mean:>6.1%}")
    print(f"mean over kinds: {corruptions.mean_by_kind(accuracies):.2%}")
    if asked.out is not None:
        pictures.plot_corruptions(accuracies, clean, asked.out / "corruptions.png", title(record))
        found = {"corruptions": accuracies, "mean": corruptions.mean_by_kind(accuracies), "clean": clean}
        source = {"seed": seed} if files is None else {"root": str(root)}
        _write(asked, {"runs": [run], **source, **found})
    return []


def _images_of(case: _Case) -> tuple[Tensor, Tensor, Any]:
    """Test images, uint8 ``[N, C, H, W]``, their labels, and what makes of them what the network takes."""
    data = case.datamodule
    test = data.samples if isinstance(data, Samples) else getattr(data, "test_set", None)
    if not isinstance(data, Samples | ImageDataModule) or test is None or test.inputs.ndim != 4:
        raise ValueError("corrupt: is for data sets of images, uint8 [N, C, H, W]")
    return test.inputs.cpu()[test.subset], test.targets.cpu()[test.subset], data.prepare


@door
def main() -> None:
    """The command line: status 1 where the same machine and versions give other results than the recorded ones."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a finished run's folder; several answer as an ensemble")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where the data are, if not where they were in training; of arrays the file"
    )
    parser.add_argument("--trust", action="store_true", help="call what the record names beside tna_lightning's own")
    parser.add_argument("--c", metavar="FOLDER", help="run the C code that export --format c has written there")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", default=[], action="append", help="change what an evaluation can; several times"
    )
    parser.add_argument(
        "--data", metavar="CHOICE", help="other data: image_folder, cifar10, ...; classes by their names"
    )
    parser.add_argument("--all", action="store_true", help="with --data: all its samples, not its test set alone")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write figures (evaluation.json) and pictures there")
    parser.add_argument("--save-logits", metavar="FILE.npz", type=Path, help="logits [N, K], labels, class names")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--time-steps", metavar="1,2,4,8", type=_numbers, help="the accuracy with each of these T")
    mode.add_argument("--corrupt", metavar="all|KIND,...", help=f"corrupted images: {', '.join(corruptions.KINDS)}")
    mode.add_argument(
        "--twin", action="store_true", help="the companions of the run's checkpoint too, and all together"
    )
    parser.add_argument("--corrupt-root", metavar="DIR", type=Path, help="the files of CIFAR-10-C, in place of these")
    parser.add_argument("--severity", metavar="1,2,3,4,5", type=_numbers, help="of --corrupt; all five by default")
    parser.add_argument("--seed", type=int, help="of --corrupt; 0 by default")
    arguments = parser.parse_args()
    try:
        differing = _evaluate(arguments)
    except Exception as error:
        leave(error)
    for words, is_wrong in differing:
        if words and is_wrong:
            sys.exit(f"error: not the recorded results, on the same machine with the same versions: {words}")
        if words:
            print(f"warning: not the recorded results: {words}", file=sys.stderr)


def _numbers(words: str) -> list[int]:
    if not all(re.fullmatch(r"\s*0*[1-9]\d*\s*", word) for word in words.split(",")):
        raise argparse.ArgumentTypeError(f"{words!r}: must be whole numbers from 1, commas between them")
    return [int(word) for word in words.split(",")]


def _evaluate(arguments: argparse.Namespace) -> list[tuple[str, bool]]:
    """What differs from recorded results, in words, and whether it must not."""
    _refuse_combinations(arguments)
    asked = _Asked(
        arguments.data_root,
        arguments.trust,
        changes.parsed(arguments.set, other_data=arguments.data is not None),
        arguments.data,
        arguments.all,
        arguments.out,
        arguments.save_logits,
    )
    for run in arguments.runs:
        config = finished_record(run)["config"]
        if not arguments.trust:
            refuse_foreign(run, config)
        warn_of_changes(config, arguments.data_root, of_data=arguments.data is None)
    if asked.out is not None:
        require("matplotlib")
        asked.out.mkdir(parents=True, exist_ok=True)
    run = arguments.runs[0]
    if arguments.c is not None:
        record, network = finished_record(run), load_c(arguments.c)
        results, first = _evaluate_c(network, rebuilt(run, arguments.data_root, arguments.trust)[0])
        with reading(run):
            print(title(record))
            _print_results(record, results)
            print_measured(str(time_c(network, first)), record)
            return [(_compared(record, results, "cpu")[0], False)]  # one prediction in 1,000 may differ
    if arguments.time_steps:
        return _over_time_steps(run, asked, arguments.time_steps)
    if arguments.twin:
        return _twin(run, asked)
    if arguments.corrupt or arguments.corrupt_root:
        kinds, severities = (arguments.corrupt or "all").split(","), arguments.severity or corruptions.SEVERITIES
        return _over_corruptions(run, asked, kinds, severities, arguments.corrupt_root, arguments.seed or 0)
    return _together(arguments.runs, asked)


def _refuse_combinations(arguments: argparse.Namespace) -> None:
    """Refuse what nothing would come of.

    Raises:
        ValueError: an option that does not go with another, or has no effect.
    """
    given = {
        name: value
        for name, value in vars(arguments).items()
        if value not in (None, [], False) and name not in ("runs", "trust", "data_root")
    }
    modes = {"time_steps", "corrupt", "corrupt_root", "twin", "c"} & given.keys()
    alone = {
        "c": given.keys() - {"c"},
        "twin": given.keys() & {"data", "all", "corrupt_root", "severity", "seed"},
        "time_steps": given.keys() & {"save_logits", "corrupt_root", "severity", "seed"},
        "corrupt": given.keys() & {"save_logits"},
        "corrupt_root": given.keys() & {"save_logits", "data", "seed"},
    }
    for name, others in alone.items():
        if name in given and others:
            raise ValueError(f"{_option(name)}: does not go with {', '.join(map(_option, sorted(others)))}")
    if modes and len(arguments.runs) > 1:
        raise ValueError(f"{_option(min(modes))}: takes one run, and there are {len(arguments.runs)}")
    for name, needed in (("all", "data"), ("severity", "corrupt"), ("seed", "corrupt")):
        if name in given and needed not in given and not (name == "severity" and "corrupt_root" in given):
            raise ValueError(f"{_option(name)}: needs {_option(needed)}")
    if arguments.save_logits is not None and arguments.save_logits.suffix != ".npz":
        raise ValueError(f"--save-logits={str(arguments.save_logits)!r}: must end in .npz")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    main()
