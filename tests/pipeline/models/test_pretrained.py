"""Files of many kinds become the module that transformers has for them, or are refused in one line."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.errors import ModelError
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin


def loaded(folder, auto_class="AutoModel", dtype="float32"):
    return load(pin(ModelSettings(ref=str(folder))), auto_class, dtype, device="cpu", threads=1, token_budget=512)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_another_format_are_brought_to_the_one_asked_for(make_encoder, copy_of, dtype):
    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].half()

    module = loaded(copy_of(make_encoder(), halve), dtype=dtype).module
    assert {weights.dtype for weights in module.parameters()} == {getattr(torch, dtype)}


def test_a_headless_encoder_does_not_classify(make_encoder):
    with pytest.raises(
        ModelError, match=r"lacks 2 weights that BertForSequenceClassification needs: classifier.bias, cl"
    ):
        loaded(make_encoder(), "AutoModelForSequenceClassification")


def test_many_missing_weights_are_told_in_short(make_encoder, copy_of):
    def drop(tensors):
        for name in [name for name in tensors if ".layer.1." in name]:
            del tensors[name]

    with pytest.raises(
        ModelError, match=r"lacks 16 weights .*: encoder\S+, \S+, \S+, \S+ and 12 more; they would be rando"
    ):
        loaded(copy_of(make_encoder(), drop))


def test_a_pooler_may_be_missing_and_is_then_left_out(make_encoder, copy_of):
    def drop(tensors):
        for name in [name for name in tensors if name.startswith("pooler")]:
            del tensors[name]

    assert loaded(copy_of(make_encoder(), drop)).module.pooler is None


def test_a_model_with_a_head_serves_as_an_encoder(make_encoder):
    module = loaded(make_encoder(head="ForSequenceClassification")).module
    assert type(module).__name__ == "BertModel"


def test_weights_of_another_shape_are_refused(make_encoder, copy_of):
    folder = copy_of(make_encoder(), intermediate_size=40)
    with pytest.raises(
        ModelError, match=r"intermediate.dense.bias has shape \(48,\), and config.json says \(40,\) \(6 such"
    ):
        loaded(folder)


def test_an_encoder_with_a_decoder_gives_its_encoder(tmp_path):
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    assert type(loaded(tmp_path).module).__name__ == "T5EncoderModel"


def test_a_kind_that_the_class_does_not_know_is_one_line(tmp_path, make_encoder):
    config = transformers.MarianConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    transformers.MarianMTModel(config).save_pretrained(tmp_path)
    shutil.copy(make_encoder() / "tokenizer.json", tmp_path)
    with pytest.raises(
        ModelError, match=r"is MarianMTModel \(model_type 'marian'\), for which transformers has no AutoModelForSeq"
    ) as told:
        loaded(tmp_path, "AutoModelForSequenceClassification")
    assert "\n" not in str(told.value)


def test_a_tokenizer_that_cannot_be_built_is_told(make_encoder, copy_of):
    folder = copy_of(make_encoder())
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded: "):
        loaded(folder)


def test_loading_is_silent_and_leaves_the_librarys_voice_as_it_was(make_encoder, capfd):
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()
    with pytest.raises(ModelError):
        loaded(make_encoder(), "AutoModelForSequenceClassification")
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == transformers.logging.WARNING
    assert transformers.logging.is_progress_bar_enabled()


SIZES = {"vocab_size": 404, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    "Bart": {**BART, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "Llama": {**LLAMA, "max_position_embeddings": 64, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def make_tiny(tmp_path_factory, make_encoder):
    """A folder of a tiny random model: `make_tiny("T5", "ForConditionalGeneration")`."""

    def make(family, head, **options):
        folder = tmp_path_factory.mktemp(family)
        config = getattr(transformers, f"{family}Config")(**SIZES, **CONFIGS[family], **options)
        torch.manual_seed(0)
        getattr(transformers, f"{family}{head}")(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(make_encoder() / name, folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("family", "head", "auto_class"),
    [
        ("T5", "ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("Bart", "ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("GPT2", "LMHeadModel", "AutoModelForCausalLM"),
        ("Llama", "ForCausalLM", "AutoModelForCausalLM"),
    ],
)
def test_a_generating_model_computes_what_the_library_computes(make_tiny, family, head, auto_class):
    folder = make_tiny(family, head)
    module = loaded(folder, auto_class).module
    reference = getattr(transformers, f"{family}{head}").from_pretrained(folder).eval()
    ids = torch.tensor([[5, 6, 7, 2]])
    further = {"decoder_input_ids": ids} if auto_class == "AutoModelForSeq2SeqLM" else {}
    with torch.inference_mode():
        assert torch.equal(module(ids, **further).logits, reference(ids, **further).logits)


@pytest.mark.parametrize(("family", "head"), [("T5", "ForConditionalGeneration"), ("GPT2", "LMHeadModel")])
def test_a_tied_head_stands_in_the_file_once_and_is_not_missing(make_tiny, family, head):
    folder = make_tiny(family, head)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    auto_class = "AutoModelForSeq2SeqLM" if family == "T5" else "AutoModelForCausalLM"
    module = loaded(folder, auto_class).module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_an_untied_head_that_is_not_there_is_missing(make_tiny):
    with pytest.raises(ModelError, match=r"lacks 1 weights that LlamaForCausalLM needs: lm_head.weight; they would"):
        loaded(make_tiny("Llama", "Model"), "AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("head", "auto_class"),
    [
        ("ForTokenClassification", "AutoModelForTokenClassification"),
        ("ForMaskedLM", "AutoModelForMaskedLM"),
        ("ForQuestionAnswering", "AutoModelForQuestionAnswering"),
        ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    ],
)
def test_each_head_loads_as_its_own_kind_and_headless_weights_do_not(make_encoder, head, auto_class):
    assert type(loaded(make_encoder(head=head), auto_class).module).__name__ == f"Bert{head}"
    with pytest.raises(ModelError, match=rf"lacks \d weights that Bert{head} needs: \S+"):
        loaded(make_encoder(), auto_class)


@pytest.mark.parametrize(
    ("family", "head", "auto_class", "told"),
    [
        ("GPT2", "LMHeadModel", "AutoModelForSeq2SeqLM", "is GPT2LMHeadModel .* transformers has no AutoModelForSeq2"),
        ("Llama", "ForCausalLM", "AutoModelForMaskedLM", "is LlamaForCausalLM .* transformers has no AutoModelForMask"),
        (
            "T5",
            "ForConditionalGeneration",
            "AutoModelForCausalLM",
            r"is T5For\S+ \(model_type 't5'\), which was not tr",
        ),
        ("Bart", "ForConditionalGeneration", "AutoModelForCausalLM", r"is BartFor\S+ .* was not trained to continue"),
        ("Llama", "ForCausalLM", "AutoModelForTokenClassification", "lacks 2 weights that LlamaForTokenClassification"),
        (
            "T5",
            "ForConditionalGeneration",
            "AutoModelForQuestionAnswering",
            r"lacks 2 weights that T5For\S+ needs: qa_",
        ),
    ],
)
def test_a_model_of_the_wrong_kind_is_told(make_tiny, family, head, auto_class, told):
    with pytest.raises(ModelError, match=told):
        loaded(make_tiny(family, head), auto_class)


def test_an_encoder_does_not_pass_for_a_causal_model(make_encoder):
    with pytest.raises(
        ModelError, match=r"is BertForMaskedLM \(model_type 'bert'\), which was not trained to continue"
    ):
        loaded(make_encoder(head="ForMaskedLM"), "AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("GPT2", "LMHeadModel", "GPT2Model"),
        ("Llama", "ForCausalLM", "LlamaModel"),
        ("T5", "ForConditionalGeneration", "T5EncoderModel"),
        ("Bart", "ForConditionalGeneration", "BartEncoder"),
    ],
)
def test_hidden_states_come_from_a_decoder_alone_or_from_the_encoder_of_two(make_tiny, family, head, kind):
    folder = make_tiny(family, head)
    module = loaded(folder).module
    assert type(module).__name__ == kind
    ids = torch.tensor([[5, 6, 7, 2]])
    with torch.inference_mode():
        assert module(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape == (1, 4, 16)


def test_the_generation_config_of_the_folder_is_used_and_counts_in_the_digest(make_tiny):
    folder = make_tiny("GPT2", "LMHeadModel")
    before = pin(ModelSettings(ref=str(folder))).digest
    transformers.GenerationConfig(max_new_tokens=7, eos_token_id=[2, 3]).save_pretrained(folder)
    model = loaded(folder, "AutoModelForCausalLM")
    assert (model.module.generation_config.max_new_tokens, model.module.generation_config.eos_token_id) == (7, [2, 3])
    assert model.pinned.digest != before
