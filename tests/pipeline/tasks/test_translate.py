import json
import shutil
import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotator import AnnotationSpec, Annotator
from pipeline.errors import JobError, ModelError
from pipeline.models.reference import ModelSettings, pin
from pipeline.output.planfile import PinnedAnnotation
from pipeline.quarantine import Reason
from pipeline.tasks._languages import codes, splitter_code, unknown
from pipeline.tasks.base import Texts
from pipeline.tasks.translate import Translate, joined, kind_of_languages
from pipeline.text.passages import passages
from pipeline.text.tokens import Tokens

NEAR = 1e-4
LANGUAGES = {
    "marian": {"target": "deu"},
    "m2m100": {"source": "en", "target": "de"},
    "nllb": {"source": "eng_Latn", "target": "deu_Latn"},
    "t5": {"source": "en", "target": "German"},
}


@pytest.fixture
def folder_of(tiny):
    """A tiny model that translates; T5's weights less wild than the fixture's, which blow rounding up."""

    def of(family, **options):
        smooth = {"initializer_factor": 1.0} if family == "t5" else {}
        return tiny(family, "Seq2SeqLM", **smooth, **options)

    return of


def by_library(family, folder, texts, most, **options):
    """Each text alone, by transformers as its documentation shows it for this family, in float32."""
    module = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prefix = {"marian": ">>deu<< ", "t5": "translate English to German: "}.get(family, "")
    skip = 1
    if family in ("m2m100", "nllb"):
        tokenizer.src_lang = LANGUAGES[family]["source"]
        token = "__de__" if family == "m2m100" else "deu_Latn"
        options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(token)
        skip = 2  # the decoder's first token, and the language
    found = []
    for text in texts:
        inputs = tokenizer(prefix + text, truncation=True, max_length=most, return_tensors="pt")
        with torch.inference_mode():
            told = module.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                output_scores=True,
                return_dict_in_generate=True,
                **options,
            )
        gap = min(float((-scores.topk(2).values.diff()).min()) for scores in told.scores)
        found.append((tokenizer.decode(told.sequences[0, skip:], skip_special_tokens=True), gap))
    return found


def readable(texts):
    """Those that reach a task; Marian's tokenizer takes what stands between >> and << for a language, and drops it."""
    return [text for text in texts if text.strip() and "<<" not in text]


# ------------------------------------------------------------------------------------------------------- row by row


@pytest.mark.parametrize("family", LANGUAGES)
def test_translations_are_those_of_generate_row_by_row(folder_of, start, texts, family):
    folder = folder_of(family, max_tokens=64)
    task = start(Translate, folder, token_budget=600, split="none", num_beams=1, max_new_tokens=8, **LANGUAGES[family])
    rows = readable(texts)
    found = task.annotate(Texts(rows))
    kept = [row for row in range(len(rows)) if row not in found.failures]
    assert len(kept) >= 200
    assert {failure.reason for failure in found.failures.values()} <= {Reason.NO_TOKENS}
    asked = {"num_beams": 1, "max_new_tokens": 8}
    expected = by_library(family, folder, [rows[row] for row in kept], 64, **asked)
    mine = found.columns["translation"].to_pylist()
    parted = 0
    for row, (theirs, gap) in zip(kept, expected, strict=True):
        if mine[row] != theirs:
            assert gap < NEAR, (mine[row], theirs, gap)
            parted += 1
    assert parted <= 4
    assert set(found.columns["end"].to_pylist()) <= {"eos", "length", None}


@pytest.mark.parametrize("family", ["marian", "nllb"])
def test_beams_are_those_of_generate_row_by_row(folder_of, start, texts, family):
    folder = folder_of(family, max_tokens=64)
    asked = {"num_beams": 3, "max_new_tokens": 8}
    rows = [text for text in readable(texts) if len(text) > 20][::5]
    found = start(Translate, folder, split="none", **asked, **LANGUAGES[family]).annotate(Texts(rows))
    expected = by_library(family, folder, rows, 64, **asked)
    same = [
        mine == theirs for mine, (theirs, _) in zip(found.columns["translation"].to_pylist(), expected, strict=True)
    ]
    assert same.count(False) <= 1


def test_a_text_with_shift_operators_keeps_marians_language(folder_of, start):
    task = start(Translate, folder_of("marian"), target="deu", num_beams=1, max_new_tokens=3)
    heard: list[Sequence[int]] = []
    task.writer.loaded.module.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    task.annotate(Texts(["the train << leaves"]))
    tokenizer = task.writer.loaded.tokenizer
    assert heard[0] == [tokenizer.get_vocab()[">>deu<<"], *tokenizer("the train << leaves")["input_ids"]]
    assert len(heard[0]) > 5


