"""The physics of the generated machines: what each one sounds like, well and ill, before any room.

`branches.data.synthetic` places these sources in rooms and writes the clips. To add a machine, write a function
from `Operation` to its source signal and enter it in `MACHINES` with its operating states and faults.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, lfilter, sosfilt

RATE = 16_000  # Hz

Signal = NDArray[np.float64]
OperatingState = Mapping[str, int]  # attribute → value, e.g. {"spd": 2}
Mode = tuple[float, float, float]  # frequency in Hz, decay time in s, amplitude


@dataclass(frozen=True)
class Operation:
    """What one machine does during one clip, and what is wrong with it."""

    rng: np.random.Generator
    samples: int
    state: OperatingState
    fault: str | None = None
    severity: float = 0.0  # 0 (inaudible) to 1

    def ill(self, fault: str) -> float:
        """Severity of the named fault here; 0 where another fault or none is present."""
        return self.severity if fault == self.fault else 0.0


@dataclass(frozen=True)
class Machine:
    """A machine type: its sound, the states that either domain runs it in, its faults and its surroundings."""

    source_signal: Callable[[Operation], Signal]
    source: Sequence[OperatingState]
    target: Sequence[OperatingState]  # at least one of them is never heard in the source domain
    faults: Sequence[str]
    ambient: float  # ambient level at the near microphone relative to the machine, amplitude ratio
    other_room: bool = False  # the target domain was recorded in another room
    attributes: bool = True  # False: states exist, but file names do not tell them


def slow(op: Operation, hz: float) -> Signal:
    """A curve of about unit standard deviation that wanders at `hz`, shape (samples,)."""
    knots = int(op.samples * hz / RATE) + 2
    points = np.linspace(0, knots - 1, op.samples)
    return np.interp(points, np.arange(knots), op.rng.normal(size=knots))


def turning(hz: float | Signal, samples: int) -> Signal:
    """Shaft angle in radians for a speed in Hz, constant or one value a sample."""
    return np.cumsum(np.broadcast_to(2 * np.pi * np.asarray(hz) / RATE, samples))


def harmonics(op: Operation, angle: Signal, amplitudes: Signal | Sequence[float], first: float = 1) -> Signal:
    """Sum of sines at the orders `first`, `first` + 1, … of a shaft's angle, each from a random phase."""
    weights = np.asarray(amplitudes) * np.exp(1j * op.rng.uniform(0, 2 * np.pi, len(amplitudes)))
    if not weights.any():
        return np.zeros(op.samples)
    # Harmonics are a polynomial in exp(i·angle); Horner's scheme takes a product where each sine cost a call.
    turn = np.exp(1j * angle).astype(np.complex64)
    total = np.full(op.samples, weights[-1], dtype=np.complex64)
    for weight in weights[-2::-1]:
        total *= turn
        total += weight
    return np.asarray((total * (turn if first == 1 else np.exp(1j * first * angle))).imag)


def band_noise(op: Operation, low: float, high: float) -> Signal:
    """Noise of unit RMS between two frequencies in Hz (second-order Butterworth edges)."""
    edges = butter(2, (low, high), "bandpass", fs=RATE, output="sos")
    noise = op.rng.normal(scale=np.sqrt(RATE / 2 / (high - low)), size=op.samples)
    return np.asarray(sosfilt(edges, noise))


def impulses(op: Operation, times: Signal, amplitudes: Signal | float = 1.0) -> Signal:
    """Unit impulses at `times` (s); those outside the clip are left out."""
    track = np.zeros(op.samples)
    at = (times * RATE).astype(np.int64)
    inside = (at >= 0) & (at < op.samples)
    np.add.at(track, at[inside], np.broadcast_to(amplitudes, times.shape)[inside])
    return track


def regular(op: Operation, hz: float, jitter: float = 0.02) -> Signal:
    """Times (s) of events `hz` times a second, each interval off by a relative `jitter`."""
    count = int(op.samples / RATE * hz * 1.2) + 2
    intervals = np.maximum(1 + jitter * op.rng.normal(size=count), 0.1) / hz
    return np.asarray(op.rng.uniform(0, 1 / hz) + np.cumsum(intervals) - intervals[0])


def scattered(op: Operation, hz: float) -> Signal:
    """Times (s) of events without memory (Poisson), `hz` a second on average."""
    seconds = op.samples / RATE
    return op.rng.uniform(0, seconds, op.rng.poisson(hz * seconds))


def ring(excitation: Signal, modes: Sequence[Mode]) -> Signal:
    """Response of damped resonances to an excitation: an impulse gives Σ a·exp(−t/τ)·sin(2πft)."""
    total = np.zeros_like(excitation)
    excitation = excitation + 1e-20  # keeps the decaying tail out of the denormal numbers, which are slow
    for hz, decay, amplitude in modes:
        radius, turn = np.exp(-1 / (decay * RATE)), 2 * np.pi * hz / RATE
        poles = [1, -2 * radius * np.cos(turn), radius**2]
        total += lfilter([amplitude * np.sin(turn)], poles, excitation)
    return total


