"""Register tiles of matmul by CPU class: how many rows and vectors of the result one loop over K keeps in registers.

The right operand lies in panels ([K, columns] contiguous), packed once, so every entry of a class has the same number
of vectors. The left operand is row-major; each of its elements is one broadcast load that serves all of a row's
multiply-adds. The loop over K is unrolled four times on every class.

Measured on one core of a Sapphire-Rapids-like Xeon (2 FMA units): GFLOP/s in CPU time, best of 30 interleaved rounds on
a shared machine, so differences below 5% say nothing. Columns are `rows x vectors / unroll of K`, f32; lines are rows x
K x columns. "peak" is multiply-adds on registers alone in the same rounds, "torch" its linear layer (MKL), one thread.

    avx512            peak  torch  6x4/1  6x4/4  8x3/4  12x2/4  14x2/2  4x4/4  1x4/4
    656x384x1536       171    139    146    151    155     135     133    156     68
    656x1536x384       162    123    147    152    159     147     141    151     65
    16x384x384         191     62    150    161    160     146     141    147     65
    4x384x384          198     48    126    137    130     122     118    143     63
    1x384x384          188     16     57     57     55      46      46     57     57

    avx2              torch  6x2/1  6x2/2  6x2/4  4x3/2  5x2/2  4x2/2  1x4/2
    656x384x1536        117     90     93     92     92     90     82     52
    656x1536x384        136     82     91     92     95     87     83     52
    16x384x384           62     92     95     97    100     86     90     53
    4x384x384            47     78     86     81     92     86     83     50

    generic           6x2/2  4x3/2  4x2/2  4x2/1  3x4/2  2x4/2
    656x384x1536         27     30     29     30     29     34
    16x384x384           30     32     30     30     33     33

(torch is not bound to a class: its avx2 rows ran on zmm registers.) Rows that are no multiple of the tile run an exact
smaller one here; 1x384x384 is bound by the cache, not by arithmetic.

What follows. *avx512*: few wide rows beat many narrow ones (6x4 over 14x2 by 10%), and unrolling K four times gives
6x4 another 3-7%. 8x3 is as fast, but 48 columns divide few widths; 4x4 is as fast up to 16 rows and wastes less on
small counts. On Zen 4 6x4 gave 105 of 115. Panels that the second-level
cache keeps gain nothing from prefetch or blocks of rows; weights from memory do: 49 rows x 512..2048 93-98 to 131-147,
196 x 256..1024 152 to 171-181, with the next stretch asked for ahead (`TileRules.block`).
*avx2*: 16 registers hold 6x2 or 4x3; 4x3 is up to 5% faster, and its 24 columns fit badly.
*generic*: products and sums are separate and need a register of their
own; 2x4.

*bf16.* vdpbf16ps on the same core: 6x4, 8x3, 14x2 and 4x4 all 97-101, at any unroll: the instruction issues every
second cycle there, and f32 is faster. On Zen 4, 177-234. The emulation for avx512 without it: 109-122.

*Matrix unit.* tdpbf16ps on registers of 16 by 16 sums, one core, GFLOP/s: 2570-3300 from packed tiles in the
first-level cache, 2030 from rows 768 bytes apart and panels of 64 columns there. What bounds whole products is how fast
registers are filled: a block of 2 by 2 of them loads 4 KiB for 65536 FLOPs. In C, GFLOP/s in CPU time, best of 15
interleaved rounds on a busy machine, 512x1024x4096, weights from main memory:

    tile rows   rows that meet a panel   k in blocks of   GFLOP/s
    32          256                      1024              970
    32          512                      1024             1150
    64          512                      256              1270
    128         512                      256              1200
    128         512                      512              1340 (panels in two halves of 32 columns)

So a panel from memory meets as many rows as the second-level cache holds (where weights stay in that cache, half as
many were 4% faster), and k is blocked so that its pairs stay in the
first-level one while the bands of a tall tile use them.

How a register's 16 rows of pairs lie matters more than how many there are. GFLOP/s of one core, 2 by 2 registers, left
side in the first-level cache, the other core idle:

    right-hand side from    first level   second level   beyond
    rows 256 bytes apart       3050           1780
    1 KiB each, dense          3150           3130          880

So panels are as wide as a register. Whole products in C on both cores, GFLOP/s, best of 9 interleaved rounds; "old" is
panels of 64 columns, "+lines" asks for the lines of the result (and of what is added to it) under the steps of k,
"+panels" for the panels that follow, a share a band of rows:

    rows x K x columns, result             old 64  old 32   dense 64+lines  64+lines+panels   dense 32+both
    512x1024x4096, bf16, L2-resident rows   2200             2390            2650              2340
    512x3072x1024, f32 + residual           1606    1695     1643            1649              1687
    512x2048x1024, f32 + residual           1841    1844     1820            1786              1940
    4096x1536x384, f32 + residual           1839    1910     1936            1909              1946
    4096x384x1536, bf16                     1969    2193     2246            2373              2403

(64: tiles of 64 rows with k in blocks of 256; 32: all of k at once. Rows were taken at different times, so they compare
within themselves.) In a compiled decoder, whose weights come from main memory, tall tiles pay for K of 3072 too (49 for
59 ms in 28 layers) and change nothing at 1536 and 2048. Copying rows into dense registers first, tiles of 128 to 512
columns and blocks of k of 384 or 512 were no faster; neither were huge pages on a quiet machine.
vdpbf16ps is not used.

All inner loops were read as assembly: no spills, panel and broadcast addresses are displacements from two registers.
"""

from __future__ import annotations

from typing import Final

REGISTER_TILES: Final[dict[str, tuple[tuple[int | None, int, int], ...]]] = {
    "generic": ((1, 1, 4), (None, 2, 4)),
    "avx2": ((1, 1, 2), (None, 6, 2)),
    "avx512": ((1, 1, 4), (16, 4, 4), (None, 6, 4)),
}
"""By vector width, what `TileRules.dot` says: (largest row count or None, rows, vectors), ascending."""
