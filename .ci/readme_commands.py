"""Prints the commands of a Markdown page as one shell script: its `sh` blocks as they are, its `python` blocks as here-documents."""

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of the page in order: (language, text)."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page)]


def script(page: str) -> str:
    """One shell script that runs every `sh` and `python` block; the other languages are for reading."""
    parts = []
    for language, text in blocks(page):
        if language == "sh":
            parts.append(text)
        elif language == "python":
            parts.append(f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(script(Path(sys.argv[1]).read_text(encoding="utf-8")))
