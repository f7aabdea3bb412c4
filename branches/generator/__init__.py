"""Generated log-mels of rare operating states: flow matching from reference clips, and a check of the samples.

A generator is trained once per data set, and its samples are a folder that all branches share:

    clips = real_clips(audio, index, channel, spec.crop_seconds, device="cuda")
    generate(spec, train_generator(spec, clips), clips, folder)
    rows, features = accepted_samples(folder)

`docs/generation.md` says how it works, `docs/notebook.md` what was measured.
"""

from branches.generator.generated_set import accepted_samples, generate, train_generator
from branches.generator.states import rare_states, real_clips, states_of

__all__ = ["accepted_samples", "generate", "rare_states", "real_clips", "states_of", "train_generator"]
