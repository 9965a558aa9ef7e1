"""The native driver, generated as MLIR text: walks a step plan on a team of threads, with barriers and workers.

It goes through the same compiler as kernels, so no system compiler is needed. `tilewright.ir.native_abi` says what
lies where in memory; the functions exported are named there.

*Waiting.* All three waits (a barrier, a worker for its next plan, the caller for its workers) are one: a counter that
somebody will advance, beside the number of threads asleep on it. The waiter pauses a bounded number of times, then
adds itself to the sleepers and sleeps in futex while the counter is what it last saw. The one who advances the counter
does so first and looks at the sleepers second, both sequentially consistent, and futex compares the counter under the
kernel's lock: so either the sleeper sees the new count or the advancer sees the sleeper, and no wake-up is lost
(U. Drepper, "Futexes are tricky", 2011).

*Lifetime.* A job lies on the launching thread's stack. Nobody touches it after advancing its own slot's `finished`,
and slots live as long as their workers.

*Clock.* Steps are timed by clock_gettime(CLOCK_MONOTONIC), 20-40 ns through the vDSO. A cycle counter would be a
little cheaper, but needs calibrating, is not readable in user mode on every machine, and its readings could not be put
beside Python's own timestamps.
"""

from __future__ import annotations

from string import Template

from tilewright.backends.cpu.mlir import CpuTarget
from tilewright.ir import native_abi as abi

# Linux: number of the futex system call, and the instruction that tells the core a loop is only waiting.
_FUTEX = {"x86_64": 202, "aarch64": 98}
_PAUSE = {
    "x86_64": 'llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()',
    "aarch64": 'llvm.call_intrinsic "llvm.aarch64.hint"(%yield) : (i32) -> ()',
}

# The job, on the launching thread's stack: what the team shares for one plan. Words, then two lines to synchronise on.
_JOB_PLAN, _JOB_BASES, _JOB_TIMES, _JOB_THREADS, _JOB_SPIN = range(5)
_JOB_ARRIVED_BYTES = 64
_JOB_GENERATION_BYTES = 128
_JOB_BYTES = 192

_WAITING = Template("""
llvm.func @syscall(i64, ...) -> i64

// Sleeps while *word is `seen`. Returns early on signals and stray wake-ups, so callers look again.
llvm.func internal @futex_wait(%word: !llvm.ptr, %seen: i32) {
  %call = arith.constant $futex : i64
  %wait_private = arith.constant 128 : i64
  %no_timeout = arith.constant 0 : i64
  %value = arith.extui %seen : i32 to i64
  %r = llvm.call @syscall(%call, %word, %wait_private, %value, %no_timeout) vararg(!llvm.func<i64 (i64, ...)>)
      : (i64, !llvm.ptr, i64, i64, i64) -> i64
  llvm.return
}

llvm.func internal @futex_wake_all(%word: !llvm.ptr) {
  %call = arith.constant $futex : i64
  %wake_private = arith.constant 129 : i64
  %all = arith.constant 2147483647 : i64
  %r = llvm.call @syscall(%call, %word, %wake_private, %all) vararg(!llvm.func<i64 (i64, ...)>)
      : (i64, !llvm.ptr, i64, i64) -> i64
  llvm.return
}

llvm.func internal @pause_once() attributes {always_inline} {
  %yield = arith.constant 1 : i32
  $pause
  llvm.return
}

llvm.func @$pause_symbol(%count: i64) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  scf.for %i = %zero to %count step %one : i64 {
    llvm.call @pause_once() : () -> ()
  }
  llvm.return
}

// Returns when *counter is no longer `seen`; what its advancer wrote before is then visible.
llvm.func internal @wait(%counter: !llvm.ptr, %seen: i32, %spin: i64) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %left:2 = scf.while (%n = %spin) : (i64) -> (i64, i1) {
    %now = llvm.load %counter atomic acquire {alignment = 4 : i64} : !llvm.ptr -> i32
    %same = arith.cmpi eq, %now, %seen : i32
    %more = arith.cmpi sgt, %n, %zero : i64
    %again = arith.andi %same, %more : i1
    scf.condition(%again) %n, %same : i64, i1
  } do {
  ^bb0(%n: i64, %same: i1):
    llvm.call @pause_once() : () -> ()
    %next = arith.subi %n, %one : i64
    scf.yield %next : i64
  }
  scf.if %left#1 {
    %sleepers = llvm.getelementptr %counter[$sleepers_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
    %me = arith.constant 1 : i32
    %before = llvm.atomicrmw add %sleepers, %me seq_cst : !llvm.ptr, i32
    scf.while : () -> () {
      %now = llvm.load %counter atomic seq_cst {alignment = 4 : i64} : !llvm.ptr -> i32
      %same = arith.cmpi eq, %now, %seen : i32
      scf.condition(%same)
    } do {
      llvm.call @futex_wait(%counter, %seen) : (!llvm.ptr, i32) -> ()
      scf.yield
    }
    %after = llvm.atomicrmw sub %sleepers, %me seq_cst : !llvm.ptr, i32
  }
  llvm.return
}

llvm.func internal @advance(%counter: !llvm.ptr) {
  %zero = arith.constant 0 : i32
  %one = arith.constant 1 : i32
  %old = llvm.atomicrmw add %counter, %one seq_cst : !llvm.ptr, i32
  %at = llvm.getelementptr %counter[$sleepers_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  %sleepers = llvm.load %at atomic seq_cst {alignment = 4 : i64} : !llvm.ptr -> i32
  %asleep = arith.cmpi ne, %sleepers, %zero : i32
  scf.if %asleep {
    llvm.call @futex_wake_all(%counter) : (!llvm.ptr) -> ()
  }
  llvm.return
}
""")

