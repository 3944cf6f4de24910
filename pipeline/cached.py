"""What a cache knows of a unit's texts is not computed again; what is computed is kept in it.

annotation, computed = annotate_with(cache, salt(…), task, rendered, unit)     # computed: how many texts were new
"""

from collections.abc import Mapping
from itertools import pairwise
from random import Random

import numpy as np
import pyarrow as pa

from pipeline.repeats import Cache, distinct, key, of_bytes, to_bytes
from pipeline.survive import annotate_surviving
from pipeline.tasks.base import Annotation, Task
from pipeline.unit_texts import Rendered, UnitTexts, of_all

_CHUNKS = 4
"""More of them have more micro-batches, each of which costs tokens besides its own; with fewer, more texts are another
actor's just when they are due. Simulated with 2 and 4 actors, 4,096 and 12,288 rows and 30% of them repeated: 3 to 8
are within a percent of each other."""
_SMALLEST_CHUNK = 64


def annotate_with(
    cache: Cache, salted: bytes, task: Task, rendered: Rendered, unit: UnitTexts
) -> tuple[Annotation, int]:
    """What is said of the distinct texts, and how many of them were computed; what is new is kept."""
    # Texts that are no keys of a dictionary may be alike still.
    keys_U = [key(salted, rendered.of(row)) for row in rendered.firsts_U]
    first, which_U = distinct(keys_U)
    keys = [keys_U[each] for each in first]
    schema = pa.schema([*task.fields(), pa.field("tokens", pa.int32()), pa.field("truncated", pa.bool_())])
    known = of_bytes(cache.find(keys), schema)
    said, places = [], []  # tables of rows, and the text of each row
    computed: list[tuple[Annotation, list[int]]] = []
    unknown = [each for each, text in enumerate(keys) if text not in known]
    lengths = dict(zip(unknown, unit.lengths(task, rendered, [first[each] for each in unknown]), strict=True))
    theirs: list[int] = []  # what other actors were computing when it was due: by the end they have said most of it
    for chunk in (*_chunks(unknown, lengths, Random(b"".join(keys[:1]))), theirs):
        with cache.claimed([keys[each] for each in chunk]) as claimed:
            known |= of_bytes(cache.find([keys[each] for each in chunk]), schema)  # meanwhile somebody may have said it
            new = [each for each in chunk if keys[each] not in known]
            if chunk is not theirs:
                theirs += [each for each in new if keys[each] in claimed]
                new = [each for each in new if keys[each] not in claimed]
            if not new:
                continue
            annotation = annotate_surviving(task, unit.texts(task, rendered, [first[each] for each in new]))
            computed.append((annotation, new))
            batch = _rows(annotation, schema)
            kept = [at for at in range(len(new)) if at not in annotation.failures]
            cache.keep({keys[new[at]]: to_bytes(batch, at) for at in kept})
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


def _rows(annotation: Annotation, schema: pa.Schema) -> pa.RecordBatch:
    """What is said of each text as a row: the task's columns, tokens, truncated."""
    told = [pa.array(annotation.tokens_R), pa.array(annotation.truncated_R)]
    columns = [annotation.columns[name] for name in schema.names[:-2]] + told
    return pa.record_batch(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _chunks(texts: list[int], lengths: Mapping[int, int], random: Random) -> list[list[int]]:
    """The texts in a few parts, each of like lengths, so that no more is padded than of all at once.

    After each part the others can find what was said, and leave out what others have said meanwhile. Actors that have
    the same text at the same time begin at different lengths, or they would come to it together.
    """
    by_length = sorted(texts, key=lengths.__getitem__)
    count = min(_CHUNKS, max(1, len(texts) // _SMALLEST_CHUNK))
    cuts = [len(texts) * part // count for part in range(count + 1)]
    chunks = [by_length[start:stop] for start, stop in pairwise(cuts)]
    random.shuffle(chunks)
    return chunks
