"""A model's own chat template, rendered where it can do nothing else.

Templates come with models, from strangers. They run in jinja2's immutable sandbox: no attribute that begins with an
underscore, no file, no include, no object but the messages, and nothing that changes them. Values they build are
bounded in size, and so are the template and what it renders. How long it takes is bounded by its loops alone, each of
which has at most jinja2's 100,000 rounds.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from tilewright.errors import MissingDependencyError, TextError

MOST_TEMPLATE = 256 * 1024
MOST_TEXT = 4 * 1024 * 1024
_PADS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"})

Message = Mapping[str, Any]


def render(template: str, messages: Sequence[Message], **variables: Any) -> str:
    """The prompt text of a conversation. messages: [{"role": ..., "content": ...}, ...].

    variables: what else templates ask for, such as bos_token, add_generation_prompt, tools. Raises TextError for what
    is no list of messages, and where the template fails, refuses the messages or grows too large.
    """
    if not messages or isinstance(messages, str) or not all(_is_message(each) for each in messages):
        raise TextError(
            "messages are a list of mappings with a role",
            step='pass [{"role": "user", "content": "Hello"}]',
        )
    if len(template) > MOST_TEMPLATE:
        raise TextError(f"the chat template has {len(template)} characters", step=f"at most {MOST_TEMPLATE} are read")
    if importlib.util.find_spec("jinja2") is None:
        raise MissingDependencyError("chat templates are rendered by jinja2", step="pip install 'tilewright[hf]'")
    import jinja2

    pieces, size = [], 0
    try:
        made = _compiled(template)
        for piece in made.generate(messages=json.loads(json.dumps(list(messages))), **variables):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_TEXT:
                raise _TooLargeError
    except _TooLargeError:
        raise TextError(f"the chat template builds more than {MOST_TEXT} characters", step="use another one") from None
    except _RefusedError as error:
        raise TextError(f"the chat template refuses: {error}", step="change the messages' roles or order") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise TextError(f"the chat template failed: {said}", step="check the messages, or give another one") from error
    return "".join(pieces)


def _is_message(each: Any) -> bool:
    return isinstance(each, Mapping) and isinstance(each.get("role"), str)


class _RefusedError(Exception):
    """The template called raise_exception."""


class _TooLargeError(Exception):
    """A value has outgrown MOST_TEXT."""


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MOST_TEXT:
        raise _TooLargeError
    return value


def _to_json(value: Any, indent: int | None = None, **kind: Any) -> str:
    # not jinja2's own, which escapes for HTML
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=kind.get("separators"))


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    """The template as code in the sandbox; the class is built here, because jinja2 is optional."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """`{% generation %}`, by which training marks answers: its body as it stands."""

        tags = {"generation"}  # noqa: RUF012  (the base class says what it is)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            pads = isinstance(obj, str) and attr in _PADS
            return not pads and not attr.startswith("_") and bool(super().is_safe_attribute(obj, attr, value))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sized = [len(each) for each in (left, right) if isinstance(each, (str, list, tuple))]
            times = max((each for each in (left, right) if isinstance(each, int)), default=1)
            if operator == "*" and sized and max(sized) * max(times, 1) > MOST_TEXT:
                raise _TooLargeError
            if operator == "**" or (operator == "%" and isinstance(left, str)):
                raise _TooLargeError
            if operator == "*" and not sized and max(abs(left), abs(right)) > 2**64:
                raise _TooLargeError
            return _bounded(super().call_binop(context, operator, left, right))

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
            if isinstance(owner, str) and name == "replace" and args:
                _check_replace(owner, *args)
            if isinstance(owner, str) and name == "join" and args:
                args = (list(args[0]),)
                _check_join(owner, args[0])
            return _bounded(super().call(context, obj, *args, **kwargs))

    class Bounds(NodeTransformer):
        """`a ~ b` as a filter that looks at sizes."""

        def visit_Concat(self, node: Any, *args: Any) -> Any:  # noqa: N802  (jinja2's visitors are named by node)
            self.generic_visit(node)
            return nodes.Filter(nodes.List(node.nodes), "concatenated", [], [], None, None, lineno=node.lineno)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    for name in ("center", "format", "indent", "wordwrap", "xmlattr", "urlize", "pprint"):
        del sandbox.filters[name]
    for name in ("lipsum", "cycler", "joiner"):
        del sandbox.globals[name]
    replace, join = sandbox.filters["replace"], sandbox.filters["join"]

    def bounded_replace(eval_ctx: Any, text: Any, old: str, new: str, count: int | None = None) -> Any:
        _check_replace(str(text), old, new)
        return replace(eval_ctx, text, old, new, count)

    def bounded_join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
        items = list(value)
        _check_join(str(d), items)
        return _bounded(join(eval_ctx, items, d, attribute))

    bounded_replace.jinja_pass_arg = replace.jinja_pass_arg  # type: ignore[attr-defined]
    bounded_join.jinja_pass_arg = join.jinja_pass_arg  # type: ignore[attr-defined]
    sandbox.filters["replace"], sandbox.filters["join"] = bounded_replace, bounded_join
    sandbox.filters["concatenated"] = lambda parts: _concatenated([str(part) for part in parts])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form[:256])
    tree = Bounds().visit(sandbox.parse(template))
    return sandbox.template_class.from_code(sandbox, sandbox.compile(tree), sandbox.make_globals(None))


def _concatenated(parts: Sequence[str]) -> str:
    if sum(map(len, parts)) > MOST_TEXT:
        raise _TooLargeError
    return "".join(parts)


def _check_join(between: str, items: Sequence[Any]) -> None:
    if len(between) * len(items) + sum(len(each) for each in items if isinstance(each, str)) > MOST_TEXT:
        raise _TooLargeError


def _check_replace(text: str, old: str, new: str, *count: int) -> None:
    if len(text) + text.count(str(old)) * len(str(new)) > MOST_TEXT:
        raise _TooLargeError
