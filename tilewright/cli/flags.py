"""Messages speak of the API's arguments; here, and nowhere else, they are written as the command line's options."""

from __future__ import annotations

import ast
import re
from typing import Final

from tilewright.cli.dims_text import written_as_options

# Arguments that verbs have options for.
_FLAGS: Final = {
    "target": "--target", "precision": "--precision", "determinism": "--determinism", "passes": "--passes",
    "threads": "--threads", "memory_limit": "--memory-limit", "cache": "--cache",
    "temperature": "--temperature", "top_p": "--top-p", "top_k": "--top-k", "min_p": "--min-p", "seed": "--seed",
    "stride": "--stride", "max_new_tokens": "--tokens",
}  # fmt: skip
_EXPECT: Final = re.compile(r"expect=(\{[^{}]*\})")
_SAMPLER: Final = re.compile(r"tw\.Sampler\(([^()]*)\)")
_SIZES: Final = re.compile(r"report\.at\(([^()]*)\)")
_ARGUMENT: Final = re.compile(rf"(?<![\w.-])({'|'.join(_FLAGS)})=(None|'[^']*'|\"[^\"]*\"|-?\d[\w.]*(?!\*))")


def for_command_line(text: str) -> str:
    """A message with dims, `expect` and keyword arguments as options to type; what the line cannot say stays."""
    said = _SAMPLER.sub(lambda found: found[1].replace(", ", " "), written_as_options(text))
    said = _SIZES.sub(lambda found: f"--at {found[1].replace(', ', ',')}", said)
    said = _ARGUMENT.sub(_as_flag, _EXPECT.sub(_as_counts, said))
    # no option is written as None
    return said.replace("write leaving out", "leave out").replace(" is not one of None, ", " is not one of ")


def _as_flag(found: re.Match[str]) -> str:
    """`threads=1` as `--threads 1`; None is what an option stands for that is not written."""
    flag, value = _FLAGS[found[1]], found[2]
    if flag == "--memory-limit" and value.isdigit():
        return f"{flag} {value}B"  # a text has a unit
    return f"leaving out {flag}" if value == "None" else f"{flag} {value.strip(chr(39) + chr(34))}"


def _as_counts(found: re.Match[str]) -> str:
    """`expect={"attention": 0}` as `--expect attention=0`, an option a pattern."""
    try:
        counts = ast.literal_eval(found[1])
    except (SyntaxError, ValueError):
        return found[0]
    return " ".join(f"--expect {name}={count}" for name, count in counts.items())
