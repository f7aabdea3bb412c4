"""One way to write a file: whole or not at all."""

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
