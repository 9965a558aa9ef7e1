"""The native driver, generated as MLIR text: walks a step plan on a team of threads, with barriers and workers.

It goes through the same compiler as kernels, so no system compiler is needed. `tilewright.ir.native_abi` says what
lies where in memory; the functions exported are named there.

*Lifetime.* A job lies on the launching thread's stack. Nobody touches it after advancing its own slot's `finished`,
and slots live as long as their workers.

*Clock.* Steps are timed by clock_gettime(CLOCK_MONOTONIC), 20-40 ns through the vDSO. A cycle counter would be a
little cheaper, but needs calibrating, is not readable in user mode on every machine, and its readings could not be put
beside Python's own timestamps.
"""

from __future__ import annotations

import re
from string import Template

from tilewright.backends.host.mlir import CpuTarget
from tilewright.backends.host.waiting import FUTEX, PAUSE, WAITING
from tilewright.ir import native_abi as abi

# The job, on the launching thread's stack: what the team shares for one plan. Words, then two lines to synchronise on.
_JOB_PLAN, _JOB_BASES, _JOB_TIMES, _JOB_THREADS, _JOB_SPIN = range(5)
_JOB_ARRIVED_BYTES = 64
_JOB_GENERATION_BYTES = 128
_JOB_BYTES = 192

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
llvm.func internal @barrier(%job: !llvm.ptr, %threads: i64, %spin: i64, %most: i64) -> i64 {
  %none = arith.constant 0 : i32
  %one = arith.constant 1 : i32
  %generation = byte_offset %job[$generation_bytes]
  %arrived = byte_offset %job[$arrived_bytes]
  %seen = llvm.load %generation atomic acquire {alignment = 4 : i64} : !llvm.ptr -> i32
  %before = llvm.atomicrmw add %arrived, %one seq_cst : !llvm.ptr, i32
  %all = arith.trunci %threads : i64 to i32
  %now = arith.addi %before, %one : i32
  %last = arith.cmpi eq, %now, %all : i32
  %next_spin = scf.if %last -> i64 {
    llvm.store %none, %arrived atomic monotonic {alignment = 4 : i64} : i32, !llvm.ptr
    llvm.call @advance(%generation) : (!llvm.ptr) -> ()
    scf.yield %spin : i64
  } else {
    %waited = llvm.call @wait(%generation, %seen, %spin, %most) : (!llvm.ptr, i32, i64, i64) -> i64
    scf.yield %waited : i64
  }
  llvm.return %next_spin : i64
}

