import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from pydantic import ValidationError

from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.metrics.base import measure
from pipeline.metrics.texts import Texts as TextsKind
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.summarize import Summarize
from pipeline.tasks.translate import Translate
from pipeline.training.examples import Examples
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives import find
from pipeline.training.objectives.seq2seq import Seq2Seq

FAMILIES = ["t5", "bart", "pegasus", "marian"]
LANGUAGES = {"m2m100": ("en", "de"), "nllb": ("eng_Latn", "deu_Latn")}
THINGS = ["cat", "dog", "bird", "fish", "tree", "house"]
ROWS = {
    "text": [f"there was once a {one} and it met a {other} on the way" for one in THINGS for other in THINGS],
    "label": [f"{one} meets {other}" for one in THINGS for other in THINGS],
}


@pytest.fixture
def t5(tiny):
    return tiny("t5", "Seq2SeqLM", max_tokens=64)


@pytest.fixture
def seq2seq(prepare, t5):
    return prepare(Seq2Seq, t5, pa.string())


def settings(**options):
    return Seq2Seq(Seq2Seq.Config(name="seq2seq", **options), DataSettings(path="corpus", text="body", label="wanted"))


def test_it_is_found_by_its_name():
    assert find("seq2seq") is Seq2Seq


def test_it_needs_a_label_and_one_text():
    with pytest.raises(JobError, match=r"data\.label is missing: seq2seq needs a column of texts"):
        Seq2Seq(Seq2Seq.Config(name="seq2seq"), DataSettings(path="corpus", text="body"))
    with pytest.raises(JobError, match=r"data\.text_pair: seq2seq reads one text"):
        Seq2Seq(
            Seq2Seq.Config(name="seq2seq"), DataSettings(path="corpus", text="body", label="wanted", text_pair="more")
        )


@pytest.mark.parametrize("type_", [pa.int64(), pa.list_(pa.string())], ids=str)
def test_a_label_that_is_no_text_is_refused(type_):
    with pytest.raises(CorpusError, match=r"data\.label 'wanted' is .*; seq2seq needs texts to write"):
        settings().check_label(type_)


def test_languages_are_of_translations_alone():
    with pytest.raises(ValidationError, match="source and target need `task: translate`"):
        Seq2Seq.Config(name="seq2seq", target="de")


def test_a_model_that_cannot_write_is_refused(prepare, tiny):
    with pytest.raises(ModelError, match="which cannot write"):
        prepare(Seq2Seq, tiny("bert", "Model"), pa.string())


def test_targets_longer_than_the_model_has_positions_are_refused(prepare, tiny):
    with pytest.raises(JobError, match=r"128 is more than .* can write"):
        prepare(Seq2Seq, tiny("bart", "Seq2SeqLM", max_tokens=128), pa.string(), max_target_tokens=128)


def test_a_prefix_that_fills_the_window_is_refused(prepare, t5):
    with pytest.raises(JobError, match=r"objective\.prefix: its \d+ tokens leave no room"):
        prepare(Seq2Seq, t5, pa.string(), max_tokens=8, prefix="so many words that nothing else fits ")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_example_holds_what_the_tokenizer_makes_of_text_and_target(family, prepare, tiny):
    made = prepare(Seq2Seq, tiny(family, "Seq2SeqLM"), pa.string(), prefix="tell: ")
    encoded = made.encode({"text": ["a cat sat"], "label": ["the cat"]})
    wanted = made.tokenizer("tell: a cat sat", text_target="the cat")
    assert encoded.examples["input_ids"].to_pylist() == [wanted["input_ids"]]
    assert encoded.examples["target"].to_pylist() == [wanted["labels"]]
    assert encoded.examples["weight"].to_pylist() == [len(wanted["labels"])]
    assert encoded.examples["words"].to_pylist() == [2]
    assert encoded.tokens == len(wanted["input_ids"])


@pytest.mark.parametrize("family", sorted(LANGUAGES))
def test_languages_stand_where_the_model_wants_them(family, prepare, tiny):
    source, target = LANGUAGES[family]
    made = prepare(Seq2Seq, tiny(family, "Seq2SeqLM"), pa.string(), task="translate", source=source, target=target)
    encoded = made.encode({"text": ["a cat sat"], "label": ["die Katze"]})
    made.tokenizer.src_lang = source
    assert encoded.examples["input_ids"].to_pylist() == [made.tokenizer("a cat sat")["input_ids"]]
    made.tokenizer.src_lang = target
    assert encoded.examples["target"].to_pylist() == [made.tokenizer("die Katze")["input_ids"]]
    (annotation,) = made.prediction("said").annotations
    assert (annotation["task"], annotation["source"], annotation["target"]) == ("translate", source, target)
    assert made.prediction("said").columns["predicted"] == "said_translation"
    with pytest.raises(JobError, match="'xx' is no language of the model"):
        prepare(Seq2Seq, tiny(family, "Seq2SeqLM"), pa.string(), task="translate", source=source, target="xx")
    with pytest.raises(JobError, match="must be told what to translate into what"):
        prepare(Seq2Seq, tiny(family, "Seq2SeqLM"), pa.string(), task="translate")


