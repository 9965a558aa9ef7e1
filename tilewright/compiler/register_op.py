"""tw.register_op: an operator of torch.library becomes one that compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tilewright.compiler.kernel import Kernel
from tilewright.compiler.kernel_spec import KernelSpec
from tilewright.errors import KernelError, OptionError
from tilewright.frontend.custom_ops import CustomOp, Instance, register
from tilewright.frontend.registry import Unsupported
from tilewright.frontend.shape_rules import give_rule
from tilewright.ir.dims import Expr
from tilewright.ir.types import TensorType

_TORCHS: Final = ("aten", "prim", "prims", "quantized", "higher_order")


def register_op(
    name: Any,
    *,
    kernel: Kernel | None = None,
    reference: Callable[..., Any] | None = None,
    shape: Callable[..., Any] | None = None,
) -> None:
    """See tilewright.register_op."""
    import torch

    faults: dict[str, str] = {}
    found = _name_of(name)
    if found is None:
        raise OptionError(
            f"{name!r} is no operator of torch.library",
            step='give its name, "lib::name", or what torch.library.custom_op made',
        )
    name = found
    namespace, _, rest = name.partition("::")
    op, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), op, None) if namespace and op else None
    target = None if packet is None else getattr(packet, overload or "default", None)
    define = 'define it with torch.library.custom_op("lib::name", mutates_args=()), then register it'
    written = "write an operator that gives new tensors (clone what it would write to or view), and register that one"
    if target is None:
        faults[f"torch has no operator {name!r}"] = define
    elif target._schema.is_mutable:
        faults[f"{name} writes to its operands: {target._schema}"] = written
    elif any(result.alias_info is not None for result in target._schema.returns):
        faults[f"{name} gives views of its operands: {target._schema}"] = written
    elif namespace in _TORCHS:
        faults[f"{name} is torch's own operator: what it computes is not anybody's to change"] = define
    if kernel is None and reference is None:
        step = "pass reference=, a function of operators that compile, or kernel=, made with @tw.kernel"
        faults[f"{name} has neither a kernel nor a reference: nothing says how it is computed"] = step
    if kernel is not None and not isinstance(kernel, Kernel):
        faults[f"kernel={kernel!r} is not made with @tw.kernel"] = "decorate the kernel's function with @tw.kernel(...)"
    for option, function, example in (
        ("reference", reference, "lambda x: x * 2"),
        ("shape", shape, "lambda x: torch.empty_like(x)"),
    ):
        if function is not None and not callable(function):
            step = f"pass a function of the operator's arguments, as {option}={example}"
            faults[f"{option}={function!r} is not a function"] = step
    if faults:
        raise OptionError(list(faults), step="; ".join(dict.fromkeys(faults.values())))
    rule = shape if shape is not None else reference
    if rule is not None:
        give_rule(target, rule)
    built = None if kernel is None else _Instances(kernel)
    sources = () if kernel is None else (_signature(kernel.spec), kernel.function)
    register(str(target), CustomOp(built, reference, shape, sources))


def _signature(spec: KernelSpec) -> str:
    inputs, outputs = (
        ", ".join(f"{b.name} {b.dtype}[{', '.join(map(str, b.dims))}]" for b in buffers)
        for buffers in (spec.inputs, spec.outputs)
    )
    return f"{inputs} -> {outputs}"


def _name_of(operator: Any) -> str | None:
    """The name, "lib::name" or "lib::name.overload" of what a user may hold as an operator; None of anything else."""
    import torch

    if isinstance(operator, str):
        return operator
    if isinstance(operator, torch._library.custom_ops.CustomOpDef):
        return operator._qualname
    if isinstance(operator, torch._ops.OpOverload):
        return str(operator._name)
    return operator._qualified_op_name if isinstance(operator, torch._ops.OpOverloadPacket) else None


class _Instances:
    """A user's kernel at the types of a call in a graph."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(self, operands: Sequence[TensorType], others: Mapping[str, tuple[Any, bool]]) -> Instance:
        """Static parameters come from the operands' dtypes and sizes, and from the operator's arguments of their name.

        Unsupported where an argument that the kernel lacks is not its default, a size that is static in the kernel
        varies, or a dim stands alone on no axis.
        """
        spec = self._kernel.spec
        for name, (value, is_default) in others.items():
            if name not in spec.statics and not is_default:
                raise _wrong(spec.name, f"it has no parameter for the operator's argument {name}={value}")
        if len(operands) != len(spec.inputs):
            raise _wrong(spec.name, f"it takes {len(spec.inputs)} tensors, the operator gives it {len(operands)}")
        sizes: dict[str, Expr] = {}
        for buffer, given in zip(spec.inputs, operands, strict=True):
            if len(buffer.dims) != len(given.dims):
                raise _wrong(spec.name, f"{buffer.name} has {len(buffer.dims)} axes, the operator gives it {given}")
            for dim, size in zip(buffer.dims, given.dims, strict=True):
                if len(dim.symbols) == 1 and dim == Expr.of(next(iter(dim.symbols))):
                    sizes.setdefault(next(iter(dim.symbols)), size)
        statics: dict[str, Any] = {n: v for n, (v, _) in others.items() if n in spec.statics and v is not None}
        told: list[tuple[str, Any]] = []
        for name in sorted(sizes.keys() & spec.statics.keys()):
            size = sizes.pop(name)
            if size.constant is None:
                raise _wrong(spec.name, f"{name} is static in the kernel, and {size} in the model")
            told.append((name, size.constant))
        told += [(b.dtype, g.dtype) for b, g in zip(spec.inputs, operands, strict=True) if b.dtype in spec.dtypes]
        for name, value in told:
            if statics.setdefault(name, value) != value:
                raise _wrong(spec.name, f"{name} is {value} by one operand, and {statics[name]} otherwise")
        try:
            found = spec.resolve(statics)
        except KernelError as fault:
            raise _wrong(spec.name, fault.problems[0].text) from fault
        missing = [d for d in spec.dims if d not in sizes]
        if missing:
            raise _wrong(spec.name, f"no axis of its inputs is just {', '.join(missing)}")
        for buffer, given in zip(spec.inputs, operands, strict=True):
            declared = tuple(d.substitute(sizes) for d in buffer.dims_at(found))
            if declared != given.dims or buffer.dtype_at(found) != given.dtype:
                raise _wrong(
                    spec.name, f"{buffer.name} is {TensorType.of(declared, buffer.dtype_at(found))}, got {given}"
                )
        results = tuple(
            TensorType.of([d.substitute(sizes) for d in b.dims_at(found)], b.dtype_at(found)) for b in spec.outputs
        )
        kernel = self._kernel.checked(**found)
        return Instance(kernel, tuple(sizes[d] for d in kernel.dims.data), results)


def _wrong(name: str, text: str) -> Unsupported:
    return Unsupported(f"its kernel @{name} does not fit: {text}")
