"""What a model folder holds, told from its files without loading weights.

    config.json                {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512, …}
    model.safetensors          8 bytes N, N bytes of JSON {"embeddings.word_embeddings.weight": {"dtype": "F32",
                               "shape": [30522, 384], "data_offsets": [0, 46881792]}, …}, then the numbers
    sentence_bert_config.json  {"max_seq_length": 256}
    modules.json               [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}, …]

Every fault is a ModelError that names the file; the caller adds the reference.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ModelError

Pooling = Literal["mean", "cls", "max", "last"]
Head = Literal["encoder", "sequence_classification", "token_classification", "seq2seq", "causal"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Any one set of these is a tokenizer that transformers can build.
TOKENIZERS: tuple[frozenset[str], ...] = (
    frozenset({"tokenizer.json"}),
    frozenset({"vocab.txt"}),
    frozenset({"spiece.model"}),
    frozenset({"sentencepiece.bpe.model"}),
    frozenset({"tokenizer.model"}),
    frozenset({"spm.model"}),
    frozenset({"vocab.json", "merges.txt"}),
    frozenset({"vocab.json", "source.spm", "target.spm"}),
)
# Tokenizers of bytes or characters, which have no vocabulary file.
_WITHOUT_VOCABULARY = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_TRAINING_STATE = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"})
_HEADER_LIMIT_BYTES = 100_000_000  # as the format has it
LFS_POINTER = b"version https://git-lfs"

# Positions of these begin after the padding index, so `max_position_embeddings` holds more than the window.
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"}
    | {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
# Families whose config counts positions by GPT's word; T5 has the word too, but no bound.
_COUNTED_AS_N_POSITIONS = frozenset({"codegen", "ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"})
DEFAULT_WINDOW_TOKENS = 512
"""Tokens read at once where neither the job nor the model says."""

_NO_WINDOW_TOKENS = 10**9  # transformers writes 1e30 where a tokenizer has no limit

_POOLING_NAMES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "lasttoken": "last",
}


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError: none there; not JSON; no object."""
    if not (folder / "config.json").is_file():
        holders = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
        hint = f"; {', '.join(holders)} inside it has one" if holders else ""
        raise ModelError(f"no config.json in {folder}, so it is no model folder{hint}")
    return _read_object(folder / "config.json")


def check_folder(folder: Path, allow_remote_code: bool) -> dict[str, Any]:
    """Refuse what could not be loaded; gives config.json.

    Raises ModelError: no config; pickle weights only; no weights; truncated or damaged safetensors; no tokenizer;
    remote code needed but not allowed, or of another repository.
    """
    config = read_config(folder)
    _check_remote_code(folder, allow_remote_code)
    tensor_names(folder)
    _check_tokenizer(folder)
    return config


def auto_maps(folder: Path) -> dict[str, Any]:
    """File name -> its auto_map, for the files that make transformers run Python code of the folder."""
    files = {name: read_optional(folder / name) for name in ("config.json", "tokenizer_config.json")}
    return {name: options["auto_map"] for name, options in files.items() if options.get("auto_map")}


def pickles_only(names: Iterable[str]) -> str | None:
    """The first pickle among these file names, where no safetensors file is among them."""
    known = sorted(names)
    if any(name.endswith(".safetensors") for name in known):
        return None
    return next((name for name in known if name.endswith(_PICKLES) and name not in _TRAINING_STATE), None)