# ------------------------------------------------------------------------------------------------------ one tokenizer


def test_two_annotations_of_other_languages_share_a_model_and_each_keeps_its_own(folder_of, texts):
    folder = folder_of("nllb", max_tokens=64)
    rows = [text for text in readable(texts) if 20 < len(text) < 200][:20]
    ways = {"a": ("eng_Latn", "deu_Latn"), "b": ("rus_Cyrl", "fra_Latn"), "c": ("eng_Latn", "fra_Latn")}
    together = _annotated(folder, rows, ways)
    for name, way in ways.items():
        alone = _annotated(folder, rows, {name: way})
        assert together[f"{name}_translation"] == alone[f"{name}_translation"]
    assert len({tuple(together[f"{name}_translation"].to_pylist()) for name in ways}) == 3


def _annotated(folder, rows, ways):
    model = pin(ModelSettings(ref=str(folder)))
    specs = []
    for name, (source, target) in ways.items():
        settings = {"name": name, "task": "translate", "text": "body", "model": {"ref": str(folder)}}
        settings |= {"source": source, "target": target, "num_beams": 1, "max_new_tokens": 8}
        pinned = PinnedAnnotation(model.ref, None, model.digest, "torch", "float32", "cpu", 1, 600)
        specs.append(AnnotationSpec(settings, False, model, pinned))
    table = pa.table({"body": rows})
    annotator = Annotator(specs, table.schema)
    annotator.load()
    return annotator.annotate(table).columns


@pytest.mark.parametrize("family", ["m2m100", "nllb"])
def test_the_tokenizer_is_left_as_it_was(folder_of, start, family):
    languages = {"m2m100": {"source": "fr", "target": "ru"}, "nllb": {"source": "fra_Latn", "target": "rus_Cyrl"}}
    task = start(Translate, folder_of(family), max_new_tokens=2, **languages[family])
    fresh = transformers.AutoTokenizer.from_pretrained(folder_of(family))
    assert task.writer.loaded.tokenizer.src_lang == fresh.src_lang
    assert task.writer.loaded.tokenizer("a b")["input_ids"] == fresh("a b")["input_ids"]


# --------------------------------------------------------------------------------------------------------- long texts


class Echo:
    """A writer to which a word is a token, and that says what it reads, or that each `word` is written otherwise."""

    def __init__(self, room, says=str):
        self.room, self.says = room, says
        self.prompts = []

    def tokens(self, texts):
        return [Tokens(np.zeros(len(self._words(text)), np.int32)) for text in texts]

    def lengths(self, texts):
        return [len(self._words(text)) for text in texts]

    def write(self, prompts, rows, texts, written):
        self.prompts += prompts
        for prompt, row in zip(prompts, rows, strict=True):
            written.truncated_R[row] |= len(self._words(prompt)) > self.room
            written.ends_R[row] = "eos"
        return [self.says(prompt) for prompt in prompts]

    @staticmethod
    def _words(text):
        return text.replace("\u200b", "").split()


@pytest.fixture
def echoing(tiny, prepare):
    def make(room, says=str, **options):
        options = {"prefix": "", **options}
        task = prepare(Translate, tiny("bart", "Seq2SeqLM"), **options)
        task.writer = Echo(room, says)
        return task, task.writer

    return make


LONG = "  One two. \n\n Three four five six seven.\u200b\n\n\u200b\n\nEight.  "


def test_a_text_within_the_window_is_translated_whole_and_a_longer_one_by_sentences(echoing):
    task, echo = echoing(room=4, says=str.upper)
    found = task.annotate(Texts(["One two. Three.", LONG]))
    assert echo.prompts == ["One two. Three.", "One two.", "Three four five", "six seven.", "Eight."]
    assert found.columns["translation"].to_pylist() == [
        "ONE TWO. THREE.",
        "ONE TWO. \n\n THREE FOUR FIVE SIX SEVEN.\u200b\n\n\u200b\n\nEIGHT.",
    ]
    assert found.truncated_R.tolist() == [False, False]


def test_split_sentences_takes_every_text_apart_and_none_cuts_off(echoing):
    task, echo = echoing(room=4, split="sentences")
    task.annotate(Texts(["One two. Three."]))
    assert echo.prompts == ["One two.", "Three."]
    task, echo = echoing(room=4, split="none")
    assert task.annotate(Texts([LONG, "One."])).truncated_R.tolist() == [True, False]
    assert echo.prompts == [LONG, "One."]