// One thread's walk over the plan. Buffer addresses are resolved into a row on its own stack.
llvm.func internal @run(%job: !llvm.ptr, %tid: i64) -> i64 {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %two = arith.constant 2 : i64
  %plan = llvm.load %job : !llvm.ptr -> !llvm.ptr
  %bases = load_word %job[$job_bases] : !llvm.ptr
  %times = load_word %job[$job_times] : !llvm.ptr
  %threads = load_word %job[$job_threads] : i64
  %most = load_word %job[$job_spin] : i64
  %together = arith.cmpi sgt, %threads, %one : i64

  %nsteps = load_word %plan[$plan_nsteps] : i64
  %max_refs = load_word %plan[$plan_max_refs] : i64
  %steps = load_word %plan[$plan_steps] : !llvm.ptr
  %buffers = llvm.alloca %max_refs x !llvm.ptr : (i64) -> !llvm.ptr
  %step_words = arith.constant $step_words : i64
  %ref_words = arith.constant $ref_words : i64
  %mine = arith.muli %tid, %nsteps : i64

  %last_spin = scf.for %i = %zero to %nsteps step %one iter_args(%spin = %most) -> (i64) : i64 {
    %row_word = arith.muli %i, %step_words : i64
    %row = llvm.getelementptr %steps[%row_word] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %kernel = load_word %row[$step_kernel] : !llvm.ptr
    %refs = load_word %row[$step_refs] : !llvm.ptr
    %nrefs = load_word %row[$step_nrefs] : i64
    %dims = load_word %row[$step_dims] : !llvm.ptr
    %flags = load_word %row[$step_flags] : i64

    scf.for %r = %zero to %nrefs step %one : i64 {
      %ref_word = arith.muli %r, %ref_words : i64
      %ref = llvm.getelementptr %refs[%ref_word] : (!llvm.ptr, i64) -> !llvm.ptr, i64
      %index = load_word %ref[$ref_base] : i64
      %offset = load_word %ref[$ref_offset] : i64
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
    %next_spin = scf.if %meet -> i64 {
      %waited = llvm.call @barrier(%job, %threads, %spin, %most) : (!llvm.ptr, i64, i64, i64) -> i64
      scf.yield %waited : i64
    } else {
      scf.yield %spin : i64
    }
    scf.yield %next_spin : i64
  }
  llvm.return %last_spin : i64
}
""")

_TEAM = Template("""
llvm.func internal @post(%slot: !llvm.ptr, %job: !llvm.ptr, %tid: i64) {
  store_word %job, %slot[$slot_job] : !llvm.ptr
  store_word %tid, %slot[$slot_tid] : i64
  %posted = byte_offset %slot[$posted_bytes]
  llvm.call @advance(%posted) : (!llvm.ptr) -> ()
  llvm.return
}

llvm.func @$launch_symbol(%team: !llvm.ptr, %plan: !llvm.ptr, %bases: !llvm.ptr, %times: !llvm.ptr) {
  %zero = arith.constant 0 : i64
  %none = arith.constant 0 : i32
  %one = arith.constant 1 : i64
  %job_bytes = arith.constant $job_size : i64
  %job = llvm.alloca %job_bytes x i8 {alignment = $line_bytes : i64} : (i64) -> !llvm.ptr
  %threads = load_word %team[$team_threads] : i64
  %most = load_word %team[$team_spin] : i64
  %slots = llvm.getelementptr %team[$team_slots] : (!llvm.ptr) -> !llvm.ptr, i64

  llvm.store %plan, %job : !llvm.ptr, !llvm.ptr
  store_word %bases, %job[$job_bases] : !llvm.ptr
  store_word %times, %job[$job_times] : !llvm.ptr
  store_word %threads, %job[$job_threads] : i64
  store_word %most, %job[$job_spin] : i64
  %arrived = byte_offset %job[$arrived_bytes]
  llvm.store %none, %arrived : i32, !llvm.ptr
  %generation = byte_offset %job[$generation_bytes]
  llvm.store %none, %generation : i32, !llvm.ptr
  %sleepers = byte_offset %generation[$sleepers_bytes]
  llvm.store %none, %sleepers : i32, !llvm.ptr

  %others = arith.subi %threads, %one : i64
  scf.for %w = %zero to %others step %one : i64 {
    %slot_at = llvm.getelementptr %slots[%w] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %slot = llvm.load %slot_at : !llvm.ptr -> !llvm.ptr
    %tid = arith.addi %w, %one : i64
    llvm.call @post(%slot, %job, %tid) : (!llvm.ptr, !llvm.ptr, i64) -> ()
  }
  %own_spin = llvm.call @run(%job, %zero) : (!llvm.ptr, i64) -> i64
  %last_spin = scf.for %w = %zero to %others step %one iter_args(%spin = %own_spin) -> (i64) : i64 {
    %slot_at = llvm.getelementptr %slots[%w] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %slot = llvm.load %slot_at : !llvm.ptr -> !llvm.ptr
    %posted_at = byte_offset %slot[$posted_bytes]
    %posted = llvm.load %posted_at : !llvm.ptr -> i32
    %step = arith.constant 1 : i32
    %before = arith.subi %posted, %step : i32
    %finished = byte_offset %slot[$finished_bytes]
    %waited = llvm.call @wait(%finished, %before, %spin, %most) : (!llvm.ptr, i32, i64, i64) -> i64
    scf.yield %waited : i64
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
  %posted = byte_offset %slot[$posted_bytes]
  %finished = byte_offset %slot[$finished_bytes]
  %spin = load_word %slot[$slot_spin] : i64
  %first = llvm.load %finished : !llvm.ptr -> i32
  %last:2 = scf.while (%seen = %first) : (i32) -> (i32, !llvm.ptr) {
    %unused = llvm.call @wait(%posted, %seen, %spin, %spin) : (!llvm.ptr, i32, i64, i64) -> i64
    %job = load_word %slot[$slot_job] : !llvm.ptr
    %work = llvm.icmp "ne" %job, %null : !llvm.ptr
    scf.condition(%work) %seen, %job : i32, !llvm.ptr
  } do {
  ^bb0(%seen: i32, %job: !llvm.ptr):
    %tid = load_word %slot[$slot_tid] : i64
    %own_spin = llvm.call @run(%job, %tid) : (!llvm.ptr, i64) -> i64
    llvm.call @advance(%finished) : (!llvm.ptr) -> ()
    %next = arith.addi %seen, %step : i32
    scf.yield %next : i32
  }
  llvm.return
}
""")

# Spelled out for MLIR by `_expand`: an access to a word of a structure, and an address within one.
_LOAD_WORD = re.compile(r"(%\w+) = load_word (%\w+)\[(\d+)\] : (\S+)")
_STORE_WORD = re.compile(r"store_word (%\w+), (%\w+)\[(\d+)\] : (\S+)")
_BYTE_OFFSET = re.compile(r"byte_offset (%\w+)\[(\d+)\]")


def _expand(text: str) -> str:
    address = r"llvm.getelementptr \2[\3] : (!llvm.ptr) -> !llvm.ptr, i64"
    text = _LOAD_WORD.sub(rf"\1_at = {address}\n  \1 = llvm.load \1_at : !llvm.ptr -> \4", text)
    text = _STORE_WORD.sub(rf"\1_to\3 = {address}\n  llvm.store \1, \1_to\3 : \4, !llvm.ptr", text)
    return _BYTE_OFFSET.sub(r"llvm.getelementptr \1[\2] : (!llvm.ptr) -> !llvm.ptr, i8", text)


def driver_text(target: CpuTarget) -> str:
    """The driver as MLIR text for the target's architecture; compile it for the architecture's generic class."""
    arch = target.triple.partition("-")[0]
    values: dict[str, int | str] = {
        "futex": FUTEX[arch],
        "pause": PAUSE[arch],
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
    return _expand("".join(part.substitute(values) for part in (WAITING, _STEPS, _TEAM)))
