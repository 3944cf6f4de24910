"""What a cache knows of a unit's texts is not computed again; what is computed is kept in it.

annotation, computed = annotate_with(cache, salt(…), task, rendered, unit)     # computed: how many texts were new
"""

from itertools import pairwise
from random import Random

import numpy as np
import pyarrow as pa

from pipeline.repeats import Cache, distinct, key, of_bytes, to_bytes
from pipeline.survive import annotate_surviving
from pipeline.tasks.base import Annotation, Task
from pipeline.unit_texts import Rendered, UnitTexts, of_all

_CHUNKS = 6
_SMALLEST_CHUNK = 128


def annotate_with(
    cache: Cache, salted: bytes, task: Task, rendered: Rendered, unit: UnitTexts
) -> tuple[Annotation, int]:
    """What is said of the distinct texts, and how many of them were computed; what is new is kept."""
    # Texts that are no keys of a dictionary may be alike still.
    first, which_U = distinct([key(salted, rendered.of(row)) for row in rendered.firsts_U])
    keys = [key(salted, rendered.of(rendered.firsts_U[each])) for each in first]
    schema = pa.schema([*task.fields(), pa.field("tokens", pa.int32()), pa.field("truncated", pa.bool_())])
    known = of_bytes(cache.find(keys), schema)
    said, places = [], []  # tables of rows, and the text of each row
    computed: list[tuple[Annotation, list[int]]] = []
    unknown = [each for each, text in enumerate(keys) if text not in known]
    lengths = [len(str(rendered.of(rendered.firsts_U[each])[0])) for each in first]
    for chunk in _chunks(unknown, lengths, Random(b"".join(keys[:1]))):
        if computed:  # meanwhile others may have said it
            known |= of_bytes(cache.find([keys[each] for each in chunk]), schema)
        new = [each for each in chunk if keys[each] not in known]
        annotation = annotate_surviving(task, unit.texts(task, rendered, [first[each] for each in new]))
        computed.append((annotation, new))
        columns = [annotation.columns[each.name].cast(each.type) for each in task.fields()]
        columns += [pa.array(annotation.tokens_R, pa.int32()), pa.array(annotation.truncated_R, pa.bool_())]
        batch = pa.record_batch(columns, schema=schema)
        cache.keep({keys[each]: to_bytes(batch, at) for at, each in enumerate(new) if at not in annotation.failures})
        said.append(batch)
        places += new
    old = [each for each, text in enumerate(keys) if text in known]
    assert len(places) + len(old) == len(keys), "each text was computed or known"
    said += [known[keys[each]] for each in old]
    table = pa.Table.from_batches(said, schema).take(pa.array(np.argsort(np.array(places + old, np.int64))))
    found = {name: table[name].combine_chunks() for name in table.column_names}
    annotation = Annotation(
        tokens_R=found.pop("tokens").to_numpy(),
        truncated_R=found.pop("truncated").to_numpy(zero_copy_only=False),
        columns=found,
        failures={new[at]: failure for each, new in computed for at, failure in each.failures.items()},
        forward_tokens=sum(each.forward_tokens for each, _ in computed),
        padding_tokens=sum(each.padding_tokens for each, _ in computed),
        model_seconds=sum(each.model_seconds for each, _ in computed),
    )
    return of_all(annotation, which_U), len(places)


def _chunks(texts: list[int], lengths: list[int], random: Random) -> list[list[int]]:
    """The texts in a few parts, each of like lengths, so that no more is padded than of all at once.

    After each part the others can find what was said. Actors that have the same text at the same time begin at
    different lengths, or they would come to it together.
    """
    by_length = sorted(texts, key=lengths.__getitem__)
    count = min(_CHUNKS, max(1, len(texts) // _SMALLEST_CHUNK))
    cuts = [len(texts) * part // count for part in range(count + 1)]
    chunks = [by_length[start:stop] for start, stop in pairwise(cuts)]
    random.shuffle(chunks)
    return chunks
