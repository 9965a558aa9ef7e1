"""A program's signature: the arguments it takes, the tensors they hold, how results become the model's own output.

Plain data with a JSON form. Frontends write it, artifacts carry it, the runtime flattens calls and rebuilds outputs
with it; nothing here needs torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from tilewright.errors import ArgumentError, ArtifactError, Problem
from tilewright.ir.dims import Expr, parse_expr
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.trees import LEAF, Tree

Plain: TypeAlias = bool | int | float | str | None
ParameterKind = Literal["positional", "either", "var_positional", "keyword", "var_keyword"]

_KINDS: Final = {
    "positional": inspect.Parameter.POSITIONAL_ONLY,
    "either": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "keyword": inspect.Parameter.KEYWORD_ONLY,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}
_KIND_NAMES: Final[dict[Any, ParameterKind]] = {kind: name for name, kind in _KINDS.items()}  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model's forward. default: its default where that is plain data, else None."""

    name: str
    kind: ParameterKind = "either"
    has_default: bool = False
    default: Plain = None

    @staticmethod
    def of(parameter: inspect.Parameter) -> Parameter:
        """The plain form of Python's own description."""
        has_default = parameter.default is not inspect.Parameter.empty
        plain = has_default and isinstance(parameter.default, (bool, int, float, str))
        return Parameter(parameter.name, _KIND_NAMES[parameter.kind], has_default, parameter.default if plain else None)

    def python(self) -> inspect.Parameter:
        default = self.default if self.has_default else inspect.Parameter.empty
        return inspect.Parameter(self.name, _KINDS[self.kind], default=default)


@dataclass(frozen=True, slots=True)
class Input:
    """One leaf of the arguments: a tensor, which is an argument of @main, or a constant the capture has fixed.

    name: "ids", "batch.mask", "xs.0". dims: the declared sizes of a tensor. mutated: the model writes to it in place.
    """

    name: str
    dtype: DType | None = None
    dims: tuple[Expr, ...] = ()
    constant: Plain = None
    mutated: bool = False

    @property
    def is_tensor(self) -> bool:
        return self.dtype is not None


