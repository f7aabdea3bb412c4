"""A file or a folder is there as a whole or not at all, whatever happens on the way."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from scoring.atomic import atomic, atomic_folder
from scoring.errors import PLACE_ERRNOS, place_error


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
    assert (seen, texts(path), list(tmp_path.iterdir())) == ([{"old"}], {"new"}, [path])


@both
def test_writers_at_once_leave_the_whole_of_one_of_them(tmp_path, write):
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda number: write(tmp_path / "result", str(number)), range(100)))
    assert (len(texts(tmp_path)), list(tmp_path.iterdir())) == (1, [tmp_path / "result"])


def before_each_rename(act, monkeypatch):
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (act(*paths), rename(*paths)))


def test_a_folder_that_another_writer_has_meanwhile_put_there_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "model"
    write_folder(path, "old")

    def disturb(source, target):
        if target == path:
            monkeypatch.undo()
            write_folder(path, "other")

    before_each_rename(disturb, monkeypatch)
    write_folder(path, "new")
    assert texts(tmp_path) == {"new"}


def test_the_old_folder_is_whole_at_every_rename_and_comes_back_if_the_new_one_is_refused(tmp_path, monkeypatch):
    """So a kill at any of them loses nothing."""
    path, whole = tmp_path / "model", []
    write_folder(path, "old")

    def refuse(source, target):
        whole.append({"old"} in [texts(folder) for folder in tmp_path.iterdir()])
        if "new" in texts(source):
            raise PermissionError(target)

    before_each_rename(refuse, monkeypatch)
    with pytest.raises(PermissionError):
        write_folder(path, "new")
    assert whole == [True, True, True]
    assert texts(tmp_path) == texts(path) == {"old"}


@both
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch, write):
    """By inodes, which do not change with the name."""
    path, calls = tmp_path / "result", []
    for call in (os.fsync, os.replace):

        def noted(what, *more, call=call):
            calls.append((call, os.stat(what).st_ino))
            call(what, *more)

        monkeypatch.setattr(os, call.__name__, noted)
    write(path, "new")
    monkeypatch.undo()
    at = calls.index((os.replace, path.stat().st_ino))
    assert set(calls[:at]) == {(os.fsync, part.stat().st_ino) for part in [path, *path.rglob("*")]}
    assert calls[at + 1 :] == [(os.fsync, tmp_path.stat().st_ino)]


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    write_folder(tmp_path / "model", "new")
    assert texts(tmp_path) == {"new"}


def test_a_place_that_refuses_is_named_with_the_remedy(tmp_path):
    with pytest.raises(OSError, match="directory") as raised:
        tmp_path.write_text("")
    assert raised.value.errno in PLACE_ERRNOS
    assert place_error(raised.value) == f"{tmp_path}: Is a directory; make room, or give another path"
    assert place_error(OSError("2 of 5 written")) == "2 of 5 written; make room, or give another path"