def test_a_t5_that_learns_to_translate_needs_no_prefix(prepare, t5):
    made = prepare(Seq2Seq, t5, pa.string(), task="translate")
    assert made.prediction("said").annotations[0]["prefix"] == ""
    made = prepare(Seq2Seq, t5, pa.string(), task="translate", source="en", target="de")
    ids = made.encode({"text": ["a cat"], "label": ["Katze"]}).examples["input_ids"].to_pylist()
    assert ids == [made.tokenizer("translate English to German: a cat")["input_ids"]]


def test_what_a_t5_says_of_summaries_stands_before_each_text_in_training_and_afterwards(prepare, tiny, tmp_path):
    own = {"summarization": {"prefix": "summarize: "}}
    made = prepare(Seq2Seq, tiny("t5", "Seq2SeqLM", task_specific_params=own), pa.string())
    ids = made.encode({"text": ["a cat"], "label": ["cat"]}).examples["input_ids"].to_pylist()
    assert ids == [made.tokenizer("summarize: a cat")["input_ids"]]
    made.save(made.finish(made.build({}, TrainingSettings()), {}), str(tmp_path / "model"))
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["task_specific_params"] == own


def test_texts_and_targets_over_their_windows_are_cut_and_told(prepare, t5):
    made = prepare(Seq2Seq, t5, pa.string(), max_tokens=16, max_target_tokens=8)
    long = " ".join(THINGS * 6)
    encoded = made.encode({"text": [long, "a cat", "a cat", long], "label": ["cat", long, "cat", long]})
    assert encoded.truncated_rows == 3
    end = made.tokenizer.eos_token_id
    assert [len(ids) for ids in encoded.examples["input_ids"].to_pylist()][::3] == [16, 16]
    targets = encoded.examples["target"].to_pylist()
    assert len(targets[1]) == len(targets[3]) == 8
    assert all(ids[-1] == end for ids in targets)


def test_rows_without_a_label_or_a_token_are_left_out(seq2seq):
    rows = {"text": ["a", "b", "c", "d", "\u200b"], "label": [None, " ", "\u200b", "fine", "fine"]}
    encoded = seq2seq.encode(rows)
    assert [(row, encoded.failures[row].reason) for row in sorted(encoded.failures)] == [
        (0, Reason.NULL_LABEL),
        (1, Reason.BAD_LABEL),
        (2, Reason.NO_TOKENS),
        (4, Reason.NO_TOKENS),
    ]
    assert len(encoded.examples) == 1


@pytest.mark.parametrize("family", [*FAMILIES, *LANGUAGES])
def test_the_loss_is_that_of_transformers_summed_over_the_targets(family, prepare, tiny, batch_of):
    languages = LANGUAGES.get(family)
    options = {} if languages is None else {"task": "translate", "source": languages[0], "target": languages[1]}
    made = prepare(Seq2Seq, tiny(family, "Seq2SeqLM"), pa.string(), **options)
    rows = {"text": ROWS["text"][:5], "label": [*ROWS["label"][:4], "cat"]}
    examples = made.encode(rows).examples
    module = made.build({}, TrainingSettings()).eval()
    batch = batch_of(made, examples, {})
    weight = sum(examples["weight"].to_pylist())
    assert weight == int((batch["target"] != -100).sum())
    seen = []
    module.get_output_embeddings().register_forward_hook(
        lambda _module, given, _said: seen.append(given[0].shape[:-1].numel())
    )
    ours = made.loss(module, batch, {})
    assert seen == [weight]
    theirs = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["target"]).loss
    torch.testing.assert_close(ours / weight, theirs, rtol=1e-4, atol=1e-4)