_STEPS = Template("""
llvm.func @clock_gettime(i32, !llvm.ptr) -> i32

// Writes the time in nanoseconds to times[entry], if times are asked for.
llvm.func internal @stamp(%times: !llvm.ptr, %entry: i64) {
  %null = llvm.mlir.zero : !llvm.ptr
  %asked = llvm.icmp "ne" %times, %null : !llvm.ptr
  %two = arith.constant 2 : i64
  %timespec = llvm.alloca %two x i64 : (i64) -> !llvm.ptr
  scf.if %asked {
    %monotonic = arith.constant 1 : i32
    %r = llvm.call @clock_gettime(%monotonic, %timespec) : (i32, !llvm.ptr) -> i32
    %seconds = llvm.load %timespec : !llvm.ptr -> i64
    %rest_at = llvm.getelementptr %timespec[1] : (!llvm.ptr) -> !llvm.ptr, i64
    %rest = llvm.load %rest_at : !llvm.ptr -> i64
    %giga = arith.constant 1000000000 : i64
    %whole = arith.muli %seconds, %giga : i64
    %ns = arith.addi %whole, %rest : i64
    %at = llvm.getelementptr %times[%entry] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    llvm.store %ns, %at : i64, !llvm.ptr
  }
  llvm.return
}

// The last of the team to arrive empties the count for the next barrier and then lets the others go.
llvm.func internal @barrier(%job: !llvm.ptr, %threads: i64, %spin: i64) {
  %none = arith.constant 0 : i32
  %one = arith.constant 1 : i32
  %generation = llvm.getelementptr %job[$generation_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  %arrived = llvm.getelementptr %job[$arrived_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  %seen = llvm.load %generation atomic acquire {alignment = 4 : i64} : !llvm.ptr -> i32
  %before = llvm.atomicrmw add %arrived, %one seq_cst : !llvm.ptr, i32
  %all = arith.trunci %threads : i64 to i32
  %now = arith.addi %before, %one : i32
  %last = arith.cmpi eq, %now, %all : i32
  scf.if %last {
    llvm.store %none, %arrived atomic monotonic {alignment = 4 : i64} : i32, !llvm.ptr
    llvm.call @advance(%generation) : (!llvm.ptr) -> ()
  } else {
    llvm.call @wait(%generation, %seen, %spin) : (!llvm.ptr, i32, i64) -> ()
  }
  llvm.return
}

// One thread's walk over the plan. Buffer addresses are resolved into a row on its own stack.
llvm.func internal @run(%job: !llvm.ptr, %tid: i64) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %two = arith.constant 2 : i64
  %plan = llvm.load %job : !llvm.ptr -> !llvm.ptr
  %bases_at = llvm.getelementptr %job[$job_bases] : (!llvm.ptr) -> !llvm.ptr, i64
  %bases = llvm.load %bases_at : !llvm.ptr -> !llvm.ptr
  %times_at = llvm.getelementptr %job[$job_times] : (!llvm.ptr) -> !llvm.ptr, i64
  %times = llvm.load %times_at : !llvm.ptr -> !llvm.ptr
  %threads_at = llvm.getelementptr %job[$job_threads] : (!llvm.ptr) -> !llvm.ptr, i64
  %threads = llvm.load %threads_at : !llvm.ptr -> i64
  %spin_at = llvm.getelementptr %job[$job_spin] : (!llvm.ptr) -> !llvm.ptr, i64
  %spin = llvm.load %spin_at : !llvm.ptr -> i64
  %together = arith.cmpi sgt, %threads, %one : i64

  %nsteps_at = llvm.getelementptr %plan[$plan_nsteps] : (!llvm.ptr) -> !llvm.ptr, i64
  %nsteps = llvm.load %nsteps_at : !llvm.ptr -> i64
  %max_refs_at = llvm.getelementptr %plan[$plan_max_refs] : (!llvm.ptr) -> !llvm.ptr, i64
  %max_refs = llvm.load %max_refs_at : !llvm.ptr -> i64
  %steps_at = llvm.getelementptr %plan[$plan_steps] : (!llvm.ptr) -> !llvm.ptr, i64
  %steps = llvm.load %steps_at : !llvm.ptr -> !llvm.ptr
  %buffers = llvm.alloca %max_refs x !llvm.ptr : (i64) -> !llvm.ptr
  %step_words = arith.constant $step_words : i64
  %ref_words = arith.constant $ref_words : i64
  %mine = arith.muli %tid, %nsteps : i64

  scf.for %i = %zero to %nsteps step %one : i64 {
    %row_word = arith.muli %i, %step_words : i64
    %row = llvm.getelementptr %steps[%row_word] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %kernel_at = llvm.getelementptr %row[$step_kernel] : (!llvm.ptr) -> !llvm.ptr, i64
    %kernel = llvm.load %kernel_at : !llvm.ptr -> !llvm.ptr
    %refs_at = llvm.getelementptr %row[$step_refs] : (!llvm.ptr) -> !llvm.ptr, i64
    %refs = llvm.load %refs_at : !llvm.ptr -> !llvm.ptr
    %nrefs_at = llvm.getelementptr %row[$step_nrefs] : (!llvm.ptr) -> !llvm.ptr, i64
    %nrefs = llvm.load %nrefs_at : !llvm.ptr -> i64
    %dims_at = llvm.getelementptr %row[$step_dims] : (!llvm.ptr) -> !llvm.ptr, i64
    %dims = llvm.load %dims_at : !llvm.ptr -> !llvm.ptr
    %flags_at = llvm.getelementptr %row[$step_flags] : (!llvm.ptr) -> !llvm.ptr, i64
    %flags = llvm.load %flags_at : !llvm.ptr -> i64

    scf.for %r = %zero to %nrefs step %one : i64 {
      %ref_word = arith.muli %r, %ref_words : i64
      %ref = llvm.getelementptr %refs[%ref_word] : (!llvm.ptr, i64) -> !llvm.ptr, i64
      %index_at = llvm.getelementptr %ref[$ref_base] : (!llvm.ptr) -> !llvm.ptr, i64
      %index = llvm.load %index_at : !llvm.ptr -> i64
      %offset_at = llvm.getelementptr %ref[$ref_offset] : (!llvm.ptr) -> !llvm.ptr, i64
      %offset = llvm.load %offset_at : !llvm.ptr -> i64
      %base_at = llvm.getelementptr %bases[%index] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.ptr
      %base = llvm.load %base_at : !llvm.ptr -> !llvm.ptr
      %buffer = llvm.getelementptr %base[%offset] : (!llvm.ptr, i64) -> !llvm.ptr, i8
      %slot = llvm.getelementptr %buffers[%r] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.ptr
      llvm.store %buffer, %slot : !llvm.ptr, !llvm.ptr
    }

    %entry = arith.addi %mine, %i : i64
    %begin = arith.muli %entry, %two : i64
    %end = arith.addi %begin, %one : i64
    llvm.call @stamp(%times, %begin) : (!llvm.ptr, i64) -> ()
    llvm.call %kernel(%buffers, %dims, %tid, %threads) : !llvm.ptr, (!llvm.ptr, !llvm.ptr, i64, i64) -> ()
    llvm.call @stamp(%times, %end) : (!llvm.ptr, i64) -> ()

    %barrier_bit = arith.constant $barrier_after : i64
    %barrier_flag = arith.andi %flags, %barrier_bit : i64
    %asked = arith.cmpi ne, %barrier_flag, %zero : i64
    %meet = arith.andi %asked, %together : i1
    scf.if %meet {
      llvm.call @barrier(%job, %threads, %spin) : (!llvm.ptr, i64, i64) -> ()
    }
  }
  llvm.return
}
""")

