"""The model card of a promoted model: what a person who finds the folder has to know, as Markdown. Pure.

card(facts)  ->  --- library_name: transformers … ---  # sections  Fine-tuned by corpusmill for `classify` from …
"""

import json
from collections.abc import Mapping
from typing import Any

_PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModel": "sentence-similarity",
}
"""transformers' class of a model -> what the hub calls its use."""


def card(facts: Mapping[str, Any]) -> str:
    """The card, from what corpusmill.json holds."""
    parts = [
        _header(facts),
        f"# {facts['name']}",
        _told(facts),
        _figures(facts),
        _data(facts),
        _settings(facts),
        _versions(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(facts: Mapping[str, Any]) -> str:
    """What the hub reads: JSON is YAML too, so no value can break it."""
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["corpusmill", facts["objective"]]}
    if facts["needs"] in _PIPELINES:
        head["pipeline_tag"] = _PIPELINES[facts["needs"]]
    if facts["base"]["ref"].startswith("hub:"):
        head["base_model"] = facts["base"]["ref"].removeprefix("hub:").partition("@")[0]
    if facts["synthetic"] is not None:
        head["tags"].append("synthetic")
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---"])


def _told(facts: Mapping[str, Any]) -> str:
    base = facts["base"]
    revision = f", revision `{base['revision']}`" if base["revision"] else ""
    lines = [
        f"Fine-tuned by corpusmill for `{facts['objective']}` from {_code(base['ref'])}{revision} "
        f"(digest `{base['digest']}`). This folder's digest is `{facts['model']['digest']}`.",
    ]
    if facts["synthetic"] is not None:
        lines.append(f"**The data is synthetic**, as it declares itself: {facts['synthetic']}")
    return "\n\n".join(lines)


def _figures(facts: Mapping[str, Any]) -> str:
    if not facts["figures"]:
        return "## Figures\n\nNo row was kept to judge it by."
    beside = facts["baselines"]
    heads = ["figure", "value", "95% interval", *(f"{name.replace('_', ' ')}" for name in beside)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, each in facts["figures"].items():
        between = "" if each["low"] is None else f"{_number(each['low'])} to {_number(each['high'])}"
        others = [_number(figures[name]["value"]) if name in figures else "" for figures in beside.values()]
        lines.append(_line([name, _number(each["value"]), between, *others]))
    rows = facts["figures"][facts["main"]]["rows"] if facts["main"] in facts["figures"] else facts["rows"]["test"]
    return "\n".join([f"## Figures\n\nOn {rows:,} test rows that it never saw; baselines beside them.\n", *lines])


def _data(facts: Mapping[str, Any]) -> str:
    rows, data = facts["rows"], facts["job"]["data"]
    told = [f"{rows[subset]:,} {subset}" for subset in ("train", "validation", "test")]
    why = ", ".join(f"{count:,} {reason}" for reason, count in rows["reasons"].items())
    left = f"; {rows['left_out']:,} left out ({why})" if rows["left_out"] else ""
    return (
        f"## Data\n\nRows: {', '.join(told)}{left}. Fingerprint of what was read: `{facts['data']['fingerprint']}`.\n\n"
        + _block(data)
    )


def _settings(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    best = (
        ""
        if training["best_step"] == training["steps"]
        else f"; the weights are those of step {training['best_step']:,}"
    )
    told = (
        f"{training['steps']:,} steps{best}; {training['tokens']:,} tokens in {training['seconds']:,.0f} s on "
        f"{training['device']} in {training['dtype']}, at most {training['max_tokens']:,} tokens a text."
    )
    settings = {
        "objective": facts["job"]["objective"],
        "training": facts["job"]["training"],
        "gate": facts["gate"]["asked"],
    }
    return f"## Training\n\n{told}\n\n" + _block(settings)


def _versions(facts: Mapping[str, Any]) -> str:
    return "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())


def _block(value: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
