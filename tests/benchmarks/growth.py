"""How a cost grows with the work: CPU seconds at n, 2n and 4n."""

import time
from math import log2


def grows(what, action, n, most=1.3):
    """CPU seconds at 4n of something that does not grow faster than n to the power `most`."""
    seconds = []
    for size in (n, 2 * n, 4 * n):
        began = time.process_time()
        action(size)
        seconds.append(time.process_time() - began)
    exponent = log2(seconds[2] / seconds[0]) / 2
    print(f"\n{what}: {', '.join(f'{s:.3f}' for s in seconds)} s at {n}, {2 * n}, {4 * n}: n^{exponent:.2f}", end="")
    assert exponent < most
    return seconds[2]
