"""Writes the commands of a Markdown page as shell scripts that stop at their first failure: one for each road.

    python3 .ci/readme_commands.py README.md FOLDER      # FOLDER/1.sh, FOLDER/2.sh …

A road begins at a block that makes a virtual environment: all after it, up to the next, is done in that one. A line of
an `sh` block is one command (a backslash at its end goes on); a `python` block runs as one program; blocks in other
languages are for reading.

    ```sh
    corpusmill verify out/quickstart    ->    corpusmill verify out/quickstart || exit
    ```
"""

import re
import shlex
import sys
from pathlib import Path

BEGINS_ROAD = "python3 -m venv "
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of the page, in order: (language, text)."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page)]


def commands(block: str) -> list[str]:
    """The commands of one `sh` block, continued lines joined, comments left out."""
    lines = block.replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def roads(page: str) -> list[str]:
    """A script for each road, in the order of the page; what comes before the first venv belongs to the first."""
    divided: list[list[tuple[str, str]]] = [[]]
    for language, text in blocks(page):
        begins = language == "sh" and text.startswith(BEGINS_ROAD)
        if begins and any(known == "sh" for known, _ in divided[-1]):
            divided.append([])
        divided[-1].append((language, text))
    return [script(each) for each in divided]


def script(of: list[tuple[str, str]]) -> str:
    """One shell script out of `sh` and `python` blocks; it tells the time and each command before it runs.

    `|| exit` because `set -e` overlooks a failure on the left of `&&`.
    """
    parts = []
    for language, text in of:
        if language == "sh":
            parts += [_told(command) for command in commands(text)]
        elif language == "python":
            parts.append(f"python - <<'END_OF_BLOCK' || exit\n{text}END_OF_BLOCK\n")
    return "".join(parts)


def _told(command: str) -> str:
    return f'echo "[$SECONDS s]" {shlex.quote(f"$ {command}")} >&2\n{command} || exit\n'


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    for number, each in enumerate(roads(Path(sys.argv[1]).read_text(encoding="utf-8")), start=1):
        (folder / f"{number}.sh").write_text(each, encoding="utf-8")