_TEAM = Template("""
llvm.func internal @post(%slot: !llvm.ptr, %job: !llvm.ptr, %tid: i64) {
  %job_at = llvm.getelementptr %slot[$slot_job] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %job, %job_at : !llvm.ptr, !llvm.ptr
  %tid_at = llvm.getelementptr %slot[$slot_tid] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %tid, %tid_at : i64, !llvm.ptr
  %posted = llvm.getelementptr %slot[$posted_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  llvm.call @advance(%posted) : (!llvm.ptr) -> ()
  llvm.return
}

llvm.func @$launch_symbol(%team: !llvm.ptr, %plan: !llvm.ptr, %bases: !llvm.ptr, %times: !llvm.ptr) {
  %zero = arith.constant 0 : i64
  %none = arith.constant 0 : i32
  %one = arith.constant 1 : i64
  %job_bytes = arith.constant $job_size : i64
  %job = llvm.alloca %job_bytes x i8 {alignment = $line_bytes : i64} : (i64) -> !llvm.ptr
  %threads_at = llvm.getelementptr %team[$team_threads] : (!llvm.ptr) -> !llvm.ptr, i64
  %threads = llvm.load %threads_at : !llvm.ptr -> i64
  %spin_at = llvm.getelementptr %team[$team_spin] : (!llvm.ptr) -> !llvm.ptr, i64
  %spin = llvm.load %spin_at : !llvm.ptr -> i64
  %slots = llvm.getelementptr %team[$team_slots] : (!llvm.ptr) -> !llvm.ptr, i64

  llvm.store %plan, %job : !llvm.ptr, !llvm.ptr
  %job_bases = llvm.getelementptr %job[$job_bases] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %bases, %job_bases : !llvm.ptr, !llvm.ptr
  %job_times = llvm.getelementptr %job[$job_times] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %times, %job_times : !llvm.ptr, !llvm.ptr
  %job_threads = llvm.getelementptr %job[$job_threads] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %threads, %job_threads : i64, !llvm.ptr
  %job_spin = llvm.getelementptr %job[$job_spin] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %spin, %job_spin : i64, !llvm.ptr
  %arrived = llvm.getelementptr %job[$arrived_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  llvm.store %none, %arrived : i32, !llvm.ptr
  %generation = llvm.getelementptr %job[$generation_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  llvm.store %none, %generation : i32, !llvm.ptr
  %sleepers = llvm.getelementptr %generation[$sleepers_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  llvm.store %none, %sleepers : i32, !llvm.ptr

  %helpers = arith.subi %threads, %one : i64
  scf.for %w = %zero to %helpers step %one : i64 {
    %slot_at = llvm.getelementptr %slots[%w] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %slot = llvm.load %slot_at : !llvm.ptr -> !llvm.ptr
    %tid = arith.addi %w, %one : i64
    llvm.call @post(%slot, %job, %tid) : (!llvm.ptr, !llvm.ptr, i64) -> ()
  }
  llvm.call @run(%job, %zero) : (!llvm.ptr, i64) -> ()
  scf.for %w = %zero to %helpers step %one : i64 {
    %slot_at = llvm.getelementptr %slots[%w] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %slot = llvm.load %slot_at : !llvm.ptr -> !llvm.ptr
    %posted_at = llvm.getelementptr %slot[$posted_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
    %posted = llvm.load %posted_at : !llvm.ptr -> i32
    %step = arith.constant 1 : i32
    %before = arith.subi %posted, %step : i32
    %finished = llvm.getelementptr %slot[$finished_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
    llvm.call @wait(%finished, %before, %spin) : (!llvm.ptr, i32, i64) -> ()
  }
  llvm.return
}

llvm.func @$stop_symbol(%slot: !llvm.ptr) {
  %null = llvm.mlir.zero : !llvm.ptr
  %zero = arith.constant 0 : i64
  llvm.call @post(%slot, %null, %zero) : (!llvm.ptr, !llvm.ptr, i64) -> ()
  llvm.return
}

llvm.func @$worker_symbol(%slot: !llvm.ptr) {
  %null = llvm.mlir.zero : !llvm.ptr
  %step = arith.constant 1 : i32
  %posted = llvm.getelementptr %slot[$posted_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  %finished = llvm.getelementptr %slot[$finished_bytes] : (!llvm.ptr) -> !llvm.ptr, i8
  %job_at = llvm.getelementptr %slot[$slot_job] : (!llvm.ptr) -> !llvm.ptr, i64
  %tid_at = llvm.getelementptr %slot[$slot_tid] : (!llvm.ptr) -> !llvm.ptr, i64
  %spin_at = llvm.getelementptr %slot[$slot_spin] : (!llvm.ptr) -> !llvm.ptr, i64
  %first = llvm.load %finished : !llvm.ptr -> i32
  %last = scf.while (%seen = %first) : (i32) -> i32 {
    %spin = llvm.load %spin_at : !llvm.ptr -> i64
    llvm.call @wait(%posted, %seen, %spin) : (!llvm.ptr, i32, i64) -> ()
    %job = llvm.load %job_at : !llvm.ptr -> !llvm.ptr
    %work = llvm.icmp "ne" %job, %null : !llvm.ptr
    scf.condition(%work) %seen : i32
  } do {
  ^bb0(%seen: i32):
    %job = llvm.load %job_at : !llvm.ptr -> !llvm.ptr
    %tid = llvm.load %tid_at : !llvm.ptr -> i64
    llvm.call @run(%job, %tid) : (!llvm.ptr, i64) -> ()
    llvm.call @advance(%finished) : (!llvm.ptr) -> ()
    %next = arith.addi %seen, %step : i32
    scf.yield %next : i32
  }
  llvm.return
}
""")