@given(
    text=st.lists(
        st.sampled_from(["word", "Ende.", " ", "  ", "\n\n", "。", "字字字。", "a", "\u200b", "!"]), min_size=1
    )
    .map("".join)
    .filter(str.strip),
    room=st.integers(1, 6),
)
def test_an_echo_gives_the_text_again(text, room):
    def words(parts):
        return [len(part.split()) for part in parts]

    spans = passages(text, room, words)
    said = [text[start:stop] for start, stop in spans]
    assert joined(text, spans, said, "") == text.strip()
    spaced = joined(text, spans, said, " ")
    assert spaced.replace(" ", "") == text.strip().replace(" ", "")


def test_sentences_of_a_language_without_blanks_get_one_where_the_target_has_them(folder_of, prepare):
    text = "你好。再见。"
    for target, expected in (("de", "Hallo. Tschüss."), ("ja", "Hallo.Tschüss.")):
        task = prepare(Translate, folder_of("m2m100"), source="zh", target=target, split="sentences")
        task.writer = Echo(5, {"你好。": "Hallo.", "再见。": "Tschüss."}.get)
        assert task.annotate(Texts([text])).columns["translation"].to_pylist() == [expected]


def test_sentences_end_by_the_rules_of_the_source(folder_of, prepare):
    text = "Das gilt z. B. für Züge. Er kam."
    task = prepare(Translate, folder_of("nllb"), source="deu_Latn", target="eng_Latn", split="sentences")
    task.writer = Echo(50)
    task.annotate(Texts([text]))
    assert task.writer.prompts == ["Das gilt z. B. für Züge.", "Er kam."]


def test_long_texts_with_a_real_model_are_read_whole(folder_of, start, texts):
    rows = [text for text in readable(texts) if len(text) > 600][:6]
    task = start(Translate, folder_of("nllb", max_tokens=64), token_budget=600, max_new_tokens=4, **LANGUAGES["nllb"])
    found = task.annotate(Texts(rows))
    assert not found.failures
    assert not found.truncated_R.any()
    assert (found.tokens_R > 64).all()
    assert found.forward_tokens == found.tokens_R.sum()


def test_the_journal_hears_the_rows_of_sentences(folder_of, start):
    task = start(
        Translate, folder_of("nllb"), token_budget=4_000, max_new_tokens=2, split="sentences", **LANGUAGES["nllb"]
    )
    heard: list[Sequence[int]] = []
    task.annotate(Texts(["One. Two. Three.", "Four."], running=heard.append))
    assert heard == [[0, 1]]


def test_a_text_that_fails_is_null_and_its_neighbours_are_not(folder_of, start):
    task = start(Translate, folder_of("nllb"), max_new_tokens=3, **LANGUAGES["nllb"])

    def broken(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 20:
            raise ValueError("no")

    task.writer.loaded.module.get_encoder().register_forward_pre_hook(broken, with_kwargs=True)
    found = task.annotate(Texts(["a b", "train " * 30, "c"]))
    assert found.failures[1].reason == Reason.MODEL_FAILED
    for name in ("translation", "end"):
        assert found.columns[name].is_null().to_pylist() == [False, True, False]


# ---------------------------------------------------------------------------------------------- languages and options


@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("marian", {}, "target: model .*marian.* writes several languages: name one of deu, fra, rus"),
        ("marian", {"target": "ger"}, "target: 'ger' is no language of the model; .*known: deu, fra, rus"),
        ("marian", {"target": "de"}, "target: 'de' is no language of the model; did you mean 'deu'"),
        ("marian", {"target": "deu", "source": "eng"}, "source: model .* reads what it was trained for and has no use"),
        ("marian", {"prefix": ">>deu<< "}, "prefix: .* is told its languages by `target`, not by words"),
        ("nllb", {"target": "deu_Latn"}, "source: model .*m2m_100.* must be told what to translate into what$"),
        ("nllb", {}, "source and target: "),
        ("nllb", {"source": "eng_Latn", "target": "deu_Lat"}, "target: 'deu_Lat' is no .* did you mean 'deu_Latn'"),
        ("nllb", {"source": "en", "target": "deu_Latn"}, "source: 'en' is no .* did you mean 'eng_Latn'"),
        ("m2m100", {"source": "en"}, "target: model"),
        (
            "m2m100",
            {"prefix": "to German: "},
            "prefix: .* is told its languages by `source` and `target`, not by words",
        ),
        ("t5", {"source": "en"}, "target: .* must be told what to translate into what, or the `prefix`"),
        ("t5", {"source": "en", "target": "Germn"}, "target: 'Germn' is no .* did you mean 'German'.* has a `prefix`"),
        (
            "bart",
            {"source": "en", "target": "de"},
            "source and target: .* has no way of its own to be told them; put .*`prefix`",
        ),
    ],
)
def test_languages_are_checked_on_the_driver(folder_of, prepare, family, options, told):
    with pytest.raises(JobError, match=f"^annotation 'found': {told}"):
        prepare(Translate, folder_of(family), **options)


