"""The memory that generated CPU code and Python both touch: kernel signature, step plan, team, worker slot.

One description for two rooms that do not import each other: `backends/host/driver.py` prints loads at these offsets,
`runtime/step_plan.py` and `runtime/threads.py` fill numpy arrays by them.

A **kernel** is `void k(void** buffers, int64_t* dims, int64_t tid, int64_t nthreads)`. `buffers` are its tensors in
declared order, `dims` its formal dims in declared order. It splits its own grid over (tid, nthreads), and it may be
called with any nthreads >= 1. It must not raise, unwind or keep `buffers` after it returns. Buffers that it writes
start on 64 bytes; those that it reads, on their elements' size.

Everything else is rows of 8-byte words; the constants are word indices unless their name says bytes.

- **plan**: [number of steps, most refs of any step, pointer to the step rows].
- **step row**: [kernel, pointer to ref rows, number of refs, pointer to dims, flags].
- **ref row**: [index into the call's bases, byte offset]: the buffer is at `bases[index] + offset`. A plan holds no
  address of a buffer, so concurrent calls share it.
- **team**: [threads, most pauses before a wait sleeps, slot of thread 1, slot of thread 2, ...]; thread 0 calls.
- **slot**: one worker's mailbox, in cache lines of its own: what to do, and the counters `posted` and `finished`, each
  a 4-byte word to sleep on beside the 4-byte number of its sleepers. The worker is idle when they are equal.
- **times**: int64 [threads, steps, 2], begin and end of each kernel call in nanoseconds of CLOCK_MONOTONIC, the clock
  of `time.monotonic_ns()`. Waiting at a barrier lies outside both.
"""

from __future__ import annotations

# Part of every symbol's name: a driver of another layout does not link, instead of running wild.
VERSION = 1
LAUNCH = f"tw_launch_v{VERSION}"
"""void(team*, plan*, void** bases, int64_t* times or null): runs a plan, returns when every thread has finished."""
WORKER = f"tw_worker_v{VERSION}"
"""void(slot*): lives in a worker thread until it is posted a null plan."""
STOP = f"tw_stop_v{VERSION}"
"""void(slot*): tells an idle worker to return."""
PAUSE = f"tw_pause_v{VERSION}"
"""void(int64_t count): executes that many pauses; for measuring what one costs here."""

WORD = 8
LINE_BYTES = 64

PLAN_NSTEPS, PLAN_MAX_REFS, PLAN_STEPS = range(3)
PLAN_WORDS = 3

STEP_KERNEL, STEP_REFS, STEP_NREFS, STEP_DIMS, STEP_FLAGS = range(5)
STEP_WORDS = 5
BARRIER_AFTER = 1
"""The step's results are read by other threads' later steps. The last step needs none: the launch itself waits."""

REF_BASE, REF_OFFSET = range(2)
REF_WORDS = 2

TEAM_THREADS, TEAM_SPIN, TEAM_SLOTS = range(3)

SLOT_JOB, SLOT_TID, SLOT_SPIN = range(3)
SLOT_POSTED_BYTES = 64
SLOT_FINISHED_BYTES = 128
SLOT_BYTES = 192
SLEEPERS_BYTES = 4
"""From a word to sleep on to the number of its sleepers."""
