"""Decoding at odd sampling rates against 44.1 kHz, as a ratio measured in one run.

Run by `make bench`.
"""

import io
import time

import numpy as np
import pytest
import soundfile

from branches.audio import decode

pytestmark = pytest.mark.benchmark


def test_odd_rates_against_44_1_khz():
    def seconds(rate):
        content = io.BytesIO()
        soundfile.write(content, np.random.default_rng(0).normal(0, 0.1, (10 * rate, 2)), rate, format="WAV")
        times = []
        for _ in range(5):
            start = time.perf_counter()
            decode(content.getvalue(), "clip")
            times.append(time.perf_counter() - start)
        return min(times) / rate  # for each sample of the recording

    usual = seconds(44_100)
    for rate in (4_001, 16_001, 24_414, 31_999, 48_000, 48_828, 192_001):
        print(f"10 s at {rate} Hz: {seconds(rate) / usual:.1f} times the cost of a sample at 44.1 kHz")
