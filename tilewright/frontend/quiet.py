"""Keeps the exporter's log lines and warnings off the user's terminal: a library is silent."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Final

_CHATTY: Final = ("torch", "transformers")
# torch asks this one for its handlers and not for its level, and takes a stack for every tensor where it has any
_TRACES: Final = "torch.__trace"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Python warnings, the named libraries' loggers and what the exporter prints, and puts all back."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    # a logger without a level of its own has its parent's; each change of a level makes every logger of the process
    # work out its own again, and these libraries have hundreds
    loggers += [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level and name.partition(".")[0] in _CHATTY
    ]
    levels = [(logger, logger.level) for logger in loggers]
    traces = logging.getLogger(_TRACES)
    handlers = traces.handlers
    # a failed export prints the half of the graph that it has
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            traces.handlers = []
            yield
        finally:
            traces.handlers = handlers
            for logger, level in levels:
                logger.setLevel(level)
