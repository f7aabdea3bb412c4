import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.clip_names import ClipName, is_of_2020, parse_clip_name

WORDS = st.text("aZ09-", min_size=1)
PARTS = st.builds(
    ClipName,
    section=st.integers(0, 120),
    domain=st.sampled_from([None, "source", "target"]),
    split=st.sampled_from([None, "train", "test"]),
    condition=st.sampled_from([None, "normal", "anomaly"]),
    attributes=st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple),
)


@given(PARTS, st.integers(0, 99_999))
def test_a_name_that_was_put_together_is_read(parts, number):
    name = parts.file_name(number)
    assert name.startswith(f"section_{parts.section:02d}_")
    assert parse_clip_name(name) == parts
    assert not is_of_2020(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("section_01_0003_spd_1_ambient.wav", (1, None, None, None, (("spd", "1"), ("", "ambient")))),
        ("normal_id_06_00000933.wav", (6, "source", None, "normal", ())),
        ("id_01_00000001.wav", (1, "source", None, None, ())),
        *((name, None) for name in ("a.wav", "section_0_1.wav", "section_00_0001.flac", "id_01_0001.wav")),
    ],
)
def test_what_the_years_wrote_otherwise_is_read_and_names_of_others_are_not(name, parts):
    assert parse_clip_name(name) == parts
    assert is_of_2020(name) == ("id_" in name and parts is not None)
