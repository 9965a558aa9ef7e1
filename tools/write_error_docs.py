"""Writes docs/errors.md from the error classes' docstrings and the examples of `tilewright explain`.

    python tools/write_error_docs.py

A test fails where the file is not what this gives.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from tilewright.cli.error_examples import EXAMPLES, SETUP
from tilewright.errors import TilewrightError, all_errors

TARGET = Path(__file__).resolve().parent.parent / "docs" / "errors.md"

HEAD = f"""# Errors

<!-- Written by tools/write_error_docs.py from tilewright/errors.py: change it there. -->

Every failure that Tilewright raises on purpose is a subclass of `tw.TilewrightError` with a stable code. Its text names
the thing, the numbers, the user's line where one is known, and one next step to paste. All problems of one kind come in
one error. `tilewright explain CODE` prints the section below; on the command line, the text goes to stderr and the exit
code is 1.

The examples start from these lines, and the tests run them:

```python
{SETUP}
```
"""


def text() -> str:
    """The whole page."""
    rows = [f"| [{code}](#{code.lower()}) | `{cls.__name__}` | {cls.title} |" for code, cls in all_errors().items()]
    table = "\n".join(["| code | class | title |", "|---|---|---|", *rows])
    return f"{HEAD}\n{table}\n\n" + "\n".join(_section(code, cls) for code, cls in all_errors().items())


def _section(code: str, cls: type[TilewrightError]) -> str:
    example = EXAMPLES[code]
    language = "python" if example.runs else "text"
    return f"""## {code}

**{cls.__name__}: {cls.title}.** {" ".join(inspect.cleandoc(cls.__doc__ or "").split())}

Raises it:

```{language}
{example.bad.strip()}
```

Does not:

```{language}
{example.fixed.strip()}
```
"""


def main() -> None:
    """Writes the page."""
    TARGET.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
