"""One digest for a model: sha256 over the sorted list of (file name, sha256) of all files that decide its output.

    60f1…  config.json
    53aa…  model.safetensors
    bd37…  tokenizer.json

The list is written as `sha256sum` writes it, sorted by name, so that `sha256sum $NAMES | sha256sum` gives the same.
What counts, and nothing else (no README, .gitattributes, onnx, training_args.bin …):

- weights: `model.safetensors`, else `model.safetensors.index.json` and the shards that it names;
- config: `CONFIG_NAMES`, and for each subfolder that modules.json names its config.json and model.safetensors;
- tokenizer: `TOKENIZER_NAMES`;
- code: every .py file in the folder, where config.json or tokenizer_config.json has an auto_map, which runs them;
- of a GGUF model that file alone.
"""

import functools
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.models.inspection import INDEX, WEIGHTS, auto_maps, modules_of, read_optional, weight_files

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

# Of tokenizer.json and tokenizer_config.json: how long, how padded, how decoded and where from. No text has other
# tokens by them, as tasks cut and pad themselves.
_NO_TOKENS = frozenset(
    {"truncation", "truncation_side", "truncation_strategy", "max_length", "model_max_length", "stride"}
    | {"padding", "padding_side", "pad_to_multiple_of", "pad_token_type_id"}
    | {"clean_up_tokenization_spaces", "decoder", "model_input_names"}
    | {"name_or_path", "processor_class", "special_tokens_map_file", "tokenizer_file", "transformers_version"}
    | {"is_local", "local_files_only", "_commit_hash"}
)
_TOKENIZER_OPTIONS = ("tokenizer.json", "tokenizer_config.json")


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


def file_digests(folder: Path, gguf_file: str | None = None) -> dict[str, str]:
    """Name -> sha256 (hex) of each counted file, in the order of the digest's list; of a GGUF model the file alone."""
    paths = [folder / gguf_file] if gguf_file is not None else digest_files(folder)
    # Hashing releases the GIL: shards are read side by side.
    with ThreadPoolExecutor(max_workers=min(len(paths), os.cpu_count() or 1)) as pool:
        return dict(zip((path.relative_to(folder).as_posix() for path in paths), pool.map(_sha256, paths), strict=True))


def digest_of(files: dict[str, str]) -> str:
    """The model's digest from the digests of its files."""
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """One sha256 over what decides a text's tokens: models of equal ones can share tokenising.

    Counted are the tokenizer files, the options of tokenizer.json and tokenizer_config.json without those that change
    no tokens (whatever their order), code of the folder, and the model type, by which transformers chooses a class.
    """
    counted = [path.relative_to(folder).as_posix() for path in digest_files(folder)]
    names = [name for name in counted if name in TOKENIZER_NAMES or name.endswith(".py")]
    names += sorted(path.name for path in folder.glob("*.spm") if path.name not in names)
    files = {name: _sha256(folder / name) for name in names if name not in _TOKENIZER_OPTIONS}
    options: dict[str, Any] = {"model_type": read_optional(folder / "config.json").get("model_type")}
    for name in _TOKENIZER_OPTIONS:
        stated = read_optional(folder / name)
        options[name] = {key: value for key, value in stated.items() if key not in _NO_TOKENS}
    return digest_of(files | {"options": hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()})


def _sha256(path: Path) -> str:
    state = path.stat()
    return _hashed(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hashed(path: Path, *_state: int) -> str:
    """The sha256 of a file, read once in a process as long as its state on the disk is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