def test_smoothing_is_of_the_loss_and_not_of_the_perplexity(prepare, t5, batch_of):
    made = prepare(Seq2Seq, t5, pa.string(), label_smoothing=0.1)
    examples = made.encode(ROWS).examples
    module = made.build({}, TrainingSettings()).eval()
    batch = batch_of(made, examples, {})
    with torch.no_grad():
        loss, kept = made.judge(module, batch, {})
        logits = module(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["target"]
        ).logits
    theirs = transformers.trainer_pt_utils.LabelSmoother(epsilon=0.1)({"logits": logits}, batch["target"])
    weight = sum(examples["weight"].to_pylist())
    torch.testing.assert_close(loss / weight, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.loss(module, batch, {}), loss)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["target"].flatten())
    assert made.score(kept, {})["perplexity"] == pytest.approx(math.exp(plain), rel=1e-3)


def test_baselines_are_the_beginning_of_each_text(seq2seq):
    counted = seq2seq.counted(seq2seq.encode(ROWS).examples)
    assert counted == {"rows": 36.0, "words": 108.0}
    learned = seq2seq.learned(counted)
    assert learned == {"mean_words": 3.0}
    found = seq2seq.baselines(learned, pa.table({"text": ROWS["text"], "wanted": ROWS["label"]}), Examples([]))
    assert sorted(found) == ["lead_3", "lead_8"]
    assert found["lead_3"]["predicted"][0].as_py() == "there was once"
    assert list(seq2seq.baselines({}, pa.table({"text": ["a"]}), Examples([]))) == ["lead_8"]
    assert settings(task="translate").baselines(learned, pa.table({"text": ["a"]}), Examples([])) == {}


def test_the_prediction_asks_for_as_many_tokens_as_were_trained():
    prediction = settings(max_target_tokens=24, prefix="tell: ", num_beams=2).prediction("said")
    assert prediction.annotations == [
        {
            "name": "said",
            "task": "summarize",
            "text": "body",
            "max_new_tokens": 24,
            "prefix": "tell: ",
            "num_beams": 2,
        }
    ]
    assert prediction.kind == "texts"
    assert prediction.columns == {"gold": "wanted", "predicted": "said_summary"}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_some_steps_lower_the_loss_and_the_summarize_task_writes_what_was_learned(
    family, prepare, tiny, trained, tmp_path
):
    folder = tiny(
        family, "Seq2SeqLM", max_tokens=64, **({"initializer_factor": 1.0} if family == "t5" else {"init_std": 0.05})
    )
    made = prepare(Seq2Seq, folder, pa.string(), max_target_tokens=20, num_beams=1)
    rows = {name: values[::3] for name, values in ROWS.items()}
    module, losses = trained(made, rows, steps=80, learning_rate=8e-3)
    assert losses[-1] < 0.1 * losses[0]
    made.save(made.finish(module, {}), str(tmp_path / "model"))
    said = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert said["max_new_tokens"] == 20

    (annotation,) = made.prediction("said").annotations
    model = ModelSettings(ref=str(tmp_path / "model"))
    task = Summarize(Summarize.Config.model_validate({**annotation, "model": model}), pin(model))
    task.start(load(pin(model), task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
    written = task.annotate(Texts(rows["text"])).columns["summary"]
    lead = made.baselines({"mean_words": 3}, pa.table({"text": rows["text"]}), Examples([]))["lead_3"]["predicted"]
    table = pa.table({"gold": rows["label"], "ours": written, "lead": lead})
    rouge = {
        name: measure(TextsKind("gold", name), table, resamples=0).figures["rouge1"].value for name in ("ours", "lead")
    }
    assert rouge["ours"] > 0.9 > 0.5 > rouge["lead"]


def test_a_model_that_learned_a_language_writes_it_through_the_translate_task(prepare, tiny, trained, tmp_path):
    source, target = LANGUAGES["m2m100"]
    folder = tiny("m2m100", "Seq2SeqLM", max_tokens=64, init_std=0.05)
    made = prepare(
        Seq2Seq, folder, pa.string(), task="translate", source=source, target=target, max_target_tokens=20, num_beams=1
    )
    rows = {"text": ROWS["text"][:12], "label": ROWS["label"][:12]}
    module, losses = trained(made, rows, steps=120, learning_rate=5e-3)
    assert losses[-1] < 0.1 * losses[0]
    made.save(made.finish(module, {}), str(tmp_path / "model"))
    (annotation,) = made.prediction("said").annotations
    model = ModelSettings(ref=str(tmp_path / "model"))
    task = Translate(Translate.Config.model_validate({**annotation, "model": model}), pin(model))
    task.start(load(pin(model), task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
    written = task.annotate(Texts(rows["text"])).columns["translation"].to_pylist()
    assert np.mean([one == other for one, other in zip(written, rows["label"], strict=True)]) > 0.8
