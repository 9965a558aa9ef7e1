"""Keeps the exporter's log lines and warnings off the user's terminal: a library is silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_CHATTY: Final = ("torch", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Python warnings and the named libraries' loggers below errors, and puts everything back."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] in _CHATTY]
    loggers += [logging.getLogger(name) for name in _CHATTY]
    levels = [(logger, logger.level) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in levels:
                logger.setLevel(level)
