"""One way to write a file: whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from scoring.atomic import atomic, atomic_folder


def test_the_file_is_there_when_the_block_ends_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic(path) as temporary:
        (temporary.parent / "absent").rename(temporary)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "result.json"
    with atomic(path) as first:
        first.write_text("first")
        with atomic(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_folder(folder) as temporary:
            (temporary / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["new"]
    with pytest.raises(FileNotFoundError), atomic_folder(folder) as temporary:
        (temporary / "absent").rename(temporary / "other")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_writers_of_one_folder_at_once_leave_that_of_one_of_them(tmp_path):
    def write(number):
        with atomic_folder(tmp_path / "model") as temporary:
            for name in "ab":
                (temporary / name).write_text(str(number))

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(write, range(200)))
    first, second = ((tmp_path / "model" / name).read_text() for name in "ab")
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def on_disk(monkeypatch):
    """What has been flushed and what has been renamed, in order, as inodes: these do not change with the name."""
    calls, flush, rename = [], os.fsync, os.replace

    def noted_flush(descriptor):
        calls.append(("flushed", os.fstat(descriptor).st_ino))
        flush(descriptor)

    def noted_rename(source, target):
        calls.append(("renamed", os.stat(source).st_ino))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", noted_rename)
    return calls


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, on_disk):
    with atomic(tmp_path / "record.json") as temporary:
        temporary.write_text("{}")
    file, folder = (tmp_path / "record.json").stat().st_ino, tmp_path.stat().st_ino
    assert on_disk == [("flushed", file), ("renamed", file), ("flushed", folder)]


def test_so_is_that_of_a_folder_with_all_that_is_in_it(tmp_path, on_disk):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "banks").mkdir()
        (temporary / "banks" / "a.npy").write_text("a")
    parts = {path.stat().st_ino for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]}
    at = on_disk.index(("renamed", (tmp_path / "model").stat().st_ino))
    assert {inode for _, inode in on_disk[:at]} == parts
    assert on_disk[at + 1 :] == [("flushed", tmp_path.stat().st_ino)]


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    flush = os.fsync

    def of_files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "banks").mkdir()
        (temporary / "banks" / "a.npy").write_text("a")
    assert (tmp_path / "model" / "banks" / "a.npy").read_text() == "a"


KILLED = """
import os, signal, sys
from pathlib import Path
from scoring.atomic import atomic_folder

path, left = Path(sys.argv[1]), int(sys.argv[2])
rename = os.replace

def killed(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    rename(source, target)

os.replace = killed
with atomic_folder(path) as new:
    (new / "a").write_text("new")
    (new / "b").write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_at_any_rename_loses_no_folder(tmp_path, renames):
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        for name in "ab":
            (temporary / name).write_text("old")
    command = [sys.executable, "-c", KILLED, path, str(renames)]
    assert subprocess.run(command, check=False).returncode == -9
    contents = [sorted(p.read_text() for p in folder.iterdir()) for folder in tmp_path.iterdir()]
    assert ["old", "old"] in contents
    assert path.exists() == (renames == 0)
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("again")
    assert [p.read_text() for p in path.iterdir()] == ["again"]


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path, rename = tmp_path / "model", os.replace
    path.mkdir()
    (path / "old").touch()

    def refused(source, target):
        if target == path and (source / "new").exists():
            raise PermissionError(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError), atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in path.iterdir()] == ["old"]
