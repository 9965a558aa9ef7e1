"""The graph dialect as xDSL sees it: every op, and the tensor type."""

from __future__ import annotations

from typing import Final

from xdsl.ir import Dialect

from tilewright.ir.graph.attention import ATTENTION
from tilewright.ir.graph.base import GraphOp
from tilewright.ir.graph.contraction import CONTRACTION
from tilewright.ir.graph.elementwise import ELEMENTWISE
from tilewright.ir.graph.experts import EXPERTS
from tilewright.ir.graph.indexing import INDEXING
from tilewright.ir.graph.linear_attention import LINEAR_ATTENTION
from tilewright.ir.graph.paging import PAGING
from tilewright.ir.graph.paging_quantized import QUANTIZED_PAGING
from tilewright.ir.graph.polynomial_attention import POLYNOMIAL
from tilewright.ir.graph.quantization import QUANTIZATION
from tilewright.ir.graph.recurrence import RECURRENCE
from tilewright.ir.graph.reduction import REDUCTION
from tilewright.ir.graph.routing import ROUTING
from tilewright.ir.graph.shape import SHAPE
from tilewright.ir.graph.structure import STRUCTURE
from tilewright.ir.graph.windows import WINDOWS
from tilewright.ir.types import TensorType

GRAPH_OPS: Final[list[type[GraphOp]]] = [
    *STRUCTURE,
    *ELEMENTWISE,
    *SHAPE,
    *INDEXING,
    *CONTRACTION,
    *WINDOWS,
    *REDUCTION,
    *ATTENTION,
    *PAGING,
    *QUANTIZED_PAGING,
    *POLYNOMIAL,
    *EXPERTS,
    *RECURRENCE,
    *LINEAR_ATTENTION,
    *ROUTING,
    *QUANTIZATION,
]

GRAPH: Final = Dialect("graph", list(GRAPH_OPS), [TensorType])
