"""A pinned model as something to train, and what was trained as a model folder.

    pretrained(pinned, "AutoModelForSequenceClassification", {"id2label": {0: "games", 1: "web"}}, training)
    save(module, tokenizer, "models/sections/model", max_tokens=256)

Weights are float32 while they are trained, whatever the arithmetic. A head that the pinned model does not have begins
with random weights (by the seed); anything else that is missing is an error.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from pipeline.errors import JobError, ModelError
from pipeline.models.quietly import quietly
from pipeline.models.reference import PinnedModel
from pipeline.training.dropout import set_attention_dropout

if TYPE_CHECKING:
    from pipeline.training.job import LoraSettings, TrainingSettings
    from pipeline.training.objectives.base import Learned, Objective

_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "activation_dropout",
    "dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout", "pooler_dropout",
    "seq_classif_dropout",
)  # fmt: skip
"""What families call the dropout of hidden layers and attention in config.json."""


def pretrained(
    pinned: PinnedModel,
    auto_class: str,
    options: Mapping[str, Any],
    training: "TrainingSettings",
    begin: Callable[[nn.Module, Collection[str]], None] | None = None,
) -> nn.Module:
    """The model as the transformers class of a task, in float32 and ready to be trained.

    `begin(module, new)` may give the weights that the pinned model does not have, by name, other first numbers.

    Raises ModelError: a GGUF file; transformers has no such class for it; weights are missing that no head explains.
    """
    if pinned.gguf_file is not None:
        raise ModelError(f"model {pinned.ref!r} is a GGUF file, packed for inference; train from safetensors")
    torch.manual_seed(training.seed)
    kind = getattr(transformers, auto_class)
    changed = (
        {name: training.dropout for name in _DROPOUTS if name in pinned.config} if training.dropout is not None else {}
    )
    try:
        with quietly():
            module, told = kind.from_pretrained(
                pinned.folder,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=pinned.allow_remote_code,
                **options,
                **changed,
            )
    except Exception as fault:
        reason = " ".join(str(fault).split())[:300]
        raise ModelError(f"model {pinned.ref!r} cannot be trained as {auto_class}: {reason}") from fault
    body = _body(module)
    missing = [name for name in told["missing_keys"] if name.startswith(body) and ".pooler." not in f".{name}"]
    if missing:
        raise ModelError(
            f"model {pinned.ref!r} lacks {len(missing)} weights of its own body: {', '.join(sorted(missing)[:4])}"
        )
    new = {*told["missing_keys"], *(each[0] for each in told["mismatched_keys"])}
    if begin is not None:
        begin(module, new)
    set_attention_dropout(module, training.attention_dropout)
    freeze(module, training.freeze)
    found: nn.Module = module
    if training.lora is None:
        return found
    fresh = {name.partition(".")[0] for name in new} - {body.removesuffix(".")}
    return with_lora(found, training.lora, sorted(fresh))


def head_of(module: nn.Module) -> list[str]:
    """Names of the parts beside a model's body that have weights; none where it is all body."""
    body = _body(module).removesuffix(".")
    return [
        name for name, part in module.named_children() if body and name != body and any(True for _ in part.parameters())
    ]


def _body(module: nn.Module) -> str:
    """What the names of all but the head begin with; nothing where the module has no head beside its body."""
    prefix = getattr(module, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(module, prefix) else ""


def freeze(module: nn.Module, parts: Sequence[str]) -> None:
    """Keep parts of a model as they are: `embeddings`, `encoder` (all but the head), or beginnings of names.

    Raises JobError for a part that the model does not have, or where nothing is left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    body = _body(module)
    for part in parts:
        if part == "embeddings":
            chosen = {name for name in names if re.search(r"(^|\.)(embeddings|embed_tokens|shared|wte|wpe)\.", name)}
        elif part == "encoder":
            chosen = {name for name in names if name.startswith(body)}
        else:
            chosen = {name for name in names if name.startswith((part, body + part))}
        if not chosen:
            parts_known = sorted({name.removeprefix(body).split(".")[0] for name in names})
            raise JobError(f"training.freeze: the model has no {part!r}; its parts: {', '.join(parts_known)}")
        for name, parameter in module.named_parameters():
            if name in chosen:
                parameter.requires_grad_(False)
    if parts and not any(parameter.requires_grad for parameter in module.parameters()):
        raise JobError("training.freeze leaves nothing to train")


def with_lora(module: nn.Module, settings: "LoraSettings", head: Sequence[str]) -> nn.Module:
    """The model with low-rank updates beside its frozen weights (Hu et al. 2021); a new `head` is trained whole.

    Raises JobError: peft is not installed, or finds no module of these names.
    """
    try:
        import peft
    except ImportError as error:
        raise JobError('training.lora needs peft: pip install "corpusmill[train]"') from error
    targets: Any = settings.targets
    frozen = [
        name
        for name, part in module.named_modules()
        if (weight := getattr(part, "weight", None)) is not None and not weight.requires_grad
    ]
    trained = [
        name for name in head if any(parameter.requires_grad for parameter in module.get_submodule(name).parameters())
    ]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type] # it is only divided by
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=trained or None,
        exclude_modules=frozen or None,
        bias="none",
    )
    try:
        with quietly():
            adapted: nn.Module = peft.get_peft_model(module, config)
        return adapted
    except ValueError as error:
        raise JobError(f"training.lora: targets {settings.targets}: {error}") from error


def without_adapters(module: nn.Module) -> Any:
    """The model that LoRA's updates stand in, or the module itself."""
    inner: Any = module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def save(module: Any, tokenizer: Any, folder: str, max_tokens: int) -> None:
    """Write safetensors, config and tokenizer; LoRA's updates are merged into the weights they stand beside."""
    if hasattr(module, "merge_and_unload"):
        module = module.merge_and_unload()
    with quietly():
        module.save_pretrained(folder)
        before = tokenizer.model_max_length
        tokenizer.model_max_length = max_tokens
        tokenizer.save_pretrained(folder)
        tokenizer.model_max_length = before
    Path(folder, "training_args.bin").unlink(missing_ok=True)


def load_checkpoint(objective: "Objective", learned: "Learned", training: "TrainingSettings", folder: str) -> nn.Module:
    """The module with the weights of one of transformers' checkpoint folders."""
    from safetensors.torch import load_model

    module: Any = objective.build(learned, training)
    if hasattr(module, "merge_and_unload"):  # LoRA's updates alone
        module.load_adapter(folder, "default", is_trainable=False)
    elif Path(folder, "model.safetensors").exists():
        load_model(module, str(Path(folder, "model.safetensors")))
    else:  # of more than 50 GB, in several files
        from transformers.trainer_utils import load_sharded_checkpoint

        load_sharded_checkpoint(module, folder, strict=False)  # of weights that are tied it has one
    loaded: nn.Module = module
    return loaded
