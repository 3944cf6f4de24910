import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.baselines import lead
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.texts import Texts

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
sacrebleu = pytest.importorskip("sacrebleu")

KIND = Texts("gold", "said")


def holds_its_value(figure):
    return figure.low <= figure.value <= figure.high


def table(rows):
    gold, said = zip(*rows, strict=True)
    return pa.table({"gold": pa.array(gold, pa.string()), "said": pa.array(said, pa.string())})


ROWS = [
    ("chess engine of Knuth", "engine for chess"),
    ("tool that shows pictures", "tool that shows pictures of birds"),
    ("a library of numbers, large ones", "library: large numbers"),
    ("games for two", "games for two"),
] * 5


def test_rouge_is_the_mean_of_rouge_score():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(gold, said) for gold, said in ROWS]
    found = measure(KIND, table(ROWS)).figures
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name].value == pytest.approx(np.mean([score[name].fmeasure for score in scores]))


def test_bleu_and_chrf_are_those_of_sacrebleu():
    gold, said = (list(each) for each in zip(*ROWS, strict=True))
    found = measure(KIND, table(ROWS)).figures
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(said, [gold]).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(said, [gold]).score)


def test_each_resample_is_what_sacrebleu_makes_of_the_drawn_rows():
    measured = measure(KIND, table(ROWS), seed=1, resamples=8)
    weights_RB = np.hstack(list(Bootstrap(len(ROWS), 1, 8).weights()))
    for each, weights_R in enumerate(weights_RB.T):
        gold, said = zip(*(ROWS[row] for row in np.repeat(np.arange(len(ROWS)), weights_R.astype(int))), strict=True)
        assert measured.resampled["bleu"][each] == pytest.approx(sacrebleu.corpus_bleu(said, [gold]).score)
        assert measured.resampled["chrf"][each] == pytest.approx(sacrebleu.corpus_chrf(said, [gold]).score)


def test_the_same_text_is_exact_and_full_marks():
    found = {
        name: figure.value
        for name, figure in measure(KIND, table([("a tool for large maps", "a tool for large maps")])).figures.items()
    }
    assert found == pytest.approx(
        {
            **dict.fromkeys(["rouge1", "rouge2", "rougeL", "exact"], 1),
            **dict.fromkeys(["bleu", "chrf"], 100),
            "gold_words": 5,
            "predicted_words": 5,
        }
    )


def test_a_row_without_prediction_is_an_empty_text_and_never_exact():
    measured = measure(KIND, table([("a tool", "a tool"), ("a tool", None), ("", None), (None, "x")]))
    assert measured.figures["rouge1"].value == pytest.approx(1 / 3)
    assert measured.figures["exact"].value == pytest.approx(1 / 3)
    assert measured.tables["without_prediction"] == 2
    assert measured.tables["left_out"] == {"gold is null": 1}


def test_where_nothing_was_written_all_figures_are_nothing():
    found = measure(KIND, table([("a tool", None), ("another", "")])).figures
    assert {name: figure.value for name, figure in found.items() if name != "gold_words"} == dict.fromkeys(
        ["rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact", "predicted_words"], 0
    )


def test_with_a_stemmer_the_forms_of_a_word_are_one():
    rows = table([("shows pictures", "showing picture")])
    assert measure(KIND, rows).figures["rouge1"].value == 0
    assert measure(Texts("gold", "said", use_stemmer=True), rows).figures["rouge1"].value == 1


def test_texts_without_blanks_are_cut_as_asked():
    rows = table([("大きな地図を描く道具です", "大きな地図を書く道具です")])
    assert measure(KIND, rows).figures["bleu"].value == 0
    assert measure(Texts("gold", "said", tokenize="char"), rows).figures["bleu"].value > 40


def test_the_tables_say_how_sacrebleu_computed():
    told = measure(KIND, table(ROWS)).to_json()
    assert "tok:13a" in told["tables"]["signatures"]["bleu"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_lead_8_of_real_descriptions_reaches_what_the_project_says_of_it(debian):
    rows = pq.read_table(debian / "part-00.parquet", columns=["summary", "description"]).slice(0, 512)
    rows = rows.append_column("lead", lead(rows["description"], 8))
    found = measure(Texts("summary", "lead"), rows).figures
    assert holds_its_value(found["rouge1"])
    assert 0.2 < found["rouge1"].value < 0.35
    assert found["predicted_words"].value <= 8


def test_a_tokenizer_that_is_not_known_is_refused():
    with pytest.raises(JobError, match=r"^BLEU cuts no text by 'flores200'; it knows 13a, char, intl, none, zh$"):
        measure(Texts("gold", "said", tokenize="flores200"), table(ROWS))  # type: ignore[arg-type]