def test_languages_that_no_file_names_are_checked_when_the_tokenizer_is_there(folder_of, start):
    told = "annotation 'found': target: 'dee' is no language of the model; did you mean 'de'.* known: af, am, ar, "
    with pytest.raises(JobError, match=told):
        start(Translate, folder_of("m2m100"), source="en", target="dee")
    with pytest.raises(JobError, match="source: 'eng' is no language of the model; did you mean 'en'"):
        start(Translate, folder_of("m2m100"), source="eng", target="de")


@pytest.mark.parametrize("target", ["fra", ">>fra<<"])
def test_marian_gets_its_target_as_a_token_in_front(folder_of, start, target):
    task = start(Translate, folder_of("marian"), target=target, max_new_tokens=2)
    assert task.lead == (task.writer.loaded.tokenizer.get_vocab()[">>fra<<"],)
    assert task.annotate(Texts(["a b"])).tokens_R.tolist() == [
        1 + len(task.writer.loaded.tokenizer("a b")["input_ids"])
    ]


def test_a_marian_of_one_target_needs_none(folder_of, start, prepare, tmp_path):
    folder = tmp_path / "marian"
    shutil.copytree(folder_of("marian"), folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    plain = {token.replace(">>", "<").replace("<<", ">"): place for token, place in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(plain))
    task = start(Translate, folder, max_new_tokens=2)
    assert task.lead == ()
    assert task.annotate(Texts(["a b"])).columns["end"].to_pylist() != [None]
    with pytest.raises(JobError, match=r"target: model .* writes one language and has no use for it"):
        prepare(Translate, folder, target="deu")
    vocabulary = {token: place for token, place in vocabulary.items() if token not in (">>fra<<", ">>rus<<")}
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "<fra>": 679, "<rus>": 680}))
    assert len(start(Translate, folder, max_new_tokens=2).lead) == 1


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({"source": "en", "target": "de"}, "translate English to German: "),
        ({"source": "french", "target": "Romanian"}, "translate French to Romanian: "),
        ({"prefix": "<2de> "}, "<2de> "),
    ],
)
def test_t5_gets_words_in_front(folder_of, prepare, options, prefix):
    assert prepare(Translate, folder_of("t5"), **options).prefix == prefix


def test_other_models_take_a_prefix_alone(folder_of, prepare):
    assert prepare(Translate, folder_of("bart"), prefix="German: ").prefix == "German: "
    assert prepare(Translate, folder_of("pegasus")).prefix == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prefix": "a: ", "target": "de"}, "prefix stands in place of source and target"),
        ({"split": "none", "language": "de"}, "language needs `split: auto` or `sentences`"),
        ({"language": "German"}, "language"),
        ({"split": "words"}, "split"),
    ],
)
def test_options_that_make_no_sense_are_refused(folder_of, prepare, options, told):
    with pytest.raises(ValueError, match=told):
        prepare(Translate, folder_of("t5"), **options)


def test_models_that_cannot_write_are_refused(tiny, prepare):
    with pytest.raises(ModelError, match="is BertModel, which cannot write: 'translate' needs an encoder-decoder"):
        prepare(Translate, tiny("bert", "Model"))
    with pytest.raises(ModelError, match="is MarianModel, which cannot write"):
        prepare(Translate, tiny("marian", "Model"), target="deu")
    with pytest.raises(JobError, match="the task 'translate' needs a `model`"):
        Translate(Translate.Config.model_validate({"name": "found", "task": "translate", "text": "body"}), None)


def test_columns_are_of_the_types_that_are_told(folder_of, start):
    task = start(Translate, folder_of("t5"), max_new_tokens=2, **LANGUAGES["t5"])
    found = task.annotate(Texts(["a", "b"]))
    assert {field.name: field.type for field in task.fields()} == {
        name: column.type for name, column in found.columns.items()
    }


def test_kinds_are_told_by_the_models_files(folder_of):
    kinds = {family: kind_of_languages(pin(ModelSettings(ref=str(folder_of(family))))) for family in LANGUAGES}
    assert kinds == {family: family for family in LANGUAGES}
    assert kind_of_languages(pin(ModelSettings(ref=str(folder_of("pegasus"))))) == "other"