def rotor(op: Operation) -> Signal:
    """Unbalanced rotor in an air stream: shaft harmonics that lean with the load, and flow noise.

    Imbalance raises the first order, looseness adds half orders, a rub bursts while the shaft wanders
    into its housing, a pitted bearing strikes 3.6 times a turn (the outer race of an eight-ball bearing).
    """
    load = op.rng.uniform(0.75, 1.25)
    speed = (22 + 7 * op.state["spd"]) * op.rng.uniform(0.985, 1.015)
    angle = turning(speed * (1 + 0.004 * slow(op, 1.5)), op.samples)
    orders = np.arange(1, 15)
    amplitudes = 0.6 * load ** (orders / 4) / orders**0.8 * op.rng.uniform(0.75, 1.3, orders.size)
    amplitudes[0] *= 1 + 2.5 * op.ill("imbalance")
    body = harmonics(op, angle, amplitudes)
    body += harmonics(op, angle, op.ill("looseness") * 0.3 / np.arange(0.5, 6) ** 0.5, first=0.5)
    flow = 0.25 * load**2 * band_noise(op, 300, 3000)
    contact = np.maximum(slow(op, 3) - 0.8, 0) * np.maximum(np.cos(angle), 0) ** 4
    rub = 1.2 * op.ill("rub") * contact * band_noise(op, 2000, 6500)
    pits = ring(impulses(op, regular(op, 3.6 * speed)), [(3100, 0.0015, 1), (4700, 0.001, 0.7)])
    return np.asarray(body + flow + rub + 0.35 * op.ill("bearing") * pits)


VALVE_PATTERNS = {1: (0.0, 0.45), 2: (0.0, 0.2, 0.55), 3: (0.0, 0.15, 0.4, 0.6)}  # s within a cycle


def valve(op: Operation) -> Signal:
    """Solenoid valve: a repeated pattern of strikes that excite the body's resonances, and hiss while open.

    Strikes become weak, go missing, or bounce; a cracked body rings lower; a worn seat leaks all the time.
    """
    pressure = (0.8 + 0.25 * op.state["pre"]) * op.rng.uniform(0.85, 1.15)
    cycle = 0.8 * op.rng.uniform(0.95, 1.05)
    starts = regular(op, 1 / cycle, 0.01)
    pattern = np.asarray(VALVE_PATTERNS[op.state["pat"]])
    times = (starts[:, None] + pattern * cycle / 0.8 + 0.006 * op.rng.normal(size=(starts.size, 1))).ravel()
    strength = pressure * op.rng.uniform(0.7, 1.3, times.size) * (1 - 0.75 * op.ill("weak"))
    strength *= op.rng.uniform(size=times.size) >= 0.6 * op.ill("missing")
    track = impulses(op, times, strength)
    bounce = times + op.rng.uniform(0.025, 0.06, times.size)
    track += impulses(op, bounce, 0.7 * op.ill("bounce") * strength)
    tune = (1 - 0.08 * op.ill("crack")) * op.rng.uniform(0.98, 1.02)
    struck = ring(track, [(850 * tune, 0.012, 1), (2350 * tune, 0.007, 0.9), (4100 * tune, 0.004, 0.8)])
    opened = lfilter([1], [1, -np.exp(-1 / (0.08 * RATE))], track)
    hiss = (0.10 * pressure * opened + 0.04 * op.ill("leak")) * band_noise(op, 2500, 7000)
    return np.asarray(3.5 * (struck + hiss))


def gearbox(op: Operation) -> Signal:
    """One gear stage: mesh tones of 23 teeth, modulated at shaft rate, ringing through the housing.

    Eccentricity deepens the shaft-rate sidebands, wear raises the upper mesh harmonics, a broken tooth
    strikes once a turn, a ghost tone sits off the mesh, and a hunting load makes the level wander.
    """
    load = (0.7 + 0.3 * op.state["load"]) * op.rng.uniform(0.85, 1.15)
    shaft = (11 + 3.5 * op.state["spd"]) * op.rng.uniform(0.98, 1.02)
    angle = turning(shaft * (1 + 0.003 * slow(op, 2)), op.samples)
    amplitudes = 0.6 * load / np.arange(1, 9) ** 0.7 * op.rng.uniform(0.7, 1.4, 8)
    amplitudes[2:] *= 1 + 0.8 * op.ill("wear")
    mesh = harmonics(op, 23 * angle, amplitudes)
    depth = op.rng.uniform(0.1, 0.3) + 0.4 * op.ill("eccentric")
    mesh *= 1 + depth * np.cos(angle) + 0.1 * np.cos(angle / 2.6)
    mesh *= np.exp(0.5 * op.ill("hunting") * slow(op, 3))
    ghost = harmonics(op, 37.4 * angle, op.ill("ghost") * np.array([0.3, 0.18]))
    broken = ring(impulses(op, regular(op, shaft, 0.01)), [(1900, 0.004, 1), (3600, 0.003, 1)])
    churning = 0.2 * load * band_noise(op, 200, 2500)
    return mesh + ghost + 0.7 * op.ill("tooth") * broken + churning


