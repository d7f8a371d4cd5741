"""Files are there as a whole or not at all, and nothing is left of those who were killed."""

import errno
import fcntl

import pytest

from tna_lightning.files import SUFFIX, remove_litter, replacing, temporary_folder, write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_has_left_goes_with_the_next_one_that_writes(tmp_path):
    (tmp_path / f".a.txt.abcdefgh{SUFFIX}").write_text("half")
    (tmp_path / f".b.txt.abcdefgh{SUFFIX}").write_text("half of another")
    (tmp_path / ".a.txt.settings").write_text("a user's own")
    write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == [".a.txt.settings", f".b.txt.abcdefgh{SUFFIX}", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"

    left = tmp_path / f".folder.abcdefgh{SUFFIX}"
    (left / "inner").mkdir(parents=True)
    with temporary_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner").replace(tmp_path / "folder")
        assert not left.exists()
    assert names(tmp_path) == [".a.txt.settings", f".b.txt.abcdefgh{SUFFIX}", "a.txt", "folder"]


def test_the_file_of_a_process_that_is_at_work_is_no_litter(tmp_path):
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("slow")
        write_text(tmp_path / "a.txt", "quick")
        remove_litter(tmp_path / "a.txt")
        assert temporary.exists()
    assert (tmp_path / "a.txt").read_text() == "slow"


def test_a_file_that_is_taken_for_litter_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    flock, taken = fcntl.flock, []

    def late(descriptor, how):
        if not taken:
            taken.extend(tmp_path.glob(f"*{SUFFIX}"))
            taken[0].unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == ["a.txt"]


def test_an_error_names_the_file_and_a_link_is_replaced_not_written_through(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a.txt'$"), replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "mine")
    write_bytes(tmp_path / "a.png", b"picture")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.png").read_bytes() == b"picture"
