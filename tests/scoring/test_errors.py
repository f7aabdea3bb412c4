import pytest

from scoring.errors import PLACE_ERRNOS, place_error


def test_a_place_that_refuses_is_named_with_the_remedy(tmp_path):
    with pytest.raises(OSError, match="directory") as raised:
        tmp_path.write_text("")
    assert raised.value.errno in PLACE_ERRNOS
    assert place_error(raised.value) == f"{tmp_path}: Is a directory; make room, or give another path"
    assert place_error(OSError("2 of 5 written")) == "2 of 5 written; make room, or give another path"