# -------------------------------------------------------------------------------------------------------------- mBART


@pytest.fixture(scope="module")
def mbart(tmp_path_factory):
    """A tiny mBART: of fifty languages, or of those whose decoder begins with one."""
    made = {}

    def make(writes=None):
        if writes not in made:
            folder = tmp_path_factory.mktemp("mbart")
            words = [(f"▁{first}{second}", -3.0) for first in "abcdefgh" for second in "klmnop"]
            tokenizer = transformers.MBart50Tokenizer(
                vocab=[("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *words, ("▁", -5.0)], model_max_length=64
            )
            tokenizer.save_pretrained(folder)
            sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in SIZES.items()}
            start = tokenizer.eos_token_id if writes is None else tokenizer.convert_tokens_to_ids(writes)
            config = transformers.MBartConfig(
                vocab_size=len(tokenizer), d_model=32, max_position_embeddings=64, init_std=0.4, **sizes
            )
            config.decoder_start_token_id = start
            torch.manual_seed(7)
            transformers.logging.disable_progress_bar()
            module = transformers.MBartForConditionalGeneration(config).eval()
            module.generation_config = transformers.GenerationConfig(
                decoder_start_token_id=start, pad_token_id=1, eos_token_id=2
            )
            module.save_pretrained(folder)
            made[writes] = folder
        return made[writes]

    return make


SIZES = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}


def test_mbart_gets_its_source_in_front_and_begins_with_its_target(mbart, start):
    task = start(Translate, mbart(), source="fr_XX", target="de_DE", num_beams=1, max_new_tokens=6)
    rows = ["ak bl", "cm dn ek", "fl"]
    found = task.annotate(Texts(rows)).columns["translation"].to_pylist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(mbart())
    tokenizer.src_lang = "fr_XX"
    module = transformers.AutoModelForSeq2SeqLM.from_pretrained(mbart()).eval()
    german = tokenizer.convert_tokens_to_ids("de_DE")
    for text, mine in zip(rows, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        told = module.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            forced_bos_token_id=german,
            num_beams=1,
            max_new_tokens=6,
        )
        assert told[0, 1] == german
        assert mine == tokenizer.decode(told[0, 2:], skip_special_tokens=True)
    with pytest.raises(JobError, match="target: 'de' is no language of the model; did you mean 'de_DE'"):
        start(Translate, mbart(), source="fr_XX", target="de")


def test_an_mbart_whose_decoder_begins_with_a_language_writes_that_alone(mbart, start):
    task = start(Translate, mbart("ro_RO"), source="en_XX", target="ro_RO", max_new_tokens=4)
    assert task.forced_bos is None
    with pytest.raises(JobError, match=r"target: model .* writes 'ro_RO' alone, by its config.json"):
        start(Translate, mbart("ro_RO"), source="en_XX", target="de_DE", max_new_tokens=4)


# ---------------------------------------------------------------------------------------------------------- languages


def test_codes_are_read_from_tokens():
    assert codes("marian", ["</s>", ">>fra<<", ">>cmn_Hans<<", "▁>>"]) == {
        "cmn_Hans": ">>cmn_Hans<<",
        "fra": ">>fra<<",
    }
    assert codes("m2m100", ["__en__", "__zh__", "<s>", "____"]) == {"en": "__en__", "zh": "__zh__"}
    assert codes("nllb", ["eng_Latn", "zho_Hans", "en_XX"]) == {"eng_Latn": "eng_Latn", "zho_Hans": "zho_Hans"}
    assert codes("mbart", ["eng_Latn", "en_XX"]) == {"en_XX": "en_XX"}


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("eng_Latn", "en"),
        ("deu", "de"),
        ("cmn_Hans", "zh"),
        ("zh_CN", "zh"),
        ("pt_XX", "pt"),
        ("English", "en"),
        ("romanian", "ro"),
        ("ceb", "ceb"),
        ("mul", None),
        (None, None),
    ],
)
def test_a_splitter_knows_languages_by_short_codes(language, code):
    assert splitter_code(language) == code


def test_an_unknown_language_is_told_with_the_known_ones():
    assert unknown("target", "qq", ["de", "fr"]) == "target: 'qq' is no language of the model; known: de, fr"
    many = [f"a{number:02}" for number in range(70)]
    assert unknown("source", "zzz", many).endswith("a58, a59 and 10 more")


def test_nothing_warns(folder_of, start):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(Translate, folder_of("marian"), target="deu", max_new_tokens=2).annotate(Texts(["a"]))
