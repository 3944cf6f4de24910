"""Prints the commands of a Markdown page as one shell script that stops at the first failure.

A line of an `sh` block is one command (a backslash at its end goes on); a `python` block runs as one program; blocks in
other languages are for reading.

    ```sh
    corpusmill verify out/quickstart    ->    corpusmill verify out/quickstart || exit
    ```
"""

import re
import shlex
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of the page, in order: (language, text)."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page)]


def commands(block: str) -> list[str]:
    """The commands of one `sh` block, continued lines joined, comments left out."""
    lines = block.replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def script(page: str) -> str:
    """One shell script out of every `sh` and `python` block; it tells the time and each command before it runs.

    `|| exit` because `set -e` overlooks a failure on the left of `&&`.
    """
    parts = []
    for language, text in blocks(page):
        if language == "sh":
            parts += [_told(command) for command in commands(text)]
        elif language == "python":
            parts.append(f"python - <<'END_OF_BLOCK' || exit\n{text}END_OF_BLOCK\n")
    return "".join(parts)


def _told(command: str) -> str:
    return f'echo "[$SECONDS s]" {shlex.quote(f"$ {command}")} >&2\n{command} || exit\n'


if __name__ == "__main__":
    sys.stdout.write(script(Path(sys.argv[1]).read_text(encoding="utf-8")))
