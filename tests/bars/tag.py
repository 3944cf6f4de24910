"""Whether `tag` tells where entities stand, in any script and at any length: a corpus is made, tagged, and read again.

    python tests/bars/tag.py ../shared/models/minilm-pii-ner --rows 5000 --long 100

1. Offsets: 5,000 letters with emoji, Chinese and Japanese, right-to-left text and combining marks, some of them of
   3,000 tokens, go through `corpusmill run`. DuckDB and polars read the output; text[start:end] must be the entity's
   own text, by DuckDB's characters and by Python's, and no two entities of a row may overlap.
2. Windows: the model has 512 positions, so no window holds a long text. The reference is the same model with each token
   read near the middle of a window of its own: windows begin every 128 tokens, each token takes the scores of the one
   that shows most on its shorter side, and the library's pipeline decodes them. A second reference, its windows moved
   by half a step, shows how far the model disagrees with itself for reasons that have nothing to do with edges.

No test: a script whose figures stand in release notes until `corpusmill bench` exists.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import yaml
from transformers.pipelines.token_classification import AggregationStrategy

Place = tuple[str, int, int]  # label, start, end

NAMES = [
    "Anna Smithson",
    "José Núñez",
    "Zoe\u0308 Mu\u0308ller",
    "李小龍",
    "Олег Петров",
    "محمد علي",
    "נועה כהן",
    "Robert O'Neil",
]
CITIES = ["London", "München", "東京都", "Springfield", "Αθήνα", "दिल्ली", "القاهرة", "תל אביב", "Sa\u0303o Paulo"]
NOISE = [
    "👩🏽‍🔬🎉 🇫🇷🇩🇪 ❤️",
    "从北京开出的火车早上七点出发，再也没有人看报纸了。",
    "東京からの電車は朝七時に出発し、もう誰も新聞を読みません。",
    "يغادر القطار من القاهرة في الساعة السابعة صباحا.",
    "\u202bאיפה התחנה הקרובה? קומה 3\u202c",
    "Cafe\u0301 re\u0301sume\u0301 Z\u0351\u0343a\u0309\u0315l\u0322g\u0353o\u0300 nai\u0308ve",
    "The meeting was moved to Thursday because nobody had read the agenda.",
    "Please find the report attached; the second table is the one that matters.",
]


def letter(draw: random.Random, lines: int) -> str:
    """Lines with something personal between lines without, all kinds of characters in between."""
    name, city = draw.choice(NAMES), draw.choice(CITIES)
    personal = [
        f"My name is {name} and I live in {city}.",
        f"{draw.choice('👍🏽🎂✨')} {name}, {draw.randint(1, 999)} Baker Street, {city} {draw.randint(10_000, 99_999)}",
        f"Write to {name.split()[0].lower()}{draw.randint(1, 99)}@example.org or call +49 {draw.randint(10**8, 10**9)}",
        f"{name}: passport {draw.randint(10**8, 10**9)}, account {draw.randint(10**9, 10**10)}",
    ]
    return "\n".join(draw.choice(personal if draw.random() < 0.5 else NOISE) for _ in range(lines))


def letters(rows: int, long_rows: int, tokenizer: Any) -> list[str]:
    """Short letters, and among them long ones of at least 3,000 tokens."""
    draw = random.Random(20)
    texts = [letter(draw, draw.randint(1, 4)) for _ in range(rows - long_rows)]
    for _ in range(long_rows):
        text = letter(draw, 100)
        while len(tokenizer(text, verbose=False)["input_ids"]) < 3_000:
            text += "\n" + letter(draw, 20)
        texts.insert(draw.randrange(len(texts)), text)
    return texts


def run(folder: Path, texts: list[str], **options: Any) -> str:
    """The texts through the public command; the parts that it wrote."""
    folder.mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "letters.parquet")
    annotation = {"name": "found", "task": "tag", "text": "text", **options}
    job = {"kind": "annotate", "corpus": {"path": "letters.parquet"}, "annotations": [annotation]}
    (folder / "tag.yaml").write_text(yaml.safe_dump({**job, "output": {"path": "out"}}))
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", "tag.yaml", "--json"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    summary = json.loads(done.stdout.splitlines()[-1])
    print({key: summary[key] for key in ("rows_in", "rows_out", "tokens", "seconds", "tokens_per_second")}, flush=True)
    return str(folder / "out/data/*.parquet")


def check_offsets(parts: str) -> dict[str, int]:
    """How many entities there are, and how many of them stand elsewhere than they say, by two readers."""
    entities = f"SELECT text, _row, unnest(found_entities) AS entity FROM '{parts}'"
    wrong = 'substring(text, entity.start + 1, entity."end" - entity.start) IS DISTINCT FROM entity.text'
    answer = duckdb.sql(f"SELECT count(*), count(*) FILTER (WHERE {wrong}) FROM ({entities})")
    assert answer is not None
    ((count, by_duckdb),) = answer.fetchall()
    by_python = overlapping = 0
    for text, found in pl.read_parquet(parts).select("text", "found_entities").iter_rows():
        by_python += sum(text[each["start"] : each["end"]] != each["text"] for each in found)
        overlapping += sum(right["start"] < left["end"] for left, right in pairwise(found))
    return {"entities": count, "wrong_by_duckdb": by_duckdb, "wrong_by_python": by_python, "overlapping": overlapping}


class Centred:
    """A model of bounded positions that reads each token of a long text near the middle of a window."""

    def __init__(self, model: str, aggregation: str) -> None:
        """Load the model in float32."""
        self._aggregation = AggregationStrategy(aggregation)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        module = transformers.AutoModelForTokenClassification.from_pretrained(model, dtype=torch.float32).eval()
        self._pipe = transformers.TokenClassificationPipeline(model=module, tokenizer=self.tokenizer)
        self._room = module.config.max_position_embeddings - self.tokenizer.num_special_tokens_to_add()

    def entities(self, text: str, step: int = 128, moved: int = 0) -> list[Place]:
        """Windows begin every `step` tokens, all but the first `moved` earlier than that."""
        asked = {"add_special_tokens": False, "return_offsets_mapping": True, "return_special_tokens_mask": True}
        outputs = {**self.tokenizer(text, return_tensors="pt", verbose=False, **asked), "sentence": text}
        ids_T = outputs["input_ids"][0]
        tokens, last = len(ids_T), max(0, len(ids_T) - self._room)
        starts = sorted({0, last, *(start - moved for start in range(step, last + moved, step))})
        logits_of_each = [self._logits(ids_T[start : start + self._room]) for start in starts]
        chosen = []
        for token in range(tokens):
            sides = [
                min(token - start if start else tokens, stop - 1 - token if stop < tokens else tokens)
                for start, stop in ((start, min(start + self._room, tokens)) for start in starts)
            ]
            window = sides.index(max(sides))
            chosen.append(logits_of_each[window][token - starts[window]])
        outputs["logits"] = torch.stack(chosen)[None]
        found = self._pipe.postprocess([outputs], aggregation_strategy=self._aggregation)
        return [(each.get("entity_group", each.get("entity")), each["start"], each["end"]) for each in found]

    def _logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        piece = torch.tensor([[self.tokenizer.cls_token_id, *ids_T.tolist(), self.tokenizer.sep_token_id]])
        with torch.inference_mode():
            logits_TL: torch.Tensor = self._pipe.model(input_ids=piece).logits[0, 1:-1]
        return logits_TL


def difference(found: list[Place], reference: list[Place]) -> dict[str, int]:
    """What became of the reference's entities, and what nobody asked for."""

    def over(one: Place, others: list[Place]) -> int:
        return sum(one[1] < other[2] and other[1] < one[2] for other in others)

    return {
        "reference": len(reference),
        "same": len(set(found) & set(reference)),
        "lost": sum(over(each, found) == 0 for each in reference),
        "divided": sum(over(each, found) > 1 for each in reference),
        "new": sum(over(each, reference) == 0 for each in found),
    }