@dataclass(frozen=True, slots=True)
class Argument:
    """One captured argument: a parameter's name (or an entry of *args or **kwargs), its structure and its leaves."""

    name: str
    tree: Tree
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """One leaf of the output: result number `index` of @main, a size in the program's dims, or a constant."""

    dtype: DType | None = None
    dims: tuple[Expr, ...] = ()
    index: int | None = None
    size: Expr | None = None
    constant: Plain = None


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything about a call: parameters as declared, arguments as captured, the output's structure and leaves.

    mutations: for inputs the model writes to, the input's name and the number of @main's result with its new value.
    """

    parameters: tuple[Parameter, ...]
    arguments: tuple[Argument, ...]
    output: Tree
    outputs: tuple[Output, ...]
    mutations: tuple[tuple[str, int], ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The leaves of all arguments in order."""
        return tuple(leaf for argument in self.arguments for leaf in argument.inputs)

    @property
    def tensors(self) -> tuple[Input, ...]:
        """The tensor leaves in the order of @main's arguments."""
        return tuple(leaf for leaf in self.inputs if leaf.is_tensor)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors of a call in the order of @main's arguments.

        Raises ArgumentError for a missing, extra or misnamed argument, another structure, a tensor where a constant was
        captured or the reverse, and for a constant with another value.
        """
        bound = self._bind(args, kwargs)
        leaves: list[Any] = []
        problems: list[str | Problem] = []
        for argument in self.arguments:
            if argument.name not in bound:
                problems.append(f"{argument.name} is missing; the program was compiled with it")
                continue
            values = argument.tree.flatten(bound.pop(argument.name), argument.name)
            for leaf, value in zip(argument.inputs, values, strict=True):
                fault = _fault(leaf, value)
                if fault:
                    problems.append(fault)
                elif leaf.is_tensor:
                    leaves.append(value)
        defaults = {p.name: p.default for p in self.parameters}
        problems += [
            f"{name} was not given when the program was compiled"
            for name, value in bound.items()
            if value is not defaults.get(name) and not (_is_plain(value) and value == defaults.get(name))
        ]
        if problems:
            raise ArgumentError(problems, step=f"call it as compiled: ({self._written()})")
        return leaves

    def _written(self) -> str:
        """The arguments of a call as it was compiled: constants with their values, what goes by name after a star."""
        named = {p.name for p in self.parameters if p.kind == "keyword"}
        parts: list[str] = []
        for argument in self.arguments:
            if argument.name in named and "*" not in parts:
                parts.append("*")
            constant = argument.tree == LEAF and not argument.inputs[0].is_tensor
            parts.append(f"{argument.name}={argument.inputs[0].constant!r}" if constant else argument.name)
        return ", ".join(parts)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        bound = bind_call(inspect.Signature([p.python() for p in self.parameters]), args, kwargs)
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name not in bound.arguments:
                continue
            value = bound.arguments[parameter.name]
            if parameter.kind == "var_positional":
                values.update({f"{parameter.name}.{i}": item for i, item in enumerate(value)})
            elif parameter.kind == "var_keyword":
                values.update(value)
            else:
                values[parameter.name] = value
        return values

    def rebuild(self, results: Sequence[Any], dims: Mapping[str, int]) -> Any:
        """The model's own output from @main's results; sizes among the outputs are evaluated at `dims`."""

        def leaves() -> Iterator[Any]:
            for out in self.outputs:
                if out.index is not None:
                    yield results[out.index]
                else:
                    yield out.constant if out.size is None else out.size.evaluate(dims)

        return self.output.rebuild(leaves())

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "parameters": [[p.name, p.kind, p.has_default, p.default] for p in self.parameters],
            "arguments": [
                {"name": a.name, "tree": a.tree.to_json(), "inputs": [_input_json(i) for i in a.inputs]}
                for a in self.arguments
            ],
            "output": self.output.to_json(),
            "outputs": [
                {
                    "dtype": o.dtype.name if o.dtype else None,
                    "dims": [str(d) for d in o.dims],
                    "index": o.index,
                    "size": str(o.size) if o.size is not None else None,
                    "constant": o.constant,
                }
                for o in self.outputs
            ],
            "mutations": [list(m) for m in self.mutations],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        """Reads what to_json gave; ArtifactError when it is something else."""
        try:
            return Signature(
                parameters=tuple(Parameter(*p) for p in data["parameters"]),
                arguments=tuple(
                    Argument(a["name"], Tree.from_json(a["tree"]), tuple(_input_of(i) for i in a["inputs"]))
                    for a in data["arguments"]
                ),
                output=Tree.from_json(data["output"]),
                outputs=tuple(
                    Output(
                        dtype=DTYPES[o["dtype"]] if o["dtype"] else None,
                        dims=tuple(parse_expr(d) for d in o["dims"]),
                        index=o["index"],
                        size=parse_expr(o["size"]) if o["size"] is not None else None,
                        constant=o["constant"],
                    )
                    for o in data["outputs"]
                ),
                mutations=tuple((str(name), int(index)) for name, index in data["mutations"]),
            )
        except (KeyError, TypeError, ValueError) as fault:
            raise ArtifactError(f"the signature is malformed: {fault!r}", step="save the program again") from fault


def bind_call(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any], *, step: str | None = None
) -> inspect.BoundArguments:
    """Arguments by parameter. Python names the first misfit of a call; the ArgumentError raised here names all.

    step: what to do about it, where these are not the arguments of a call.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as fault:
        listed = ", ".join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
        faults = _misfits(signature, args, kwargs) or [str(fault)]
        raise ArgumentError(faults, step=step or f"call it as ({listed})") from fault


def _misfits(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    kinds = {p.kind for p in signature.parameters.values()}
    named = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    placed = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in named]
    problems = []
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        problems += [f"{name} is not a parameter" for name in kwargs if name not in names]
    if inspect.Parameter.VAR_POSITIONAL not in kinds and len(args) > len(placed):
        problems.append(f"{len(args)} positional arguments are given, it takes {len(placed)}")
    taken = [p.name for p in placed[: len(args)]]
    problems += [f"{name} is given twice" for name in taken if name in kwargs and name in names]
    required = [p for p in (*placed, *named) if p.default is p.empty]
    missing = [p.name for p in required if p.name not in taken and not (p.name in names and p.name in kwargs)]
    return problems + [f"{name} is missing" for name in dict.fromkeys(missing)]


def _input_json(leaf: Input) -> dict[str, Any]:
    return {
        "name": leaf.name,
        "dtype": leaf.dtype.name if leaf.dtype else None,
        "dims": [str(d) for d in leaf.dims],
        "constant": leaf.constant,
        "mutated": leaf.mutated,
    }


def _input_of(data: Mapping[str, Any]) -> Input:
    return Input(
        name=data["name"],
        dtype=DTYPES[data["dtype"]] if data["dtype"] else None,
        dims=tuple(parse_expr(d) for d in data["dims"]),
        constant=data["constant"],
        mutated=data["mutated"],
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _fault(leaf: Input, value: Any) -> str | None:
    """What is wrong with a leaf of a call, or None."""
    if leaf.is_tensor:
        if _is_plain(value):
            return f"{leaf.name} is {value!r}, compiled for a tensor"
        return None
    if not _is_plain(value):
        return f"{leaf.name} is a {type(value).__name__}, compiled for the constant {leaf.constant!r}"
    same = value is leaf.constant if leaf.constant is None or isinstance(value, bool) else value == leaf.constant
    return None if same else f"{leaf.name} is {value!r}, compiled for {leaf.constant!r}"
