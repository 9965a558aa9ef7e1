"""The command line. Each verb is one file; what it needs is imported when it runs, so that `--help` answers at once.

Exit codes: 0 fine; 1 the user's input or model is at fault (one coded error on stderr, no traceback); 2 the command
line was not understood; 3 Tilewright itself is at fault (a traceback, to be reported).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from tilewright.errors import MissingDependencyError, PassError, TilewrightError

USER_ERROR, USAGE, FAULT = 1, 2, 3


def main() -> None:
    """The console script `tilewright`."""
    sys.exit(command_line(sys.argv[1:]))


def command_line(arguments: Sequence[str]) -> int:
    """Runs one command line and gives its exit code; results go to stdout, everything else to stderr."""
    try:
        _dispatch(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except PassError as error:
        if error.ours:
            return _fault()
        print(error, file=sys.stderr)
        return USER_ERROR
    except TilewrightError as error:
        from tilewright.cli.flags import for_command_line

        print(for_command_line(str(error)), file=sys.stderr)
        return USER_ERROR
    except Exception:  # noqa: BLE001  (the last line of defence: whatever got here is our fault, and is shown whole)
        return _fault()
    return 0


def _fault() -> int:
    """Says the exception being handled, whole."""
    traceback.print_exc()
    print(
        "This is a fault of Tilewright. Please report it with the lines above and the output of `tilewright env`.",
        file=sys.stderr,
    )
    return FAULT


def _dispatch(arguments: Sequence[str]) -> None:
    try:
        import typer
    except ImportError as fault:
        raise MissingDependencyError(
            f"the command line needs {fault.name}, which is not installed", step="pip install typer rich"
        ) from fault
    from tilewright.cli.app import app

    typer.main.get_command(app).main(args=list(arguments), prog_name="tilewright")
