"""dedupe-layers: repeated layers become one function called many times, with weights as arguments.

Layers are found by the module paths of their ops: runs that differ in one number ("encoder.layer.0" and ".1"). What
makes them equal is structure: from the values that leave a layer, both are walked towards their operands, and every
pair of ops must agree in class, properties and result types. What lies outside both becomes an argument; constants are
copied into the function. So the cut is where the residual stream leaves the layer, and no fusion crosses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Region, SSAValue

from tilewright.ir.graph.structure import CallOp, FuncOp, PackedOp, WeightOp
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.layer_matching import Layer, Match, in_order, layers_of, prefixes_of
from tilewright.passes.rewriting import erase_dead, order_block


@dataclass(frozen=True)
class DedupeLayers(Pass):
    """Equal layers share one graph.func of kind "layer"; `min_ops` is the fewest ops that are worth a function."""

    name: ClassVar[str] = "dedupe-layers"
    least: ClassVar[Mapping[str, int]] = {"min_ops": 1}
    min_ops: int = 6

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in [f for f in functions(module).values() if f.kind.data == "main"]:
            for prefix in prefixes_of(function.block):
                known: set[str] = set()
                # sharing one group moves the values that others are given, so the rest is looked at afresh
                while groups := self._classes(layers_of(function.block, prefix), known, ctx):
                    if not self._share(module, function, prefix, groups[0], ctx):
                        break

    def _classes(self, layers: Sequence[Layer], known: set[str], ctx: Context) -> list[list[Match]]:
        """The layers in groups of equal ones, each matched with the last of its group; `known` are refused already."""
        groups: list[list[Match]] = []
        # the last layer shows what leaves a layer; the first may also hold what all of them share
        for layer in reversed(layers):
            differences = []
            for group in groups:
                match = Match(group[0].sample, layer)
                difference = match.find()
                if difference is None:
                    group.append(match)
                    break
                differences.append(difference)
            else:
                alone = Match(layer, layer)
                problem = alone.find()
                reasons = [f"it is not like the others: {d}" for d in differences[:1]] + ([problem] if problem else [])
                if reasons and layer.name not in known and len(layer.ops) >= self.min_ops:
                    known.add(layer.name)
                    ctx.refuse(layer.ops[0], f"layer {layer.name}: {'; '.join(reasons)}")
                if problem is None and len(alone.ops) >= self.min_ops:
                    groups.append([alone])
        return [group for group in groups if len(group) > 1]

    def _share(self, module: ModuleOp, main: FuncOp, prefix: str, group: Sequence[Match], ctx: Context) -> bool:
        """Moves a group of equal layers into a function; False where the context forbids it."""
        sample = group[0]
        if not ctx.apply([m.layer.ops[0] for m in group], f"{len(group)} layers {prefix} are one function"):
            return False
        leaving = [v for v in sample.results() if any(m.leaves(m.values[v]) for m in group)]
        function = _function(_free_symbol(module, prefix), prefix, sample, leaving)
        module.body.block.insert_op_after(function, main)
        # calls that are put in between leave the order of the others as it is
        places = {op: place for place, op in enumerate(main.block.ops)}
        for match in group:
            last = max(match.ops.values(), key=places.__getitem__)
            call = CallOp.make(
                [match.values[v] for v in sample.arguments],
                result_types=[[v.type for v in leaving]],
                callee=function.symbol,
                like=match.layer.ops[0],
            )
            main.block.insert_op_after(call, last)
            inside = set(match.ops.values())
            for value, result in zip(leaving, call.outs, strict=True):
                for use in [u for u in match.values[value].uses if u.operation not in inside]:
                    use.operation.operands[use.index] = result
        order_block(main.block)
        erase_dead(main.block)
        return True


# --- the function ---------------------------------------------------------------------------------------------------


def _function(symbol: str, prefix: str, sample: Match, leaving: Sequence[SSAValue]) -> FuncOp:
    """The sample's ops as a function from its arguments to what leaves it."""
    block = Block(arg_types=[v.type for v in sample.arguments])
    known: dict[SSAValue, SSAValue] = dict(zip(sample.arguments, block.args, strict=True))
    for op in in_order(sample.ops):
        clone = op.clone(known)
        block.add_op(clone)
        known.update(zip(op.results, clone.results, strict=True))
    names = _argument_names(sample.arguments, prefix)
    function = FuncOp.make(sym_name=symbol, arg_names=names, kind="layer", regions=[Region(block)])
    return function.finish([known[v] for v in leaving], [f"out{i}" for i in range(len(leaving))])


def _argument_names(values: Sequence[SSAValue], prefix: str) -> list[str]:
    """A weight's name without the layer it belongs to, and x0, x1, ... for the rest."""
    names: list[str] = []
    for i, value in enumerate(values):
        label = value.owner.label.data if isinstance(value.owner, (WeightOp, PackedOp)) else ""
        short = re.sub(rf"^(.*\.)?{re.escape(prefix.rpartition('.')[2])}\.\d+\.", "", label) or f"x{i}"
        names.append(short if short not in names else f"{short}.{i}")
    return names


def _free_symbol(module: ModuleOp, prefix: str) -> str:
    """A name for the layer's function that no other has."""
    base = re.sub(r"\W+", "_", prefix.rpartition(".")[2]) or "layer"
    taken = functions(module)
    return next(name for n in range(1, len(taken) + 2) if (name := base if n == 1 else f"{base}_{n}") not in taken)
