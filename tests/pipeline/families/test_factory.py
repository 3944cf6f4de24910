import pytest
import torch
import transformers

from tests.pipeline.families.factory import FAMILIES, GENERATING_HEADS
from tests.pipeline.families.languages import LONGEST, SENTENCES

CASES = [(family, head) for family, made in FAMILIES.items() for head in made.heads]
GENERATING = [(family, head) for family, head in CASES if head in GENERATING_HEADS]

# What stands around "a" and "b"; x for a token of either. Marian and M2M100 have no fast tokenizer.
TEMPLATES = {
    "bert": "[CLS] x [SEP] x [SEP]",
    "distilbert": "[CLS] x [SEP] x [SEP]",
    "electra": "[CLS] x [SEP] x [SEP]",
    "mpnet": "<s> x </s> </s> x </s>",
    "roberta": "<s> x </s> </s> x </s>",
    "xlm-roberta": "<s> x </s> </s> x </s>",
    "deberta-v2": "[CLS] x [SEP] x [SEP]",
    "deberta-v3": "[CLS] x [SEP] x [SEP]",
    "modernbert": "[CLS] x [SEP] x [SEP]",
    "t5": "x </s> x </s>",
    "bart": "<s> x </s> </s> x </s>",
    "gpt2": "x x",
    "llama": "<s> x <s> x",
    "qwen2": "x x",
    "qwen3": "x x",
    "pegasus": "x x </s>",
    "marian": "x x </s>",
    "m2m100": "__en__ x x </s>",
    "nllb": "eng_Latn x x </s>",
}
SLOW = ("marian", "m2m100")
TYPED = ("bert", "electra", "deberta-v2", "deberta-v3")

# MarianTokenizer says so wherever sacremoses is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_a_model_loads_whole_and_every_output_is_finite(tiny, family, head, caplog):
    folder = tiny(family, head)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModelFor{head}")
    module, loading = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    for sentences in SENTENCES.values():
        inputs = tokenizer(" ".join(sentences), truncation=True, max_length=128, return_tensors="pt")
        if module.config.is_encoder_decoder and head in ("Model", "Seq2SeqLM"):
            inputs["decoder_input_ids"] = torch.tensor([[module.config.decoder_start_token_id]])
        with torch.inference_mode():
            out = module.eval()(**inputs)
        tensors = [value for value in out.values() if isinstance(value, torch.Tensor)]
        assert tensors
        assert all(torch.isfinite(value).all() for value in tensors)


@pytest.mark.parametrize(("family", "head"), GENERATING)
def test_generated_texts_end_after_different_lengths(tiny, family, head):
    folder = tiny(family, head)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    module = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder)
    lengths = set()
    for text in (
        "where is it?",
        "a",
        "b c d",
        "поезд",
        "שלום",
        "the film",
        "Köln",
        "x y z",
        "Anna",
        "one two",
        "12,500",
    ):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        made = module.generate(
            **inputs,
            max_length=None,
            max_new_tokens=40,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.eos_token_id,
        )
        assert (made < len(tokenizer) + FAMILIES[family].beyond).all()
        lengths.add(made.shape[1] - (0 if module.config.is_encoder_decoder else inputs["input_ids"].shape[1]))
    assert len(lengths) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_is_the_familys_and_takes_every_text(tiny, texts, family):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(family))
    assert tokenizer.is_fast == (family not in SLOW)
    size = transformers.AutoConfig.from_pretrained(tiny(family)).vocab_size
    encoded = tokenizer(texts, verbose=False)["input_ids"]
    assert all(0 <= token < size for ids in encoded for token in ids)
    assert encoded == [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    # A blank may be a token of its own: it is no part of the template.
    tokens = [token for token in tokenizer.convert_ids_to_tokens(tokenizer("a", "a")["input_ids"]) if token != "▁"]
    assert " ".join("x" if token.strip("▁Ġ") == "a" else token for token in tokens) == TEMPLATES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_text_is_of_type_one_where_the_family_has_types(tiny, family):
    encoded = transformers.AutoTokenizer.from_pretrained(tiny(family))("a", "a")
    if family in TYPED:
        second = encoded["input_ids"].index(encoded["input_ids"][-1]) + 1  # after the first [SEP]
        assert encoded["token_type_ids"] == [int(place >= second) for place in range(len(encoded["input_ids"]))]
    else:
        assert not any(encoded.get("token_type_ids", []))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SLOW])
def test_offsets_are_told_and_lie_in_the_text(tiny, texts, family):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(family))
    for text in texts:
        offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        assert all(0 <= start <= end <= len(text) for start, end in offsets)


@pytest.mark.parametrize(("family", "target"), [("m2m100", "__de__"), ("nllb", "deu_Latn")])
def test_the_forced_token_is_the_language(tiny, family, target):
    folder = tiny(family, "Seq2SeqLM")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    module = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    forced = tokenizer.convert_tokens_to_ids(target)
    inputs = tokenizer("the train", return_tensors="pt")
    made = module.generate(**inputs, forced_bos_token_id=forced, max_length=None, max_new_tokens=4, num_beams=1)
    assert made[0, :2].tolist() == [module.config.decoder_start_token_id, forced]
    assert tokenizer.convert_ids_to_tokens([forced]) == [target]


def test_a_marian_target_is_one_token_in_front(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("marian"))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(">>deu<< a")["input_ids"])
    assert tokens == [">>deu<<", *tokenizer.tokenize("a"), "</s>"]


@pytest.mark.parametrize(
    ("family", "prompt"),
    [("llama", "<s>[INST] a [/INST]"), ("qwen2", "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")],
)
def test_a_chat_is_written_as_the_family_does(tiny, family, prompt):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(family))
    said = [{"role": "user", "content": "a"}]
    assert tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True).endswith(prompt)


def test_options_reach_the_files(tiny):
    options = {"max_tokens": 64, "labels": ("no", "yes", "perhaps"), "layer_norm_eps": 1e-6}
    folder = tiny("roberta", "SequenceClassification", **options)
    assert folder == tiny("roberta", "SequenceClassification", **options) != tiny("roberta", "SequenceClassification")
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.max_position_embeddings == 66  # two come before the first token's
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert config.layer_norm_eps == 1e-6
    assert transformers.AutoTokenizer.from_pretrained(folder).model_max_length == 64
    said = transformers.GenerationConfig.from_pretrained(tiny("bart", "Seq2SeqLM", generation={"num_beams": 2}))
    assert (said.num_beams, said.no_repeat_ngram_size, said.forced_eos_token_id) == (2, 3, 2)


def test_a_model_is_the_same_wherever_it_is_made(tiny, tmp_path):
    from tests.pipeline.families.factory import build

    build("xlm-roberta", "TokenClassification", tmp_path)
    made = tiny("xlm-roberta", "TokenClassification")
    assert {path.name for path in made.iterdir()} == {path.name for path in tmp_path.iterdir()}
    assert all(path.read_bytes() == (tmp_path / path.name).read_bytes() for path in made.iterdir())


def test_a_head_that_the_family_lacks_is_refused(tiny):
    with pytest.raises(ValueError, match="gpt2 has no Seq2SeqLM: Model, CausalLM"):
        tiny("gpt2", "Seq2SeqLM")


def test_texts_are_many_and_of_every_length(texts):
    assert len(texts) >= 220
    assert {"", " ", "😀"} <= set(texts)
    assert max(map(len, texts)) == LONGEST
    assert sum(len(text) == LONGEST for text in texts) == 5
    assert all(text.encode().decode() == text for text in texts)