def main() -> None:
    """Make, run, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--long", type=int, default=100, help="rows of at least 3,000 tokens")
    parser.add_argument("--compared", type=int, default=10, help="long rows that the references read too")
    parser.add_argument("--aggregation", default="simple")
    options = parser.parse_args()
    model = str(Path(options.model).resolve())
    centred = Centred(model, options.aggregation)
    texts = letters(options.rows, options.long, centred.tokenizer)
    asked = {"model": model, "aggregation": options.aggregation}
    with tempfile.TemporaryDirectory() as name:
        print("offsets", check_offsets(run(Path(name, "all"), texts, **asked)), flush=True)
        longest = sorted(texts, key=len)[-options.compared :]
        frame = pl.read_parquet(run(Path(name, "long"), longest, **asked, dtype="float32"))
    sums: dict[str, Counter[str]] = {"windows": Counter(), "reference, moved": Counter()}
    for text, entities in frame.select("text", "found_entities").iter_rows():
        reference = centred.entities(text)
        found = [(each["label"], each["start"], each["end"]) for each in entities]
        sums["windows"].update(difference(found, reference))
        sums["reference, moved"].update(difference(centred.entities(text, moved=64), reference))
    for other, counts in sums.items():
        print(f"{len(frame)} long texts, {other} against the reference: {dict(counts)}")


if __name__ == "__main__":
    main()
