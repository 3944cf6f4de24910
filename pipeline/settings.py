"""The ground of every settings class: frozen, strict, and deaf to unknown keys.

A setting lives beside what it sets (`CorpusSettings` in `pipeline/corpus/source.py`, a task's options in the
task's own file); this module holds only what they share.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Typed, frozen settings read from a job file.

    Strict: the text "256" is not the number 256. Unknown keys are refused, so that a misspelt option is told
    and not ignored. The sentence beneath a field is its description: `corpusmill tasks` tells it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True
    )
