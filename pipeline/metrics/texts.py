"""A written text for each row beside one that a person wrote: ROUGE, BLEU, chrF.

    summary                  short_summary          Texts(gold="summary", predicted="short_summary")
    chess engine of Knuth    engine for chess       -> rouge1 0.57, rougeL 0.29, bleu 12.2, chrf 45.9, exact 0.0 …

ROUGE (Lin 2004) is F1 of n-grams, 0 to 1, the mean over rows, by rouge-score without stemming; BLEU (Papineni et al.
2002) and chrF (Popović 2015) are of the whole corpus, 0 to 100, by sacrebleu. ROUGE knows words of the letters a to z
and digits alone: for other scripts look at chrF. A row without prediction is measured as an empty text. R rows, S
statistics of a metric, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.metrics.base import Found, Kind, Value
from pipeline.metrics.bootstrap import Bootstrap, Floats
from pipeline.metrics.columns import nulls, strings
from pipeline.metrics.counts import ratio
from pipeline.metrics.libraries import library

Tokenizer = Literal["13a", "char", "intl", "none", "zh"]  # of sacrebleu's those that need nothing further

_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True, slots=True)
class Texts(Kind):
    """Which columns hold the right text and the written one."""

    gold: str
    predicted: str
    use_stemmer: bool = False  # ROUGE: English word forms count as one word
    tokenize: Tokenizer = "13a"  # BLEU: how texts are cut; zh or char for those without blanks

    main = "rouge1"
    figures = ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact", "gold_words", "predicted_words")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Rows without gold.

        Raises JobError: a column that is not there, or of another type; a `tokenize` that is not known.
        """
        if self.tokenize not in get_args(Tokenizer):
            raise JobError(f"BLEU cuts no text by {self.tokenize!r}; it knows {', '.join(get_args(Tokenizer))}")
        strings(table, self.predicted)
        strings(table, self.gold)
        return {f"{self.gold} is null": nulls(table, self.gold)}

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """rouge1, rouge2, rougeL, bleu, chrf, exact; mean lengths in words."""
        gold = strings(table, self.gold).to_pylist()
        predictions = strings(table, self.predicted)
        said = pc.fill_null(predictions, "").to_pylist()
        scorer = library("rouge_score.rouge_scorer").RougeScorer(_ROUGE, use_stemmer=self.use_stemmer)
        scores = (scorer.score(right, text) for right, text in zip(gold, said, strict=True))
        rouge_R3 = np.array([[score[name].fmeasure for name in _ROUGE] for score in scores])
        exact_R = np.array([right == text for right, text in zip(gold, said, strict=True)])
        words_R2 = np.array([[len(text.split()) for text in pair] for pair in zip(gold, said, strict=True)])
        means_R6 = np.concatenate([rouge_R3, exact_R[:, None] & ~_mask(predictions)[:, None], words_R2], axis=1)
        names = (*_ROUGE, "exact", "gold_words", "predicted_words")

        sacrebleu = library("sacrebleu.metrics")
        of_corpus = {"bleu": sacrebleu.BLEU(tokenize=self.tokenize, force=True), "chrf": sacrebleu.CHRF()}
        stats = {name: _statistics(metric, said, gold) for name, metric in of_corpus.items()}
        sums = bootstrap.sums({"means": means_R6, "rows": np.ones((len(gold), 1)), **stats})
        means_B6 = ratio(sums["means"], sums["rows"])
        values = {
            name: Value(float(mean), mean_B, len(gold))
            for name, mean, mean_B in zip(names, means_R6.mean(0), means_B6.T, strict=True)
        }
        for name, metric in of_corpus.items():
            of_rows, of_resamples = _scores(metric, stats[name].sum(0)[None]), _scores(metric, sums[name])
            values[name] = Value(float(of_rows[0]), of_resamples, len(gold))
        return Found(values, {"without_prediction": predictions.null_count, "signatures": _signatures(of_corpus)})


def _mask(predictions: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(predictions.is_null())


def _statistics(metric: Any, said: Sequence[str], gold: Sequence[str]) -> npt.NDArray[np.float64]:
    """What sacrebleu sums over a corpus, row by row: stats_RS. Its own bootstrap goes this way too."""
    return np.array(metric._extract_corpus_statistics(said, [gold]), np.float64)


def _scores(metric: Any, sums_XS: Floats) -> Floats:
    """The scores of X samples from their sums."""
    return np.array([metric._compute_score_from_stats(sums.tolist()).score for sums in sums_XS], np.float64)


def _signatures(of_corpus: Mapping[str, Any]) -> dict[str, str]:
    """How sacrebleu computed: what a paper quotes, so that another's figures can be compared."""
    return {name: str(metric.get_signature()) for name, metric in of_corpus.items()}
