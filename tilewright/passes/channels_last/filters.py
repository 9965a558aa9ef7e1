"""Rules that give filters what scales their channels: batch norm becomes filters and a bias in @prepare."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import ConstantOp, PackedOp, WeightOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.passes.channels_last.sinking import is_channel_vector
from tilewright.passes.rewriting import Rules, Site, defined, is_pure, mapped, same_dims

FILTERS = Rules()


def known_before_calls(value: SSAValue) -> bool:
    """The value depends on weights and constants alone, so that @prepare computes it."""
    owner = value.owner
    if isinstance(owner, (WeightOp, PackedOp, ConstantOp)):
        return True
    # a block is not pure either: what a call is given is not known
    return is_pure(owner) and bool(owner.operands) and all(known_before_calls(v) for v in owner.operands)


def _vector(op: MapOp, other: int) -> bool:
    """An operand is one number a channel, known before calls, and stretches the image along no axis."""
    value, image = op.args[other], op.args[1 - other]
    return is_channel_vector(tensor(value).dims) and same_dims(image, op.out) and known_before_calls(value)


def _flat(value: SSAValue, site: Site) -> SSAValue:
    return site.make(ReshapeOp, value, dims=[tensor(value).dims[-1]])


@FILTERS.on(MapOp)
def scale_joins_filters(op: MapOp, site: Site) -> SSAValue | None:
    """conv(x, w) * s is conv(x, w * s), and (conv(x, w) + b) * s is conv(x, w * s) + b * s."""
    if op.fn.data != "mul":
        return None
    for i, arg in enumerate(op.args):
        if not _vector(op, 1 - i):
            continue
        scale = _flat(op.args[1 - i], site)
        found = defined(arg, ConvolutionOp)
        if found is not None and found.out.has_one_use():
            return _scaled(found, scale, site)
        shifted = mapped(arg, "add")
        if shifted is None or not shifted.out.has_one_use():
            continue
        for j, part in enumerate(shifted.args):
            found = defined(part, ConvolutionOp)
            if found is not None and found.out.has_one_use() and _vector(shifted, 1 - j):
                bias = site.map("mul", _flat(shifted.args[1 - j], site), scale)
                return site.map("add", _scaled(found, scale, site), bias)
    return None


def _scaled(op: ConvolutionOp, scale: SSAValue, site: Site) -> SSAValue:
    return site.make(
        ConvolutionOp,
        op.x,
        site.map("mul", op.w, scale),
        None,
        strides=op.strides,
        padding_low=op.padding_low,
        padding_high=op.padding_high,
        dilation=op.dilation,
        groups=op.groups,
        channels_last=True,
    )


@FILTERS.on(MapOp)
def shifts_join(op: MapOp, site: Site) -> SSAValue | None:
    """(conv(x, w) + a) + b adds a + b."""
    if op.fn.data != "add":
        return None
    for i, arg in enumerate(op.args):
        first = mapped(arg, "add")
        if first is None or not first.out.has_one_use() or not _vector(op, 1 - i):
            continue
        for j, part in enumerate(first.args):
            if defined(part, ConvolutionOp) is not None and _vector(first, 1 - j):
                total = site.map("add", _flat(first.args[1 - j], site), _flat(op.args[1 - i], site))
                return site.map("add", part, total)
    return None
