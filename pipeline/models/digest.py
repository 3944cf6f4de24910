"""One digest for a model: sha256 over the sorted list of (file name, sha256) of all files that decide its output.

    60f1…  config.json
    53aa…  model.safetensors
    bd37…  tokenizer.json

The list is written as `sha256sum` writes it, sorted by name, so that `sha256sum $NAMES | sha256sum` gives the same.
What counts, and nothing else (no README, .gitattributes, onnx, training_args.bin …):

- weights: `model.safetensors`, else `model.safetensors.index.json` and the shards that it names;
- config: `CONFIG_NAMES`, and for each subfolder that modules.json names its config.json and model.safetensors;
- tokenizer: `TOKENIZER_NAMES`;
- code: every .py file in the folder, where config.json or tokenizer_config.json has an auto_map, which runs them.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.models.inspection import INDEX, WEIGHTS, auto_maps, modules_of, weight_files

CONFIG_NAMES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }
)
TOKENIZER_NAMES = frozenset(
    {
        "added_tokens.json",
        "bpe.codes",
        "chat_template.jinja",
        "merges.txt",
        "sentencepiece.bpe.model",
        "source.spm",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "target.spm",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)


def digest_files(folder: Path) -> list[Path]:
    """The files that the digest counts, sorted by their name relative to the folder.

    Raises ModelError where the weights are not whole files of safetensors (`inspection.weight_files`).
    """
    weights = weight_files(folder)
    names = {path.name for path in weights} | CONFIG_NAMES | TOKENIZER_NAMES
    if weights[0].name != WEIGHTS:
        names.add(INDEX)
    for _, subfolder in modules_of(folder):
        if subfolder:
            names |= {f"{subfolder}/config.json", f"{subfolder}/model.safetensors"}
    if auto_maps(folder):
        names |= {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


def file_digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 (hex) of each counted file, in the order of the digest's list."""
    paths = digest_files(folder)
    # Hashing releases the GIL: shards are read side by side.
    with ThreadPoolExecutor(max_workers=min(len(paths), os.cpu_count() or 1)) as pool:
        return dict(zip((path.relative_to(folder).as_posix() for path in paths), pool.map(_sha256, paths), strict=True))


def digest_of(files: dict[str, str]) -> str:
    """The model's digest from the digests of its files."""
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
