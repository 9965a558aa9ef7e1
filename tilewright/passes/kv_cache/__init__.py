"""The step of a causal model: prefill, decode and everything between as one program over a flat axis of tokens."""

from tilewright.passes.kv_cache.encoding import Encoder as Encoder
from tilewright.passes.kv_cache.layout import Codes as Codes
from tilewright.passes.kv_cache.layout import Kept as Kept
from tilewright.passes.kv_cache.layout import PagedLayout as PagedLayout
from tilewright.passes.kv_cache.positions import name_positions as name_positions
from tilewright.passes.kv_cache.quantized import NEAR_GROUP as NEAR_GROUP
from tilewright.passes.kv_cache.step import Step as Step
from tilewright.passes.kv_cache.step import step_of as step_of
