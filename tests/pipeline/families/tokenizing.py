"""Each family's tokenizer: its own class, its own special tokens at their own places, over a small vocabulary.

    bert(folder, 128)("Zug", "Bahn").tokens()     [CLS] zug [SEP] bahn [SEP]
    roberta(folder, 128)("Zug", "Bahn").tokens()  <s> Z ug </s> </s> B ahn </s>

`folder` is where a tokenizer that is no `tokenizer.json` may put its files.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from tests.pipeline.families.vocabularies import byte_pairs, fallback_pairs, unigrams, wordpiece

GAPS = 8  # Pegasus has 103 (its offset), the first tokens of its vocabulary
TARGETS = (">>deu<<", ">>fra<<", ">>rus<<")  # what a Marian model of several target languages has
# Of the 202 languages of NLLB.
LANGUAGES = ("arb_Arab", "deu_Latn", "ell_Grek", "eng_Latn", "fra_Latn", "jpn_Jpan", "rus_Cyrl", "zho_Hans")
SENTINELS = 8  # T5 has 100: in so small a vocabulary a random model would say little else

LLAMA_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def bert(folder: Path, max_tokens: int) -> Any:
    """WordPiece, lower-cased: [CLS] a [SEP] b [SEP], token types 0 and 1. ELECTRA's too."""
    from transformers import BertTokenizer

    vocabulary = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return BertTokenizer(vocab=vocabulary, model_max_length=max_tokens)


def distilbert(folder: Path, max_tokens: int) -> Any:
    """BERT's, but the model takes no token types."""
    from transformers import DistilBertTokenizer

    vocabulary = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return DistilBertTokenizer(vocab=vocabulary, model_max_length=max_tokens)


def mpnet(folder: Path, max_tokens: int) -> Any:
    """WordPiece between RoBERTa's special tokens; the unknown token is BERT's, and <unk> a piece that nothing uses."""
    from transformers import MPNetTokenizer

    vocabulary = wordpiece(["<s>", "<pad>", "</s>", "<unk>", "[UNK]"])
    vocabulary["<mask>"] = len(vocabulary)
    return MPNetTokenizer(vocab=vocabulary, model_max_length=max_tokens)


def roberta(folder: Path, max_tokens: int) -> Any:
    """Byte-level BPE: <s> a </s></s> b </s>; blanks belong to the word after them. BART's too."""
    from transformers import AddedToken, RobertaTokenizer

    vocabulary, merges = byte_pairs(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, mask_token=mask, model_max_length=max_tokens)


def xlm_roberta(folder: Path, max_tokens: int) -> Any:
    """Unigram: <s> a </s></s> b </s>."""
    from transformers import AddedToken, XLMRobertaTokenizer

    trained = unigrams()
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return XLMRobertaTokenizer(
        vocab=[*special, *trained.pieces, ("<mask>", 0.0)],
        _spm_precompiled_charsmap=trained.charsmap,
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=max_tokens,
    )


def deberta(folder: Path, max_tokens: int) -> Any:
    """Unigram between BERT's special tokens; says no longest input, as the hub's do not."""
    from transformers import DebertaV2Tokenizer

    special = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    return DebertaV2Tokenizer(vocab=[*special, *unigrams().pieces, ("[MASK]", 0.0)])


def modernbert(folder: Path, max_tokens: int) -> Any:
    """Byte-level BPE between BERT's special tokens, which stand at the end; a class of the library's base."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    vocabulary, merges = byte_pairs([], ["<|endoftext|>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token=AddedToken("[MASK]", lstrip=True, special=True),
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_tokens,
    )


def t5(folder: Path, max_tokens: int) -> Any:
    """Unigram: a </s> b </s>; sentinels at the end."""
    from transformers import T5Tokenizer

    trained = unigrams()
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *trained.pieces],
        extra_ids=SENTINELS,
        _spm_precompiled_charsmap=trained.charsmap,
        model_max_length=max_tokens,
    )


def gpt2(folder: Path, max_tokens: int) -> Any:
    """Byte-level BPE, nothing put around a text, and no token to pad with."""
    from transformers import GPT2Tokenizer

    vocabulary, merges = byte_pairs([], ["<|endoftext|>"])
    return GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)


def llama(folder: Path, max_tokens: int) -> Any:
    """BPE with bytes for unknown characters: <s> a; no token to pad with, no longest input, a chat template."""
    from transformers import LlamaTokenizer

    vocabulary, merges = fallback_pairs(["<unk>", "<s>", "</s>"])
    made = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    made.chat_template = LLAMA_CHAT
    return made


def qwen(folder: Path, max_tokens: int) -> Any:
    """Byte-level BPE after NFC, nothing put around a text, a chat template; ends its turns, but not its texts."""
    from transformers import Qwen2Tokenizer

    vocabulary, merges = byte_pairs([])
    made = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=max_tokens,
    )
    made.chat_template = CHATML
    return made


def pegasus(folder: Path, max_tokens: int) -> Any:
    """Unigram: a b </s>, nothing between two texts; the unknown token stands after those of pretraining."""
    from transformers import PegasusTokenizer

    trained = unigrams()
    gaps = [f"<unk_{place}>" for place in range(2, GAPS)]
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<mask_1>", "<mask_2>", *gaps, "<unk>")]
    return PegasusTokenizer(
        vocab=[*special, *trained.pieces],
        offset=GAPS,
        _spm_precompiled_charsmap=trained.charsmap,
        model_max_length=max_tokens,
    )


def marian(folder: Path, max_tokens: int) -> Any:
    """Sentencepiece's own model beside a vocabulary of other ids: >>deu<< a </s>. It is slow and knows no offsets."""
    from transformers import MarianTokenizer

    pieces = [piece for piece, _ in unigrams().pieces]
    tokens = ["</s>", "<unk>", *pieces, *TARGETS, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(unigrams().model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return MarianTokenizer(
            source_spm=str(folder / "source.spm"),
            target_spm=str(folder / "target.spm"),
            vocab=str(folder / "vocab.json"),
            source_lang="eng",
            target_lang="mul",
            model_max_length=max_tokens,
        )


def m2m100(folder: Path, max_tokens: int) -> Any:
    """Sentencepiece's own model beside a vocabulary of other ids: __en__ a </s>. It is slow and knows no offsets.

    The tokens of the hundred languages follow the vocabulary; `src_lang` chooses the one in front.
    """
    from transformers import M2M100Tokenizer

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece, _ in unigrams().pieces)]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "sentencepiece.bpe.model").write_bytes(unigrams().model)
    return M2M100Tokenizer(
        vocab_file=str(folder / "vocab.json"),
        spm_file=str(folder / "sentencepiece.bpe.model"),
        src_lang="en",
        tgt_lang="de",
        model_max_length=max_tokens,
    )


def nllb(folder: Path, max_tokens: int) -> Any:
    """BPE over characters: eng_Latn a </s>; M2M100's model with a fast tokenizer. `src_lang` chooses the language."""
    from transformers import AddedToken, NllbTokenizer

    vocabulary, merges = fallback_pairs(["<s>", "<pad>", "</s>", "<unk>"])
    return NllbTokenizer(
        vocab=vocabulary,
        merges=merges,
        _spm_precompiled_charsmap=unigrams().charsmap,
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        extra_special_tokens=list(LANGUAGES),
        src_lang="eng_Latn",
        tgt_lang="fra_Latn",
        model_max_length=max_tokens,
    )
