"""The corpus and the output stay apart: neither may lie in the other, or an output would be read as a corpus.

    check_apart(CorpusSettings(path="corpus/**/*.parquet"), "/srv/corpus/out")
    -> OutputError: output.path /srv/corpus/out lies where corpus.path 'corpus/**/*.parquet' looks for files; …

Only a corpus on this machine can hold an output, whose folder need not be there yet.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow.fs as fs

from pipeline.corpus.listing import file_system, has_wildcard, hidden, matching_pattern, split_glob
from pipeline.corpus.source import CorpusSettings
from pipeline.errors import OutputError


def check_apart(corpus: CorpusSettings, output: str) -> None:
    """Refuse an output folder that is, holds or lies in anything that the corpus's paths mean.

    Raises OutputError, and CorpusError for a path that no file system answers.
    """
    folder = Path(output).resolve()
    for path in [corpus.path] if isinstance(corpus.path, str) else corpus.path:
        filesystem, full = file_system(path)
        if not isinstance(filesystem, fs.LocalFileSystem):
            continue
        if has_wildcard(full) and not os.path.lexists(full):
            _check_glob(folder, path, full)
        else:
            _check_place(folder, Path(full).resolve())


def _check_place(output: Path, corpus: Path) -> None:
    """`corpus` is a file or a folder. The `data` of another output is a corpus like any other."""
    if output == corpus:
        raise OutputError(f"output.path {output} is the corpus itself; name a folder outside it")
    if corpus in output.parents:
        raise OutputError(f"output.path {output} lies inside the corpus {corpus}; name a folder outside it")
    if output in corpus.parents:
        raise OutputError(f"the corpus {corpus} lies inside output.path {output}; name a folder elsewhere")


def _check_glob(output: Path, path: str, full: str) -> None:
    """A glob may look into the folder that it begins at, so the output's folders are held against it."""
    beginning, pattern = split_glob(full)
    root = Path(beginning).resolve()
    if output == root or output in root.parents:
        raise OutputError(f"the corpus '{path}' lies inside output.path {output}; name a folder elsewhere")
    if root not in output.parents:
        return
    inside = output.relative_to(root).parts
    if not hidden("/".join(inside)) and _reaches(pattern.split("/"), (*inside, "data")):
        raise OutputError(
            f"output.path {output} lies where corpus.path '{path}' looks for files; name one that it does not match"
        )


def _reaches(pattern: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether a glob can match one of these folders, or anything in the last: a folder that matches is read whole."""
    if not pattern or not folders:
        return True
    if pattern[0] == "**":
        return _reaches(pattern[1:], folders) or _reaches(pattern, folders[1:])
    return matching_pattern(pattern[0]).fullmatch(folders[0]) is not None and _reaches(pattern[1:], folders[1:])
