"""Files become fragments: their footers, and why some have none. Only here and in the reader is a corpus file opened.

a.parquet  ->  Fragment("a.parquet", …, row_groups=(RowGroup(rows=4096, bytes=1_532_112),)) and its Arrow schema
b.parquet  ->  Fragment("b.parquet", …, row_groups=(), problem=(Reason.TRUNCATED_FILE, "…"))
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from pipeline.corpus.hive import partition_of
from pipeline.corpus.listing import ListedFile, first_line
from pipeline.corpus.plan import Fragment, RowGroup
from pipeline.errors import CorpusError
from pipeline.quarantine import Reason

THREADS = 16
"""Footers read at once: it waits for disks and networks."""

DECODE_ERRORS = (OSError, pa.ArrowException, ValueError, RuntimeError, OverflowError, MemoryError)
"""What pyarrow raises over damaged bytes: it depends on where the damage is."""

_MAGIC = b"PAR1"
_SMALLEST = 12  # magic, length of the footer, magic


class UnreadableFileError(Exception):
    """A file that gives no rows, with the reason that its quarantine entry will have."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keep both."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Footers:
    """All fragments in the order of their files, and the schema of each readable one; equal schemas are one object."""

    fragments: tuple[Fragment, ...]
    schemas: tuple[tuple[str, pa.Schema], ...]


def read_footers(filesystem: fs.FileSystem, root: str, files: Sequence[ListedFile]) -> Footers:
    """Read the footers of files whose paths are relative to `root`.

    A file that cannot be read becomes a fragment with a problem. Raises CorpusError for a file with a doubled column.
    """
    distinct: dict[bytes, pa.Schema] = {}
    fragments, schemas = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for fragment, schema in pool.map(lambda file: _read(filesystem, root, file), files):
            fragments.append(fragment)
            if schema is not None:
                # Ten thousand files have few schemas: keep one of each. pandas tells the number of rows in the schema's
                # metadata, which would make every schema another; the first file's is kept.
                key = schema.remove_metadata().serialize().to_pybytes()
                schemas.append((fragment.path, distinct.setdefault(key, schema)))
    return Footers(tuple(fragments), tuple(schemas))


def open_parquet(
    filesystem: fs.FileSystem, path: str, metadata: pq.FileMetaData | None = None, checked: bool = False
) -> pq.ParquetFile:
    """Open one file; with `metadata` its footer is not parsed again, `checked` verifies pages that carry a checksum.

    Raises UnreadableFileError.
    """
    try:
        parquet = pq.ParquetFile(
            path,
            filesystem=filesystem,
            metadata=metadata,
            page_checksum_verification=checked,
            pre_buffer=False,
            buffer_size=2**20,
        )
        if metadata is None:
            _check_footer(parquet)
    except DECODE_ERRORS as error:
        reason, detail = _diagnosis(filesystem, path, error)
        raise UnreadableFileError(reason, detail) from error
    return parquet


def row_groups_of(metadata: pq.FileMetaData) -> tuple[RowGroup, ...]:
    """The row groups of a footer."""
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    return tuple(RowGroup(group.num_rows, group.total_byte_size) for group in groups)


def check_names(schema: pa.Schema, path: str) -> None:
    """CorpusError where two columns of a file have one name: none of them could be asked for."""
    name, count = next(iter(Counter(schema.names).most_common(1)), ("", 0))
    if count > 1:
        raise CorpusError(
            f"{path} has {count} columns named '{name}'; rename them, or name the other files in corpus.path"
        )


def _read(filesystem: fs.FileSystem, root: str, file: ListedFile) -> tuple[Fragment, pa.Schema | None]:
    if file.problem is not None:
        return _fragment(file, (), file.problem), None
    try:
        with open_parquet(filesystem, posixpath.join(root, file.path)) as parquet:
            schema = parquet.schema_arrow
            check_names(schema, file.path)
            return _fragment(file, row_groups_of(parquet.metadata), None), schema
    except UnreadableFileError as error:
        return _fragment(file, (), (error.reason, error.detail)), None


def _check_footer(parquet: pq.ParquetFile) -> None:
    """Ask for what is decoded late, so that damage shows here."""
    assert parquet.schema_arrow is not None
    rows = [group.rows for group in row_groups_of(parquet.metadata)]
    if any(count < 0 for count in rows) or sum(rows) != parquet.metadata.num_rows:
        raise ValueError(f"the row groups have {sum(rows)} rows together, the file says {parquet.metadata.num_rows}")


def _fragment(file: ListedFile, row_groups: tuple[RowGroup, ...], problem: tuple[Reason, str] | None) -> Fragment:
    return Fragment(file.path, file.size, file.fingerprint, partition_of(file.path), row_groups, problem)


def _diagnosis(filesystem: fs.FileSystem, path: str, error: BaseException) -> tuple[Reason, str]:
    """What is wrong with a file that could not be opened as Parquet."""
    try:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            head, tail = file.read_at(4, 0), file.read_at(min(4, size), max(size - 4, 0))
    except PermissionError:
        return Reason.PERMISSION_DENIED, "the user who runs this may not read it"
    except FileNotFoundError:
        return Reason.FILE_MISSING, "it went while the corpus was read"
    except OSError as other:
        return Reason.DAMAGED_FOOTER, first_line(other)
    if size == 0:
        return Reason.EMPTY_FILE, "it has 0 bytes"
    if head == b"PARE":
        return Reason.NOT_PARQUET, "it is an encrypted Parquet file"
    if head != _MAGIC:
        return Reason.NOT_PARQUET, f"it begins with {head!r} instead of {_MAGIC!r}"
    if tail != _MAGIC or size < _SMALLEST:
        return Reason.TRUNCATED_FILE, f"it begins as a Parquet file, but its {size} bytes do not end as one"
    return Reason.DAMAGED_FOOTER, first_line(error)