def driver_text(target: CpuTarget) -> str:
    """The driver as MLIR text for the target's architecture; compile it for the architecture's generic class."""
    arch = target.triple.partition("-")[0]
    values: dict[str, int | str] = {
        "futex": _FUTEX[arch],
        "pause": _PAUSE[arch],
        "pause_symbol": abi.PAUSE,
        "launch_symbol": abi.LAUNCH,
        "stop_symbol": abi.STOP,
        "worker_symbol": abi.WORKER,
        "line_bytes": abi.LINE_BYTES,
        "sleepers_bytes": abi.SLEEPERS_BYTES,
        "job_bases": _JOB_BASES,
        "job_times": _JOB_TIMES,
        "job_threads": _JOB_THREADS,
        "job_spin": _JOB_SPIN,
        "arrived_bytes": _JOB_ARRIVED_BYTES,
        "generation_bytes": _JOB_GENERATION_BYTES,
        "job_size": _JOB_BYTES,
        "plan_nsteps": abi.PLAN_NSTEPS,
        "plan_max_refs": abi.PLAN_MAX_REFS,
        "plan_steps": abi.PLAN_STEPS,
        "step_words": abi.STEP_WORDS,
        "step_kernel": abi.STEP_KERNEL,
        "step_refs": abi.STEP_REFS,
        "step_nrefs": abi.STEP_NREFS,
        "step_dims": abi.STEP_DIMS,
        "step_flags": abi.STEP_FLAGS,
        "barrier_after": abi.BARRIER_AFTER,
        "ref_words": abi.REF_WORDS,
        "ref_base": abi.REF_BASE,
        "ref_offset": abi.REF_OFFSET,
        "team_threads": abi.TEAM_THREADS,
        "team_spin": abi.TEAM_SPIN,
        "team_slots": abi.TEAM_SLOTS,
        "slot_job": abi.SLOT_JOB,
        "slot_tid": abi.SLOT_TID,
        "slot_spin": abi.SLOT_SPIN,
        "posted_bytes": abi.SLOT_POSTED_BYTES,
        "finished_bytes": abi.SLOT_FINISHED_BYTES,
    }
    return "".join(part.substitute(values) for part in (_WAITING, _STEPS, _TEAM))
