"""Generated log-mels of rare conditions: flow matching, guided by reference clips, and a check of the samples.

A generator is trained once per data set, and its samples are a folder that all branches share:

    generator = train_generator(spec, audio, index, checkpoint, report, device="cuda")
    write_set(generate(generator), folder)
    generated = read_set(folder)  # generated.features[generated.accepted()]

`docs/generation.md` says how it works and what was measured.
"""

from branches.generator.conditions import conditions_of, rare_conditions
from branches.generator.generated_set import GeneratedSet, read_set, write_set
from branches.generator.learning import Generator, train_generator
from branches.generator.sampling import generate
from branches.spec import GeneratorSpec

__all__ = [
    "GeneratedSet",
    "Generator",
    "GeneratorSpec",
    "conditions_of",
    "generate",
    "rare_conditions",
    "read_set",
    "train_generator",
    "write_set",
]
