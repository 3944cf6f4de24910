"""What is measured, by name: one file here holds one kind.

find("labels")   the class Labels of pipeline/metrics/labels.py
known()          ["labels", "multilabels", "numbers", "perplexity", "retrieval", "spans", "texts"]
"""

from difflib import get_close_matches

from pipeline.errors import JobError
from pipeline.metrics.base import Kind
from pipeline.metrics.labels import Labels
from pipeline.metrics.multilabels import Multilabels
from pipeline.metrics.numbers import Numbers
from pipeline.metrics.perplexity import Perplexity
from pipeline.metrics.retrieval import Retrieval
from pipeline.metrics.spans import Spans
from pipeline.metrics.texts import Texts

_KINDS: dict[str, type[Kind]] = {
    kind.__name__.lower(): kind for kind in (Labels, Multilabels, Numbers, Perplexity, Retrieval, Spans, Texts)
}


def find(name: str) -> type[Kind]:
    """The kind of that name.

    Raises JobError: no such kind (nearest match and all known told).
    """
    if name in _KINDS:
        return _KINDS[name]
    match = get_close_matches(name, _KINDS, n=1)
    hint = f" did you mean {match[0]!r}?" if match else ""
    raise JobError(f"nothing is measured by the name {name!r};{hint} known: {', '.join(known())}")


def known() -> list[str]:
    """Names of all kinds, sorted."""
    return sorted(_KINDS)
