"""`tilewright cache ls | stats | why | verify | clear`: what was compiled before, and why again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.errors import OptionError

if TYPE_CHECKING:
    from tilewright.runtime.cache import Cache, Item

cache = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Looks into what was compiled before, and why not. --cache DIR comes after the verb: cache ls --cache DIR.",
)
Folder = Annotated[
    str | None, typer.Option("--cache", metavar="DIR", help="The cache's folder.", show_default="the user's")
]
Key = Annotated[
    str, typer.Argument(metavar="KEY", help="An entry's key, or its first digits: see `cache ls`.", show_default=False)
]


def _open(folder: str | None) -> Cache:
    """A cache to look into. CacheError where its folder cannot be listed; OptionError where a folder that was named on
    the line is not there or holds something else: the user's own is an empty cache until something was compiled.
    """
    from tilewright.runtime.cache import Cache

    found = Cache(folder)
    found.require_readable()
    if folder is not None and not found.is_laid_out():
        what = "holds no cache" if found.root.is_dir() else "is not there"
        raise OptionError(
            f"--cache {folder}: the folder {what}", step="give a cache's folder; without --cache it is the user's"
        )
    return found


@cache.command("ls")
def ls(folder: Folder = None) -> None:
    """Lists the entries, last used first."""
    from tilewright.cli.tables import show
    from tilewright.runtime.memory import shown

    found = _open(folder)
    rows = [
        (i.key[:12], i.kind, shown(i.bytes), _ago(i), i.note.rpartition(".")[2], _what(i.factors))
        for i in found.entries()
    ]
    show(("key", "kind", "size", "used", "model", "what"), rows, numbers=(2,))


@cache.command("stats")
def stats(folder: Folder = None) -> None:
    """Prints where the cache is, and what it holds by kind."""
    from tilewright.cli.tables import show
    from tilewright.runtime.memory import shown

    found = _open(folder).stats()
    print(f"{found['root']}: {found['entries']} entries, {shown(found['bytes'])} of at most {shown(found['limit'])}")
    show(
        ("kind", "entries", "size"),
        [(k, v["entries"], shown(v["bytes"])) for k, v in found["kinds"].items()],
        numbers=(1, 2),
    )


@cache.command("why")
def why(key: Key, folder: Folder = None) -> None:
    """Explains an entry: the factors of its key, and how the nearest other entry differs from it."""
    from tilewright.runtime.cache_miss import nearest

    entries = _open(folder).entries()
    item = _find(entries, key)
    print(f"{item.kind} {item.key}, used {_ago(item)}")
    print(json.dumps(item.factors, indent=2, sort_keys=True))
    others = [(o.key, o.used, o.factors) for o in entries if o.kind == item.kind and o.key != item.key]
    miss = nearest(item.factors, others)
    if miss.key is None:
        print(f"It is the only {item.kind} entry.")
        return
    print(f"It was built anew because the nearest {item.kind} ({miss.key[:12]}) differs in:")
    for difference in miss.differences:
        print(f"  {difference}")


@cache.command("verify")
def verify(folder: Folder = None) -> None:
    """Hashes every file of every entry, and removes the entries that are damaged."""
    found = _open(folder)
    count = len(found.entries())
    damaged = found.verify()
    for key, faults in damaged.items():
        print(f"removed {key}: {'; '.join(faults)}")
    print(f"{count} entries, {len(damaged)} damaged")


@cache.command("clear")
def clear(folder: Folder = None) -> None:
    """Removes every entry that no process uses."""
    removed, kept = _open(folder).clear()
    print(f"removed {removed} entries" + (f", kept {kept} that are in use" if kept else ""))


def _find(entries: list[Item], key: str) -> Item:
    matching = [item for item in entries if item.key.startswith(key)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = ", ".join(item.key[: len(key) + 6] for item in matching[:8])
        raise OptionError(
            f"{len(matching)} entries have keys that start with {key!r}", step=f"give more digits: {listed}"
        )
    raise OptionError(f"no entry's key starts with {key!r}", step="tilewright cache ls lists them")


def _ago(item: Item) -> str:
    seconds = max(0.0, time.time() - item.used)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def _what(factors: Any) -> str:
    """The factors that people know an entry by."""
    if not isinstance(factors, dict):
        return ""
    machine = factors.get("machine")
    target = factors.get("target") or (
        f"{factors.get('backend')}:{machine.get('name')}" if isinstance(machine, dict) else ""
    )
    dims = "; ".join(f"{d[0]}: {d[1]}..{'' if d[2] is None else d[2]}" for d in factors.get("dims", []))
    return ", ".join(filter(None, (str(target), dims)))
