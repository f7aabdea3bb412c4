"""Settings of the generator: everything that determines a generated set."""

from __future__ import annotations

from pydantic import Field

from branches.spec import Channel, TrainingSpec


class GeneratorSpec(TrainingSpec):
    """A generator of log-mels: its network, its training, what it samples and what is kept of that.

    The defaults are for a GPU and clips of 10 s.
    """

    channel: Channel = "near"
    width: int = Field(512, ge=8, description="channels of the network")
    depth: int = Field(8, ge=1, description="blocks of the network")
    kernel: int = Field(15, ge=1, description="tokens of 40 ms that a block mixes")
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="share of training clips without their condition")

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(64, ge=2)
    crop_seconds: float = Field(10.0, gt=0.2, description="length of a sample; at most that of the shortest clip")
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(500, ge=0)

    fill: float = Field(0.5, gt=0, le=1, description="conditions rarer than this share of the commonest get samples")
    strength: float = Field(0.3, gt=0, le=1, description="how much of the reference becomes noise; 1 is all of it")
    guidance: float = Field(1.5, ge=0, description="1 follows the condition as learnt, more overstates it")
    sampling_steps: int = Field(20, ge=1, description="Heun steps from the noisy reference to a sample")

    copy_below: float = Field(0.5, ge=0, description="nearer to a real clip than this, a sample is a copy")
    far_above: float = Field(2.0, gt=0, description="further from its condition's clips than this, it is an outlier")
    seed: int = Field(0, ge=0)
