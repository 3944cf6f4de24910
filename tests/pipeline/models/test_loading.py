import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin


def loaded(folder, auto_class="AutoModel", dtype="float32"):
    pinned = pin(ModelSettings(ref=str(folder)))
    return load(pinned, auto_class, dtype=dtype, device="cpu", threads=1, token_budget=512)


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a model folder that a test may damage; `edit(tensors)` changes its weights, `options` its config."""

    def copy(folder, edit=None, **options):
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, **options}))
        if edit is not None:
            tensors = load_file(target / "model.safetensors")
            edit(tensors)
            save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target

    return copy


def test_a_model_comes_with_all_that_computing_needs(make_encoder):
    model = loaded(make_encoder("roberta"))
    assert (model.device, model.dtype, model.threads, model.token_budget, model.pad_id) == ("cpu", "float32", 1, 512, 1)
    assert not model.module.training
    assert torch.get_num_threads() == 1


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_told(make_encoder):
    with pytest.raises(ModelError, match=r"cannot be moved to cuda: \w+: "):
        load(
            pin(ModelSettings(ref=str(make_encoder()))),
            "AutoModel",
            dtype="float32",
            device="cuda",
            threads=1,
            token_budget=512,
        )
