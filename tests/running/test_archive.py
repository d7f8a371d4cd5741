"""A study's records in one file: value for value, the same bytes, and what is not to be kept."""

import json

import pytest

from tna_lightning.running.archive import find_records, keep_records, read_records, write_records
from tna_lightning.running.record import Run, read_record


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = {"b": [1, 1.0, -0.0, 0.1 + 0.2, 5e-324, 2**70, True, None], "a": {"µ": "ä\n", "": {}}, "list": []}
    write_records(tmp_path / "r.jsonl.gz", {"x": record, "deeper/y": {}})
    kept = read_records(tmp_path / "r.jsonl.gz")
    assert list(kept) == ["x", "deeper/y"]
    assert json.dumps(kept["x"]) == json.dumps(record)  # with the order of keys, and 1 and 1.0 told apart
    first = (tmp_path / "r.jsonl.gz").read_bytes()
    write_records(tmp_path / "other.jsonl.gz", kept)
    assert (tmp_path / "other.jsonl.gz").read_bytes() == first
    assert first[4:8] == bytes(4)  # no time stamp


def test_a_runs_record_is_kept_whole_and_read_as_today(tmp_path):
    config = {"seed": 0, "cost": {"pj_per_mac": 4.6}}  # where 0.1.0 had it: a reader of the folder sees it as today
    run = Run(tmp_path / "study" / "run", config)
    run.write(status="done")
    number, unreadable = keep_records([run.folder], tmp_path / "kept.jsonl.gz")
    assert (number, unreadable) == (1, [])
    ((place, read),) = find_records(tmp_path / "kept.jsonl.gz")
    assert place == tmp_path / "kept.jsonl.gz" / "run"
    written = (run.folder / "run.json").read_text()
    assert json.dumps(read(), indent=1) + "\n" == written
    assert "_target_" not in read()["config"]["cost"]
    assert "_target_" in read_record(run.folder)["config"]["cost"]


def test_what_cannot_be_read_is_named_and_not_kept(tmp_path):
    Run(tmp_path / "good", {"seed": 0}).write()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text('{"status": "do')
    number, (line,) = keep_records([tmp_path], tmp_path / "kept.jsonl.gz")
    assert (number, list(read_records(tmp_path / "kept.jsonl.gz"))) == (1, ["good"])
    assert line.startswith(f"run={str(tmp_path / 'bad')!r}: run.json is damaged")


def test_a_file_is_not_replaced_by_one_that_has_less(tmp_path):
    file = tmp_path / "kept.jsonl.gz"
    runs = [Run(tmp_path / study / f"run{number}", {"seed": number}) for number, study in enumerate("ab")]
    for run in runs:
        run.write()
    keep_records([tmp_path / "a"], file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"^records='.*': would lose 1 of its records \(run0, ...\); "):
        keep_records([tmp_path / "b"], file)
    assert file.read_bytes() == before
    assert keep_records([tmp_path / "b" / "run1", file], file) == (2, [])
    assert set(read_records(file)) == {"b/run1", "run0"}
    beside = tmp_path / "a" / "records.jsonl.gz"
    Run(tmp_path / "a" / "run2", {"seed": 2}).write()
    keep_records([tmp_path / "a"], beside)
    (runs[0].folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="would lose"):
        keep_records([tmp_path / "a"], beside)  # the good copy of what is now damaged


def test_a_wrong_name_and_nothing_to_keep_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^study='.*': no record is in it to be kept$"):
        keep_records([tmp_path], tmp_path / "kept.jsonl.gz")
    Run(tmp_path / "good", {"seed": 0}).write()
    with pytest.raises(ValueError, match=r"^records='.*kept.json': must end in .jsonl.gz$"):
        keep_records([tmp_path], tmp_path / "kept.json")
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        keep_records([tmp_path / "nowhere"], tmp_path / "kept.jsonl.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