def pickle_refusal(name: str, config: Mapping[str, Any]) -> ModelError:
    """Why a pickle is not read, and how to convert the model with the class that its config names."""
    architectures = config.get("architectures") or ["AutoModel"]
    return ModelError(
        f"its weights are a pickle ({name}), which can run any code when it is read; only safetensors are read. "
        f"Convert it once, where you trust it: transformers.{architectures[0]}.from_pretrained(FOLDER)"
        ".save_pretrained(NEW_FOLDER), then copy the tokenizer's files there"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load: model.safetensors, else the shards of its index, by name.

    Raises ModelError: pickle weights only; no weights; an index that names a missing shard.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if pickle := pickles_only(names):
        raise pickle_refusal(pickle, read_config(folder))
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    hint = f"; {', '.join(others)} has a name that transformers does not look for" if others else ""
    raise ModelError(f"no weights in {folder}: neither {WEIGHTS} nor {INDEX}{hint}")


def weights_bytes(folder: Path) -> int:
    """Bytes of the weight files as they lie on disk."""
    return sum(path.stat().st_size for path in weight_files(folder))


def tensor_names(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, from the headers alone.

    Raises ModelError: as `weight_files`; a file that is truncated, damaged or no safetensors; a tensor that the index
    promises and its shard lacks.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        shapes |= _read_header(path)
    if not (folder / WEIGHTS).is_file():
        lost = sorted(set(_weight_map(folder)) - set(shapes))
        if lost:
            raise ModelError(f"{folder / INDEX} promises {lost[0]!r} ({len(lost)} such tensors), which no shard holds")
    return shapes


def window_tokens(folder: Path, config: Mapping[str, Any]) -> int | None:
    """The model's own window in tokens, special ones included; None where nothing bounds it.

    sentence_bert_config.json first, else the tokenizer's limit; both within the model's positions.
    """
    sentence = read_optional(folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = read_optional(folder / "tokenizer_config.json").get("model_max_length")
    own = sentence if sentence is not None else tokenizer
    bounds = [own, positions_tokens(config)]
    return min((int(bound) for bound in bounds if bound is not None and 0 < bound < _NO_WINDOW_TOKENS), default=None)


def window_of(folder: Path, config: Mapping[str, Any]) -> int:
    """The model's own window in tokens, or `DEFAULT_WINDOW_TOKENS`."""
    return window_tokens(folder, config) or DEFAULT_WINDOW_TOKENS


def positions_tokens(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model has positions for; None where it does not count them."""
    positions: int | None = config.get("max_position_embeddings")
    if positions is None and config.get("model_type") in _COUNTED_AS_N_POSITIONS:
        positions = config.get("n_positions")
    if positions is not None and config.get("model_type") in _OFFSET_POSITIONS:
        padding_index = config.get("pad_token_id")
        positions -= (1 if padding_index is None else padding_index) + 1
    return positions


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """Kind and subfolder of each sentence-transformers module: [("Transformer", ""), ("Pooling", "1_Pooling"), …].

    Empty for a folder that is no sentence-transformers model. Raises ModelError: modules.json is damaged, or leads out
    of the folder.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [(str(entry["type"]).rpartition(".")[2], Path(entry["path"])) for entry in _read_json(path)]
    except (TypeError, KeyError):
        raise ModelError(f"{path} is no list of modules, each with a type and a path") from None
    for _, place in modules:
        if place.is_absolute() or ".." in place.parts:
            raise ModelError(f"{path} names {place}, which is outside the model's folder")
    return [(kind, "" if place == Path() else place.as_posix()) for kind, place in modules]


def pooling_of(folder: Path) -> Pooling | None:
    """How a sentence-transformers folder pools tokens; None where it does not say.

    Raises ModelError for a pooling that is not one of mean, cls, max, last.
    """
    for kind, subfolder in modules_of(folder):
        if kind == "Pooling":
            path = folder / subfolder / "config.json"
            options = _read_object(path)
            stated = options.get("pooling_mode")
            if stated is None:
                modes = [key for key, value in options.items() if key.startswith("pooling_mode_") and value is True]
            else:
                modes = [stated] if isinstance(stated, str) else list(stated)
            if len(modes) == 1 and modes[0] in _POOLING_NAMES:
                return _POOLING_NAMES[modes[0]]
            asked = " + ".join(map(str, modes)) or "none"
            raise ModelError(
                f"{path} asks for pooling {asked}; known are mean, cls, max, last: say which with `pooling:`"
            )
    return None


def normalizes(folder: Path) -> bool:
    """Whether a sentence-transformers folder brings its embeddings to length 1."""
    return any(kind == "Normalize" for kind, _ in modules_of(folder))


def task_of_head(config: Mapping[str, Any]) -> Head | None:
    """What kind of model config.json names; None where it names none, or one that no task here knows."""
    architecture = next(iter(config.get("architectures") or []), "")
    encoder_decoder = config.get("is_encoder_decoder", False) or architecture.endswith("ForConditionalGeneration")
    endings: list[tuple[str, Head]] = [
        ("ForSequenceClassification", "sequence_classification"),
        ("ForTokenClassification", "token_classification"),
        ("EncoderModel", "encoder"),
    ]
    for ending, head in endings:
        if architecture.endswith(ending):
            return head
    if encoder_decoder:
        return "seq2seq"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    return "encoder" if architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")) else None


def _check_tokenizer(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    tokenizer_class = read_optional(folder / "tokenizer_config.json").get("tokenizer_class")
    if tokenizer_class in _WITHOUT_VOCABULARY or any(files <= names for files in TOKENIZERS):
        return
    known = ", ".join(" + ".join(sorted(files)) for files in TOKENIZERS)
    raise ModelError(f"no tokenizer in {folder}: one of {known} must be there; save the model's tokenizer beside it")


def _check_remote_code(folder: Path, allowed: bool) -> None:
    maps = auto_maps(folder)
    if maps and not allowed:
        raise ModelError(
            f"{folder / next(iter(maps))} has an auto_map: the model needs Python code of its own, which is off. If "
            "you have read that code and trust it, set `allow_remote_code: true` beside the model's `ref`"
        )
    for name, classes in maps.items():
        if "--" in json.dumps(classes):
            raise ModelError(
                f"{folder / name} takes code from another repository ({json.dumps(classes)}), which no digest would "
                "cover: copy that code into the model's folder and name it there"
            )


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> shard of a sharded model."""
    path = folder / INDEX
    shards = _read_object(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{path} has no weight_map of tensor names to files")
    files = sorted(set(shards.values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise ModelError(f"{path} names {outside[0]!r}: shards lie beside their index")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} names {len(files)} files, of which {len(missing)} are missing: {', '.join(missing[:3])}"
        )
    return shards


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one safetensors file, which must be whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if (start + file.read(16)).startswith(LFS_POINTER):
            raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in that repository")
        if len(start) < 8 or 8 + length > size or length > _HEADER_LIMIT_BYTES:
            raise ModelError(f"{path} is truncated or no safetensors file: header of {length} bytes in {size} bytes")
        file.seek(8)
        header = file.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        shapes = {name: tuple(int(extent) for extent in entry["shape"]) for name, entry in tensors.items()}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
        raise ModelError(f"{path} is no safetensors file: its header cannot be read ({problem})") from None
    promised = 8 + length + end
    if promised != size:
        fault = "is truncated" if promised > size else "is damaged"
        raise ModelError(f"{path} {fault}: it has {size} bytes, and its header promises {promised}; fetch it again")
    return shapes


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as problem:
        raise ModelError(f"{path} is not JSON: {problem}") from None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"no {path.name} in {path.parent}")
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object of options")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """A JSON object of options, empty where there is no such file. Raises ModelError: not JSON; no object."""
    return _read_object(path) if path.is_file() else {}