def pump(op: Operation) -> Signal:
    """Vane pump: flow noise that swells with each vane, and a vane-passing tone.

    Cavitation crackles at random, a bearing strikes regularly, clogging darkens the flow, air in the line
    makes it surge about once a second.
    """
    flow = (0.7 + 0.2 * op.state["flow"]) * op.rng.uniform(0.9, 1.1)
    angle = turning((20 + 3 * op.state["flow"]) * (1 + 0.005 * slow(op, 2)), op.samples)
    dark = 1 - 0.25 * op.ill("clog")
    stream = flow**2 * band_noise(op, 250, 1800 * flow * dark) * (1 + 0.4 * np.cos(5 * angle))
    stream *= np.exp(op.rng.uniform(0.05, 0.2) * slow(op, 4))
    seconds = np.arange(op.samples) / RATE
    beat = np.sin(2 * np.pi * op.rng.uniform(0.7, 1.6) * seconds + op.rng.uniform(0, 6))
    stream *= 1 + 0.5 * op.ill("surge") * beat
    tone = harmonics(op, 5 * angle, flow * np.array([0.5, 0.3, 0.2, 0.1]))
    at = scattered(op, 14)
    crackle = ring(impulses(op, at, op.rng.exponential(size=at.size)), [(4200, 0.003, 1), (5900, 0.002, 1)])
    pits = ring(impulses(op, regular(op, 87)), [(3400, 0.0015, 1), (2600, 0.002, 0.6)])
    impacts = 0.7 * op.ill("cavitation") * crackle + 0.5 * op.ill("bearing") * pits
    return np.asarray(0.8 * (stream + tone) + impacts)


def slider(op: Operation) -> Signal:
    """Carriage on a rail: friction noise that follows the speed of the stroke, and a knock at each turn.

    A dry rail sounds brighter, a tight one squeals at full speed, play makes the knocks hard, a pit in the
    rail clicks on each pass, stick-slip chops the friction noise.
    """
    strokes = (0.5 + 0.25 * op.state["vel"]) * op.rng.uniform(0.95, 1.05)  # round trips a second
    angle = turning(strokes * (1 + 0.01 * slow(op, 1)), op.samples) + op.rng.uniform(0, 2 * np.pi)
    speed = np.abs(np.sin(angle)) * (0.7 + 0.3 * op.state["vel"])
    bright = 0.25 * op.rng.uniform(0.7, 1.4) + 0.35 * op.ill("dry")
    friction = speed * (band_noise(op, 300, 1500) + bright * band_noise(op, 2000, 7000))
    friction *= np.exp(0.3 * slow(op, 6))
    friction *= 1 - 0.8 * op.ill("stick") * (slow(op, 25) > 0.3)
    pitch = turning(2700 * op.rng.uniform(0.95, 1.05) * (1 + 0.05 * speed), op.samples)
    squeal = np.maximum(speed - 0.6, 0) * harmonics(op, pitch, op.ill("squeal") * np.array([0.35, 0.35]))
    turns = np.flatnonzero(np.diff(np.floor(angle / np.pi))) / RATE
    knock = op.rng.uniform(0.6, 1.4, turns.size) * (1 + 1.8 * op.ill("play"))
    passes = np.flatnonzero(np.diff(np.floor(angle / np.pi - 0.37))) / RATE
    track = impulses(op, turns, knock) + impulses(op, passes, 2.5 * op.ill("pit"))
    return friction + squeal + 1.5 * ring(track, [(600, 0.01, 1), (1700, 0.005, 0.8), (3300, 0.003, 0.5)])


MACHINES: Mapping[str, Machine] = {
    "rotor": Machine(
        rotor,
        source=[{"spd": 1}, {"spd": 2}],
        target=[{"spd": 3}],
        faults=["imbalance", "looseness", "rub", "bearing"],
        ambient=0.35,
    ),
    "valve": Machine(
        valve,
        source=[{"pat": 1, "pre": 1}, {"pat": 1, "pre": 2}, {"pat": 2, "pre": 1}, {"pat": 2, "pre": 2}],
        target=[{"pat": 3, "pre": 1}, {"pat": 3, "pre": 2}],
        faults=["weak", "missing", "bounce", "crack", "leak"],
        ambient=0.25,
    ),
    "gearbox": Machine(
        gearbox,
        source=[{"spd": 1, "load": 1}, {"spd": 1, "load": 2}, {"spd": 2, "load": 1}],
        target=[{"spd": 1, "load": 3}, {"spd": 2, "load": 3}],
        faults=["eccentric", "wear", "tooth", "ghost", "hunting"],
        ambient=0.4,
    ),
    "pump": Machine(
        pump,
        source=[{"flow": 1}, {"flow": 2}],
        target=[{"flow": 1}, {"flow": 3}],
        faults=["cavitation", "bearing", "clog", "surge"],
        ambient=0.35,
        other_room=True,
        attributes=False,
    ),
    "slider": Machine(
        slider,
        source=[{"vel": 1}, {"vel": 2}],
        target=[{"vel": 3}],
        faults=["dry", "squeal", "play", "pit", "stick"],
        ambient=0.3,
        other_room=True,
    ),
}
