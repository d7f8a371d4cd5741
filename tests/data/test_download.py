"""Downloads from a server on loopback, and archives."""

import hashlib
import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import pytest

from tna_lightning.data.download import DownloadError, download, unpack

CONTENT = os.urandom(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


def test_fetches_once_and_leaves_no_part(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    path = tmp_path / "new" / "folder" / "file"
    assert download(f"{server.address}/file", path, MD5) == path
    assert path.read_bytes() == CONTENT
    download(f"{server.address}/file", path, MD5)
    assert server.requests == [None]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["file", "file.lock"]


def test_other_checksums(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    download(f"{server.address}/file", tmp_path / "file", "sha256:" + hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_continues_what_an_earlier_call_began(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    (tmp_path / "file.part").write_bytes(CONTENT[:100_000])
    download(f"{server.address}/file", tmp_path / "file", MD5)
    assert server.requests == ["bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_continues_when_the_answer_breaks_off(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT}, stop_after=120_000)
    download(f"{server.address}/file", tmp_path / "file", MD5)
    assert server.requests == [None, "bytes=120000-", "bytes=240000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_the_whole_file(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(f"{server.address}/file", tmp_path / "file", MD5)
    assert server.requests == ["bytes=300000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_cannot_continue_starts_again(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT}, ranges=False)
    (tmp_path / "file.part").write_bytes(b"x" * 100_000)
    download(f"{server.address}/file", tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_never_gets_further(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT}, ranges=False, stop_after=50_000)
    with pytest.raises(DownloadError, match="the answer broke off after 50000 of 300000 bytes"):
        download(f"{server.address}/file", tmp_path / "file", MD5)
    assert not (tmp_path / "file").exists()


def test_wrong_checksum_keeps_nothing(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    with pytest.raises(ValueError, match=f"md5 is {MD5[4:]}, must be 00ff"):
        download(f"{server.address}/file", tmp_path / "file", "md5:00ff")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.lock"]


def test_a_wrong_file_that_is_there_is_neither_used_nor_lost(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    (tmp_path / "file").write_bytes(b"something of the user's")
    with pytest.raises(ValueError, match=f"{tmp_path / 'file'}: md5 is"):
        download(f"{server.address}/file", tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == b"something of the user's"
    assert server.requests == []


@pytest.mark.parametrize("status", [202, 403, 404, 503])
def test_web_page_for_people_instead_of_the_file(serve, tmp_path: Path, status: int) -> None:
    server = serve({"/file": CONTENT}, status=status)
    with pytest.raises(DownloadError) as caught:
        download(f"{server.address}/file", tmp_path / "file", MD5)
    message = str(caught.value)
    assert str(status) in message
    assert f"{tmp_path / 'file'} is missing" in message
    assert f"Fetch {server.address}/file yourself and put it there" in message
    assert not (tmp_path / "file.part").exists()


def test_a_length_that_is_no_number(serve, tmp_path: Path, monkeypatch) -> None:
    server = serve({"/file": CONTENT})
    send = server.http.RequestHandlerClass.send_header
    wrong = {"Content-Length": "many"}
    monkeypatch.setattr(
        server.http.RequestHandlerClass,
        "send_header",
        lambda self, name, value: send(self, name, wrong.get(name, value)),
    )
    with pytest.raises(DownloadError, match=r"file is missing .* the server says that the file has 'many' bytes"):
        download(f"{server.address}/file", tmp_path / "file", MD5)


def test_a_folder_of_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ValueError, match=r"file: is a folder, must be the file itself; move or rename it"):
        download("http://127.0.0.1:9/file", tmp_path / "file", MD5)


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="could not be fetched"):
        download("http://127.0.0.1:9/file", tmp_path / "file", MD5)


def test_several_processes_fetch_once(serve, tmp_path: Path) -> None:
    server = serve({"/file": CONTENT})
    context = multiprocessing.get_context("spawn")
    arguments = (f"{server.address}/file", tmp_path / "file", MD5)
    processes = [context.Process(target=download, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [None]


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class TestUnpack:
    def test_unpacks_once(self, tmp_path: Path) -> None:
        archive = pack(tmp_path / "set.tar.gz", {"set/a": b"1", "set/below/b": b"2"})
        folder = unpack(archive, tmp_path / "set")
        assert (folder / "a").read_bytes() == b"1"
        assert (folder / "below" / "b").read_bytes() == b"2"
        (folder / "a").write_bytes(b"kept")
        unpack(archive, tmp_path / "set")
        assert (folder / "a").read_bytes() == b"kept"

    @pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "set/../../outside"])
    def test_members_that_lead_outside(self, tmp_path: Path, name: str) -> None:
        below = tmp_path / "below"
        below.mkdir()
        archive = pack(below / "set.tar.gz", {"set/a": b"1", name: b"2"})
        if name.startswith("/"):  # tarfile's data filter strips the slash
            unpack(archive, below / "set")
            assert not Path(name).exists()
        else:
            with pytest.raises(ValueError, match="is damaged"):
                unpack(archive, below / "set")
            assert not (below / "set").exists()
        assert not (tmp_path / "outside").exists()

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_cut_off_archive_leaves_nothing(self, tmp_path: Path, share: float) -> None:
        archive = pack(tmp_path / "set.tar.gz", {f"set/{n}": os.urandom(10_000) for n in range(5)})
        content = archive.read_bytes()
        archive.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=rf"^{archive}: is damaged"):
            unpack(archive, tmp_path / "set")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set.lock", "set.tar.gz"]

    @pytest.mark.parametrize("name", ["set/" + "a" * 300, "set/a/b"])
    def test_names_that_no_disk_takes(self, tmp_path: Path, name: str) -> None:
        archive = pack(tmp_path / "set.tar.gz", {"set/a": b"1", name: b"2"})
        with pytest.raises(ValueError, match=rf"^{archive}: is damaged"):
            unpack(archive, tmp_path / "set")
        assert not (tmp_path / "set").exists()

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        unpack(pack(tmp_path / "set.tar.gz", {"set/a": b"1"}), tmp_path / "set")
        assert (tmp_path / "set" / "a").read_bytes() == b"1"

    def test_another_top_folder(self, tmp_path: Path) -> None:
        archive = pack(tmp_path / "set.tar.gz", {"other/a": b"1"})
        with pytest.raises(ValueError, match="must contain the folder set"):
            unpack(archive, tmp_path / "set")
        assert not (tmp_path / "set").exists()
