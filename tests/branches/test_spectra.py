"""What is said of a recording against normals, where one knows what was done to it."""

import re

import numpy as np
import pytest
import soundfile

from branches.spectra import spectrum_of


def noise(number, seconds=5.0):
    """Of a machine whose level is not always the same: (samples, 1)."""
    rng = np.random.default_rng(number)
    return (0.02 * 10 ** rng.uniform(0, 0.3) * rng.normal(size=(int(16_000 * seconds), 1))).astype(np.float32)


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normals")
    for i in range(30):
        soundfile.write(folder / f"{i}.wav", noise(i), 16_000)
    return sorted(folder.iterdir())


def with_tone(hz, start, end, level):
    t = np.arange(80_000)[:, None] / 16_000
    return noise(99) + np.float32(level) * np.where((t >= start) & (t < end), np.sin(2 * np.pi * hz * t), 0)


@pytest.mark.parametrize(
    ("sound", "change"),
    [
        (with_tone(3100, 2, 4, 0.1), "2.0–4.0 s, around 3.1 kHz, 1. dB above normal"),
        (with_tone(400, 0, 5, 0.1), "throughout, around 4.. Hz, 2. dB above normal"),
        (np.repeat(with_tone(3100, 4.5, 5, 0.1), 2, axis=1), "4.5–5.0 s, around 3.1 kHz, 1. dB above normal"),
        (noise(99) / 8, "throughout, at all frequencies, 1. dB below normal"),
        (np.cumsum(noise(99), axis=0) / 40, "throughout, from .* dB .* normal"),
        (np.zeros((80_000, 1)), "throughout, at all frequencies, [0-9]+ dB below normal"),
    ],
)
def test_it_is_told_when_at_which_frequencies_and_how_much(normals, sound, change):
    assert re.fullmatch(change, spectrum_of(normals).change(sound.astype(np.float32)))


def test_of_normals_nothing_stands_out_few_or_short_as_they_may_be_and_what_is_gone_says_nothing(normals, tmp_path):
    many, few = spectrum_of(normals), spectrum_of(normals[:3])
    assert [many.change(noise(i)) for i in range(100, 130)].count("") >= 28
    assert isinstance(few.change(noise(99, 0.2)), str)
    for gone in (normals[:2], [*normals, None], [*normals, tmp_path / "gone.wav"]):
        assert spectrum_of(gone) is None
