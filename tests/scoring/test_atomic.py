"""A file or a folder is there as a whole or not at all, whatever happens on the way."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from scoring.atomic import atomic, atomic_folder


def write_file(path, text, then=lambda: None):
    with atomic(path) as temporary:
        temporary.write_text(text)
        then()


def write_folder(path, text, then=lambda: None):
    with atomic_folder(path) as new:
        (new / "banks").mkdir()
        (new / "a").write_text(text)
        (new / "banks" / "b").write_text(text)
        then()


both = pytest.mark.parametrize("write", [write_file, write_folder])


def texts(path):
    return {p.read_text() for p in [path, *path.rglob("*")] if p.is_file()}


@both
def test_the_old_one_stays_until_the_block_ends_without_an_error(tmp_path, write):
    path, seen = tmp_path / "result", []
    write(path, "old")
    with pytest.raises(FileNotFoundError):
        write(path, "half", then=(tmp_path / "absent").read_text)
    assert texts(tmp_path) == {"old"}
    write(path, "new", then=lambda: seen.append(texts(path)))
    assert seen == [{"old"}]
    assert texts(path) == {"new"}
    assert list(tmp_path.iterdir()) == [path]


@both
def test_writers_at_once_leave_the_whole_of_one_of_them(tmp_path, write):
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda number: write(tmp_path / "result", str(number)), range(100)))
    assert len(texts(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "result"]


def test_a_folder_that_another_writer_has_put_there_meanwhile_is_replaced_as_well(tmp_path, monkeypatch):
    path, rename = tmp_path / "model", os.replace
    write_folder(path, "old")

    def rename_and_disturb(source, target):
        rename(source, target)
        if source == path:
            monkeypatch.undo()
            write_folder(path, "other")

    monkeypatch.setattr(os, "replace", rename_and_disturb)
    write_folder(path, "new")
    assert texts(tmp_path) == {"new"}


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path, rename = tmp_path / "model", os.replace
    write_folder(path, "old")

    def refused(source, target):
        if "new" in texts(source):
            raise PermissionError(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        write_folder(path, "new")
    assert texts(tmp_path) == texts(path) == {"old"}


@both
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch, write):
    calls = []  # with inodes, which do not change with the name

    def note(name, call):
        def noted(what, *more):
            calls.append((name, os.stat(what).st_ino))
            call(what, *more)

        monkeypatch.setattr(os, name, noted)

    note("fsync", os.fsync)
    note("replace", os.replace)
    write(tmp_path / "result", "new")
    parts = {path.stat().st_ino for path in [tmp_path / "result", *(tmp_path / "result").rglob("*")]}
    at = calls.index(("replace", (tmp_path / "result").stat().st_ino))
    assert set(calls[:at]) == {("fsync", inode) for inode in parts}
    assert calls[at + 1 :] == [("fsync", tmp_path.stat().st_ino)]


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    write_folder(tmp_path / "model", "new")
    assert texts(tmp_path) == {"new"}


KILLED = """
import os, signal, sys
from pathlib import Path
from scoring.atomic import atomic_folder

rename, left = os.replace, int(sys.argv[2])

def killed(*paths):
    global left
    left -= 1
    rename(*paths) if left >= 0 else os.kill(os.getpid(), signal.SIGKILL)

os.replace = killed
with atomic_folder(Path(sys.argv[1])) as new:
    (new / "a").write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_at_any_rename_loses_no_folder(tmp_path, renames):
    path = tmp_path / "model"
    write_folder(path, "old")
    assert subprocess.run([sys.executable, "-c", KILLED, path, str(renames)], check=False).returncode == -9
    assert {"old"} in [texts(folder) for folder in tmp_path.iterdir()]
    assert path.exists() == (renames == 0)
    write_folder(path, "again")
    assert texts(path) == {"again"}
