"""Files are written whole or not at all; special files are written to and never replaced."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import BadParameter
from service.files import (
    check_target,
    descriptor_of,
    files_in,
    list_folder,
    whole_file,
    write_whole,
)

NEW = b"new bytes"


@pytest.fixture
def umask() -> Iterator[None]:
    """Set the mode of new files to owner and group."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that only its owner may read."""
    path = tmp_path / "old"
    path.write_bytes(b"old bytes")
    path.chmod(0o600)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_that_umask_gives_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "new"
    check_target(path, overwrite=False)
    write_whole(path, NEW, sync=True)
    assert path.read_bytes() == NEW and mode(path) == 0o640
    assert os.listdir(path.parent) == ["new"]


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("bits", [0o600, 0o444, 0o755])
def test_what_is_replaced_keeps_its_mode(old: Path, bits: int) -> None:
    old.chmod(bits)
    with whole_file(old) as file:
        assert mode(next(p for p in old.parent.iterdir() if p != old)) == bits, "before any byte"
        file.write(NEW)
    assert old.read_bytes() == NEW and mode(old) == bits


@pytest.mark.platform
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_replaces_keeps_its_owner(old: Path) -> None:
    os.chown(old, 1234, 2345)
    write_whole(old, NEW)
    assert (old.stat().st_uid, old.stat().st_gid, mode(old)) == (1234, 2345, 0o600)


def test_a_link_stays_and_what_it_leads_to_is_replaced(old: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link, second = tmp_path / "links" / "one", tmp_path / "links" / "two"
    link.symlink_to(Path("..", "old"))
    second.symlink_to("one")
    with pytest.raises(FileExistsError, match=r"it exists; --overwrite.*links/two"):
        check_target(second, overwrite=False)
    check_target(second, overwrite=True)
    write_whole(second, NEW)
    assert os.readlink(second) == "one" and os.readlink(link) == "../old"
    assert old.read_bytes() == NEW and mode(old) == 0o600 and not old.is_symlink()
    assert sorted(os.listdir(tmp_path / "links")) == ["one", "two"]


def test_a_link_to_nothing_is_filled_and_a_loop_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("later/file")
    check_target(link, overwrite=False)
    write_whole(link, NEW)
    assert link.is_symlink() and (tmp_path / "later" / "file").read_bytes() == NEW
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for attempt in (lambda: check_target(loop, overwrite=True), lambda: write_whole(loop, NEW)):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.ELOOP
    assert loop.is_symlink()


def test_a_pipe_with_a_name_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    check_target(pipe, overwrite=False)
    write_whole(pipe, NEW)
    reader.join()
    assert read == [NEW] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_device_is_written_to(tmp_path: Path) -> None:
    device = tmp_path / "device"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("devices cannot be made here")
    check_target(device, overwrite=False)
    write_whole(device, NEW)
    assert stat.S_ISCHR(device.stat().st_mode) and os.listdir(tmp_path) == ["device"]


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}", "link"])
def test_a_descriptor_is_written_to_where_it_stands(name: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    path = Path(name.format(writing, pid=os.getpid()))
    if name == "link":
        path = tmp_path / "link"
        path.symlink_to(f"/proc/self/fd/{writing}")
    os.write(writing, b"before, ")
    check_target(path, overwrite=False)
    write_whole(path, NEW)
    os.write(writing, b", after")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"before, new bytes, after"


def test_sockets_are_written_to_by_descriptor_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        write_whole(Path(f"/dev/fd/{ours.fileno()}"), NEW)
        assert theirs.recv(100) == NEW
    with socket.socket(socket.AF_UNIX) as named:
        monkeypatch.chdir(tmp_path)  # paths of sockets are short
        named.bind("named")
        with pytest.raises(OSError, match="it is a socket, expected a file or a pipe.*named"):
            check_target(Path("named"), overwrite=True)


def test_descriptors_that_cannot_be_written_are_known_before_the_work() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    for descriptor in (reading, writing):
        with pytest.raises(OSError) as caught:
            check_target(Path(f"/dev/fd/{descriptor}"), overwrite=True)
        assert caught.value.errno == errno.EBADF
    os.close(reading)


def test_names_of_descriptors() -> None:
    standard = [Path("/dev", name) for name in ("stdin", "stdout", "stderr")]
    assert [descriptor_of(path) for path in standard] == [0, 1, 2]
    assert descriptor_of(Path("/proc/thread-self/fd/7")) == 7
    others = ("/dev/null", "/dev/fd", "/dev/fd/x", "dev/fd/1", f"/proc/{os.getpid() + 1}/fd/1")
    assert [descriptor_of(Path(name)) for name in others] == [None] * 5


@pytest.mark.parametrize("there", [True, False], ids=["folder is there", "folder is new"])
def test_the_longest_name_is_written_and_a_longer_one_refused_at_once(
    tmp_path: Path, there: bool
) -> None:
    folder = tmp_path if there else tmp_path / "new"
    longest = folder / ("é" * 127 + "x")
    check_target(longest, overwrite=False)
    with pytest.raises(OSError) as caught:
        check_target(longest.with_name(longest.name + "x"), overwrite=False)
    assert caught.value.errno == errno.ENAMETOOLONG
    write_whole(longest, b"once")
    write_whole(longest, NEW)
    assert longest.read_bytes() == NEW


def test_folders_and_what_lies_in_files_are_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder, expected a file"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError):
        check_target(old / "x", overwrite=True)


@pytest.mark.platform
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(old: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        for path in (old, tmp_path / "new", tmp_path / "deep" / "new"):
            with pytest.raises(PermissionError, match="Permission denied"):
                check_target(path, overwrite=True)
    finally:
        tmp_path.chmod(0o755)


def test_an_error_leaves_what_was_there_and_nothing_else(old: Path) -> None:
    def fail() -> None:
        with whole_file(old) as file:
            file.write(NEW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert old.read_bytes() == b"old bytes" and os.listdir(old.parent) == ["old"]


def test_a_folder_is_listed_through_links_without_hidden_names_and_loops(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/.hidden/x.png", ".git/y.png", "a.txt", "c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    top = tmp_path / "in"
    (tmp_path / "link").symlink_to(top)
    (top / "b" / "loop").symlink_to(tmp_path / "link")
    (top / "again").symlink_to("b")
    (top / "gone").symlink_to("nothing")
    os.mkfifo(top / "pipe")
    for start in (top, tmp_path / "link"):
        listing = list_folder(start)
        names = [path.relative_to(start).as_posix() for path in listing.files]
        assert names == ["a.txt", "again/2.png", "b/2.png", "c.png", "gone"]
        assert [(str(path.relative_to(start)), reason) for path, reason in listing.skipped] == [
            ("again/loop", "is a link to one of its parent folders"),
            ("b/loop", "is a link to one of its parent folders"),
            ("pipe", "is no plain file"),
        ]
        assert listing.unreadable == () and files_in(start) == listing.files


def test_a_folder_that_cannot_be_listed_is_named_and_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").touch()
    really = os.listdir

    def listdir(path: Path) -> list[str]:
        if path == tmp_path / "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(os, "listdir", listdir)
    listing = list_folder(tmp_path)
    assert listing.files == (tmp_path / "a.png",)
    assert [error.filename for error in listing.unreadable] == [str(tmp_path / "sub")]
    with pytest.raises(PermissionError, match="sub"):
        files_in(tmp_path)
    with pytest.raises(BadParameter, match="none is not a folder of pictures"):
        files_in(tmp_path / "none")
