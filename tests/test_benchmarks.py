"""The benchmark suite: its statistics against hand counts, and every comparison at toy size up to its table."""

import importlib.util
import json
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are no part of the package

from benchmarks import c_runtime, whole_runs  # noqa: E402
from benchmarks.speed import machine, measure, page, profile_step, start_up, timing  # noqa: E402
from benchmarks.speed.comparison import Comparison, Ratio, Settings  # noqa: E402
from benchmarks.speed.registry import COMPARISONS  # noqa: E402

sys.path.remove(str(ROOT))
TOY = Settings(toy=True, peers=False)

pytestmark = [  # of torch's own parts, when its compiler is imported
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


class Clock:
    """A clock that moves only when a run says so."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def run(self, name, durations):
        durations = iter(durations)

        def run():
            self.log.append(name)
            self.now += next(durations)

        return run


@pytest.fixture
def uncompiled():
    """Compiled functions run as they are written: no C++ compiler at work in a fast test."""
    with torch.compiler.set_stance("force_eager"):
        yield


def recorded(name):
    record = measure.measure(COMPARISONS[name], TOY, repetitions=2)
    return json.loads(json.dumps(record | {"command": "python -m benchmarks.speed", "malloc": "keep", "load": 0.0}))


def test_rounds_time_each_run_once_in_changing_order():
    clock = Clock()
    runs = {"a": clock.run("a", range(1, 9)), "b": clock.run("b", range(101, 109))}
    seconds = timing.interleave(runs, 8, clock=clock)
    assert seconds == {"a": list(range(1, 9)), "b": list(range(101, 109))}
    rounds = ["".join(clock.log[at : at + 2]) for at in range(0, 16, 2)]
    assert set(rounds) == {"ab", "ba"}


def test_what_the_device_still_has_to_do_counts():
    clock = Clock()
    pending = [0.0]

    def launch():
        pending[0] = 5.0

    def settle():
        clock.now += pending[0]
        pending[0] = 0.0

    assert timing.interleave({"a": launch}, 2, clock=clock, settle=settle) == {"a": [5.0, 5.0]}


def test_ratio_has_median_and_quartiles_of_the_rounds():
    clock = Clock()
    # in the third round the machine was ten times slower for both
    seconds = timing.interleave(
        {"a": clock.run("a", [2, 5, 60, 8, 10]), "b": clock.run("b", [1, 5, 20, 2, 5])}, 5, clock=clock
    )
    found = timing.ratio(seconds["a"], seconds["b"])
    assert found == timing.Spread(2, 2, 3)  # of 2, 1, 3, 4, 2; the medians' ratio is 8 / 5


def test_spread_interpolates_quartiles():
    assert timing.spread([4, 1, 3, 2]) == timing.Spread(2.5, 1.75, 3.25)
    assert timing.spread([7]) == timing.Spread(7, 7, 7)


def test_fastest_is_by_median_among_those_measured():
    seconds = {"a": [1, 9, 9], "b": [5, 5, 5], "c": [0, 0, 0]}
    assert timing.fastest(seconds, ["a", "b", "absent"]) == "b"
    assert timing.fastest(seconds, ["absent"]) is None


def test_rates_are_compared_by_image():
    record = {
        "contestants": {
            "loader": {"seconds": [2.0, 2.0], "images": 100},
            "training": {"seconds": [1.0, 1.0], "images": 10},
        }
    }
    value, above, below = page.value_of(Ratio("loader over training", ("training",), ("loader",)), record)
    assert (value.median, above, below) == (5.0, "training", "loader")


def test_contestants_whose_library_is_missing_are_left_out():
    def build():
        raise ImportError("No module named 'spikingjelly'")

    comparison = Comparison("title", lambda _: "sizes", lambda _: {"peer": build, "ours": lambda: lambda: None})
    record = measure.measure(comparison, TOY, repetitions=1)
    assert list(record["contestants"]) == ["ours"]
    assert record["left_out"] == {"peer": "No module named 'spikingjelly'"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "stack" else ())  # two processes
        for name in COMPARISONS
        if name not in start_up.COMPARISONS
    ],
)
def test_a_comparison_runs_at_toy_size_and_renders(name, uncompiled):
    record = recorded(name)
    assert all(len(entry["seconds"]) == 2 for entry in record["contestants"].values())
    lines = page.section(name, record)
    for contestant in COMPARISONS[name].contestants(TOY):
        assert any(line.startswith(f"| {contestant} | ") for line in lines)
    labels = [ratio.label for ratio in COMPARISONS[name].ratios if page.value_of(ratio, record)]
    assert all(any(line.startswith(f"| {label} | ") for line in lines) for label in labels)


def test_start_up_times_the_commands(monkeypatch):
    monkeypatch.setattr(start_up, "HELP", [sys.executable, "-c", "pass"])
    record = recorded("help")
    assert all(seconds > 0 for seconds in record["contestants"][page.HELP_COMMAND]["seconds"])
    monkeypatch.setattr(start_up, "HELP", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with pytest.raises(AssertionError, match="no such thing"):
        recorded("help")


def test_a_first_step_ends_the_command(tmp_path):
    folder = tmp_path / "runs"
    start_up._command([*start_up.TRAIN, f"output_dir={folder}", "quant=none", "baseline=plain", "compile=none"])
    assert len(list(folder.glob("*/config.yaml"))) == 1
    assert not list(folder.glob("*/checkpoints/*"))


def test_peers_agree_with_ours(uncompiled):
    peers = [name for name in ("snntorch", "spikingjelly") if importlib.util.find_spec(name) is not None]
    settings = Settings(toy=True)
    for name in ("neuron_layer", "training_step"):
        runs = {}
        for contestant, build in COMPARISONS[name].contestants(settings).items():
            if contestant == "ours, eager" or any(contestant.startswith(peer) for peer in peers):
                runs[contestant] = build()
        sentences = COMPARISONS[name].check(runs)
        assert any("snntorch" in sentence for sentence in sentences)


def test_a_neuron_that_differs_is_found_out():
    contestants = COMPARISONS["neuron_layer"].contestants(TOY)
    runs = {"ours, eager": contestants["ours, eager"](), "snntorch": contestants["ours, eager"]()}
    runs["snntorch"].layer.threshold.fill_(1.1)
    with pytest.raises(AssertionError, match=r"snntorch: \d+ spikes differ from ours"):
        COMPARISONS["neuron_layer"].check(runs)


def make_record(contestants, **changes):
    described = {
        "kind": "cpu", "device": "A processor", "cores": 2, "versions": {"torch": "2.13.0"}, "commit": "abc",
        "date": "2026-11-24 01:00 UTC",
    }  # fmt: skip
    return {
        "machine": described, "toy": False, "sizes": "Sizes.", "repetitions": 3, "checks": [], "left_out": {},
        "command": "python -m benchmarks.speed", "malloc": "keep", "load": 0.1, "contestants": contestants, **changes,
    }  # fmt: skip


def test_limits_say_figure_limit_and_whether_it_is_reached(tmp_path):
    folder = tmp_path / "cpu-2-cores"
    folder.mkdir()
    times = {"ours, compiled": [1.1, 1.1, 1.1], "ReLU": [1.0, 1.0, 1.0]}
    layer = make_record({name: {"seconds": seconds} for name, seconds in times.items()})
    (folder / "neuron_layer.json").write_text(json.dumps(layer))
    step = {
        "ours, neurons compiled": {"seconds": [1.0, 1.0, 1.0], "peak_bytes": 150},
        "spikingjelly": {"seconds": [1.2, 1.3, 1.25], "peak_bytes": 100},
    }
    (folder / "training_step.json").write_text(json.dumps(make_record(step)))
    (folder / "notes.md").write_text("What was tried.\n")
    text = page.render(folder)
    assert (
        "| neuron layer over ReLU layer | 1.10 (1.10 to 1.10) | at most 1.2 | yes | not measured | at most 1.3 |  |"
        in text
    )
    assert (
        "| spikingjelly over ours, training step, neurons compiled | 1.25 (1.23 to 1.27) | at least 1.35 | **no** |"
        in text
    )
    assert "| peak memory over spikingjelly's | 1.50 | at most 1 | **no** | not measured | at most 0.9 |  |" in text
    assert "| TNA step over plain step | not measured | at most 2 |  | not measured | at most 2 |  |" in text
    assert "What was tried." in text


def test_a_cuda_folder_fills_the_column_beside(tmp_path):
    for name, ours in (("cpu-2-cores", 1.1), ("cuda-some-gpu", 1.5)):
        (tmp_path / name).mkdir()
        times = {"ours, compiled": [ours] * 3, "ReLU": [1.0] * 3}
        record = make_record({name: {"seconds": seconds} for name, seconds in times.items()})
        (tmp_path / name / "neuron_layer.json").write_text(json.dumps(record))
    assert "| at most 1.2 | yes | 1.50 (1.50 to 1.50) | at most 1.3 | **no** |" in page.render(tmp_path / "cpu-2-cores")


def test_profile_gives_each_operation_its_share(uncompiled):
    record = profile_step.record(TOY)
    for profile in record["profiles"].values():
        assert sum(row["ms"] for row in profile["rows"]) <= profile["total_ms"] * 1.001
        assert all(row["share"] == pytest.approx(row["ms"] / profile["total_ms"], abs=1e-3) for row in profile["rows"])
        assert any("convolution" in row["operation"] for row in profile["rows"])
    assert "| `aten::mkldnn_convolution` |" in page.render_profile(record)


def test_memory_settings_of_the_shell_do_not_reach_the_children(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")  # with it, freed memory would stay in the resident set
    monkeypatch.setenv("KEPT", "yes")
    environment = machine.environment(machine.RETURN_PAGES)
    malloc = {name: value for name, value in environment.items() if name.startswith("MALLOC")}
    assert malloc == machine.RETURN_PAGES
    assert environment["KEPT"] == "yes"


def test_unknown_comparisons_are_named():
    with pytest.raises(ValueError, match="neuron_layr: comparisons are neuron_layer, training_step"):
        page.names(["neuron_layr"])
    assert page.names(["profile", "help"]) == ["help", "profile"]


def test_the_page_of_the_c_runtime_shows_its_record():
    tables = c_runtime.render(json.loads(c_runtime.RESULTS.read_text()))
    assert f"{c_runtime.BEGIN}\n\n{tables}\n\n{c_runtime.END}" in c_runtime.PAGE.read_text()


def test_the_page_on_speed_shows_the_record_of_whole_runs():
    record = json.loads((machine.ROOT / "benchmarks" / "results" / "whole_runs.json").read_text())
    assert f"\n\n{whole_runs.table(record['seconds'])}\n\n" in (machine.ROOT / "docs" / "speed.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or platform.machine() != "x86_64", reason="no C compiler for x86-64")
def test_the_c_runtime_is_measured_and_shown_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = "--networks toy --rate 0.2 --rates 0.3 --rates-network toy --rivals torch --rounds 2 --output"
    monkeypatch.setattr(sys, "argv", ["c_runtime", *few.split(), str(tmp_path / "record.json")])
    c_runtime.main()
    record = json.loads((tmp_path / "record.json").read_text())
    result = record["networks"]["toy"]
    assert set(result["times"]) == {"c_native", "c_avx2", "c_plain", "torch"}
    assert all(each["ms"] > 0 and len(each["quartiles_ms"]) == 2 for each in result["times"].values())
    assert sum(result["rates"]) / len(result["rates"]) == pytest.approx(0.2, abs=0.05)
    # three layers of neurons, two pools and the average before the classifier
    kinds = [name.split()[-1] for name in result["layers_ms"]]
    assert kinds == ["pixel", "spiking", "average", "spiking", "average", "average", "readout"]
    assert sum(result["kinds_ms"].values()) == pytest.approx(sum(result["layers_ms"].values()), abs=1e-3)
    assert 0.5 < result["peak_mib"]["c"] < result["peak_mib"]["torch"]
    lines = c_runtime.render(record).splitlines()
    by_the_clock = {name: each["wall_ms"] for name, each in result["times"].items()}
    row = next(line for line in lines if "times faster" in line)
    assert float(row.split("|")[2]) == pytest.approx(by_the_clock["torch"] / by_the_clock["c_native"], abs=0.06)
    assert f"| native, ms | {record['rates']['0.3']['times']['c_native']['wall_ms']:.3g} |" in lines
