"""Model folders of each family as the hub has them, only tiny and of random weights.

    build("t5", "Seq2SeqLM", folder)
    folder/config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

A family is its architecture, its tokenizer class, its special tokens, and what its generation_config.json says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.pipeline.families import tokenizing

SEED = 7
SPREAD = 0.4  # of the weights: logits lie well apart
T5_FACTOR = 3.0  # T5 counts it in its own widths
# The end's own row in the language head is that much longer, so that some texts end early and some late.
END_SPREAD = 2.0

ENCODER_HEADS = ("Model", "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
DECODER_HEADS = ("Model", "CausalLM", "SequenceClassification")
GENERATING_HEADS = ("Seq2SeqLM", "CausalLM")

BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA_SIZES = {**BERT_SIZES, "num_key_value_heads": 2}
BART_SIZES = {
    "d_model": 32,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
}
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}
DISTILBERT_SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
# As microsoft/deberta-v3-base has them, the buckets smaller.
DEBERTA_ATTENTION = {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}


@dataclass(frozen=True)
class Family:
    """What makes a family; special tokens are named as its config names their ids."""

    model_type: str
    heads: Sequence[str]
    tokenizer: Callable[[Path, int], Any]  # of the folder and the most tokens
    config: Mapping[str, Any]
    special: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    most_tokens: str | None = "max_position_embeddings"  # the config's name for it
    reserved_positions: int = 0  # positions that no token takes
    spread: str = "initializer_range"
    never_says_padding: bool = False
    beyond: int = 0  # ids of the model that are no entries of the tokenizer's vocabulary
    end_spread: float = END_SPREAD


PADDED = {"pad_token_id": "pad_token"}
WRAPPED = {"pad_token_id": "pad_token", "bos_token_id": "bos_token", "eos_token_id": "eos_token"}
ENDED = {"pad_token_id": "pad_token", "eos_token_id": "eos_token", "decoder_start_token_id": "pad_token"}
SHIFTED = {**WRAPPED, "decoder_start_token_id": "eos_token"}

# Qwen's chat models end a turn by one token and a text by another, and bid generation to draw.
ENDED_TURNS = {"pad_token_id": "pad_token", "bos_token_id": "pad_token", "eos_token_id": "eos_token"}
QWEN_SAMPLES = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
M2M100_SIZES = {**BART_SIZES, "activation_function": "relu", "scale_embedding": True}

FAMILIES: Mapping[str, Family] = {
    "bert": Family("bert", ENCODER_HEADS, tokenizing.bert, BERT_SIZES, PADDED),
    "distilbert": Family("distilbert", ENCODER_HEADS, tokenizing.distilbert, DISTILBERT_SIZES, PADDED),
    "electra": Family("electra", ENCODER_HEADS, tokenizing.bert, {**BERT_SIZES, "embedding_size": 16}, PADDED),
    "mpnet": Family("mpnet", ENCODER_HEADS, tokenizing.mpnet, BERT_SIZES, WRAPPED, reserved_positions=2),
    "roberta": Family(
        "roberta",
        ENCODER_HEADS,
        tokenizing.roberta,
        {**BERT_SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        WRAPPED,
        reserved_positions=2,
    ),
    "xlm-roberta": Family(
        "xlm-roberta",
        ENCODER_HEADS,
        tokenizing.xlm_roberta,
        {**BERT_SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        WRAPPED,
        reserved_positions=2,
    ),
    "deberta-v2": Family(
        "deberta-v2",
        ENCODER_HEADS,
        tokenizing.deberta,
        {**BERT_SIZES, **DEBERTA_ATTENTION, "conv_kernel_size": 3, "conv_act": "gelu"},
        PADDED,
    ),
    "deberta-v3": Family("deberta-v2", ENCODER_HEADS, tokenizing.deberta, {**BERT_SIZES, **DEBERTA_ATTENTION}, PADDED),
    "modernbert": Family(
        "modernbert",
        ENCODER_HEADS,
        tokenizing.modernbert,
        {**BERT_SIZES, "num_hidden_layers": 3, "local_attention": 16},
        {
            "pad_token_id": "pad_token",
            "bos_token_id": "cls_token",
            "eos_token_id": "sep_token",
            "cls_token_id": "cls_token",
            "sep_token_id": "sep_token",
        },
    ),
    "t5": Family(
        "t5",
        ("Model", "Seq2SeqLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"),
        tokenizing.t5,
        T5_SIZES,
        ENDED,
        most_tokens="n_positions",
        spread="initializer_factor",
        end_spread=7.0,
    ),
    "bart": Family(
        "bart",
        ("Model", "Seq2SeqLM", "SequenceClassification", "QuestionAnswering"),
        tokenizing.roberta,
        BART_SIZES,
        {**SHIFTED, "forced_bos_token_id": "bos_token", "forced_eos_token_id": "eos_token"},
        {"early_stopping": True, "no_repeat_ngram_size": 3, "num_beams": 4},
        spread="init_std",
    ),
    "gpt2": Family(
        "gpt2",
        (*DECODER_HEADS, "TokenClassification", "QuestionAnswering"),
        tokenizing.gpt2,
        GPT2_SIZES,
        {"bos_token_id": "bos_token", "eos_token_id": "eos_token"},
        most_tokens="n_positions",
    ),
    "llama": Family(
        "llama",
        (*DECODER_HEADS, "TokenClassification", "QuestionAnswering"),
        tokenizing.llama,
        LLAMA_SIZES,
        {"bos_token_id": "bos_token", "eos_token_id": "eos_token"},
    ),
    "qwen2": Family(
        "qwen2",
        (*DECODER_HEADS, "TokenClassification", "QuestionAnswering"),
        tokenizing.qwen,
        LLAMA_SIZES,
        ENDED_TURNS,
        QWEN_SAMPLES,
        end_spread=1.6,
    ),
    "qwen3": Family(
        "qwen3",
        (*DECODER_HEADS, "TokenClassification", "QuestionAnswering"),
        tokenizing.qwen,
        {**LLAMA_SIZES, "head_dim": 16},
        ENDED_TURNS,
        QWEN_SAMPLES,
        end_spread=1.6,
    ),
    "pegasus": Family(
        "pegasus",
        ("Model", "Seq2SeqLM"),
        tokenizing.pegasus,
        {**BART_SIZES, "activation_function": "relu", "scale_embedding": True},
        {**ENDED, "forced_eos_token_id": "eos_token"},
        {"num_beams": 8, "length_penalty": 0.8, "max_length": 64},
        spread="init_std",
        end_spread=4.0,
    ),
    "marian": Family(
        "marian",
        ("Model", "Seq2SeqLM"),
        tokenizing.marian,
        {**BART_SIZES, "activation_function": "swish", "scale_embedding": True},
        {**ENDED, "forced_eos_token_id": "eos_token"},
        {"num_beams": 4, "max_length": 512, "renormalize_logits": True},
        spread="init_std",
        never_says_padding=True,
        end_spread=7.0,
    ),
    "m2m100": Family(
        "m2m_100",
        ("Model", "Seq2SeqLM"),
        tokenizing.m2m100,
        M2M100_SIZES,
        SHIFTED,
        {"num_beams": 5, "early_stopping": True, "max_length": 200},
        spread="init_std",
        beyond=108,  # a hundred languages, and eight that nobody named
    ),
    "nllb": Family(
        "m2m_100",
        ("Model", "Seq2SeqLM"),
        tokenizing.nllb,
        M2M100_SIZES,
        SHIFTED,
        {"max_length": 200},
        spread="init_std",
        end_spread=3.0,
    ),
}

# Ids that only generation looks at: they stand in generation_config.json.
OF_GENERATION = ("forced_bos_token_id", "forced_eos_token_id")


def build(
    family: str,
    head: str,
    folder: Path,
    max_tokens: int = 128,
    labels: Sequence[str] | None = None,
    generation: Mapping[str, Any] | None = None,
    **config: Any,
) -> None:
    """Write a model into an empty `folder`.

    Args:
        family: One of `FAMILIES`.
        head: One of the family's heads, without "AutoModelFor"; "Model" is the body alone.
        folder: Where.
        max_tokens: The longest input, special tokens counted.
        labels: Names of the classes; without them there are two that nobody named.
        generation: What generation_config.json says beside or instead of what the family's says.
        config: What config.json says beside or instead of what the family's says.

    Raises:
        KeyError: There is no such family.
        ValueError: The family has no such head.
    """
    import torch
    import transformers

    made = FAMILIES[family]
    if head not in made.heads:
        raise ValueError(f"{family} has no {head}: {', '.join(made.heads)}")
    tokenizer = made.tokenizer(folder, max_tokens)
    tokenizer.save_pretrained(folder)
    ids = {name: getattr(tokenizer, f"{token}_id") for name, token in made.special.items()}
    settings = {
        "vocab_size": len(tokenizer) + made.beyond,
        made.spread: T5_FACTOR if made.spread == "initializer_factor" else SPREAD,
        **made.config,
        **{name: token for name, token in ids.items() if name not in OF_GENERATION},
        **config,
    }
    if made.most_tokens:
        settings.setdefault(made.most_tokens, max_tokens + made.reserved_positions)
    if labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: place for place, label in enumerate(labels)}
    named = "AutoModel" if head == "Model" else f"AutoModelFor{head}"
    torch.manual_seed(SEED)
    module = getattr(transformers, named).from_config(transformers.AutoConfig.for_model(made.model_type, **settings))
    if head in GENERATING_HEADS:
        norms = [part for part in module.modules() if type(part).__name__.endswith("Norm")]
        with torch.no_grad():
            # A head that is tied to the embeddings would say its last token again and again.
            norms[-1].weight.mul_(torch.randint(0, 2, norms[-1].weight.shape) * 2 - 1)
            module.get_output_embeddings().weight[ids["eos_token_id"]] *= made.end_spread
        said = {**ids, **made.generation}
        if made.special is ENDED_TURNS:
            said["eos_token_id"] = [ids["eos_token_id"], ids["pad_token_id"]]
        if made.never_says_padding:
            said["bad_words_ids"] = [[ids["pad_token_id"]]]
        said |= generation or {}
        module.generation_config = transformers.GenerationConfig(**said)
    transformers.logging.disable_progress_bar()
    module.eval().save_pretrained(folder)
