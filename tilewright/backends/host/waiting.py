"""How threads wait for each other, as MLIR text for the driver: spin briefly, then sleep.

All waits (a barrier, a worker for its next plan, the caller for its workers) are one: on a counter that somebody will
advance, beside the number of threads asleep on it. The waiter pauses a bounded number of times, then adds itself to the
sleepers and sleeps in futex while the counter is what it last saw. Who advances the counter does so first and looks at
the sleepers second, both sequentially consistent, and futex compares the counter under the kernel's lock: so either the
sleeper sees the new count or the advancer sees the sleeper, and no wake-up is lost (U. Drepper, "Futexes are tricky",
2011).

How often to pause adapts. Where pausing is in vain, because another process has the core or two threads of the team
share one, it soon becomes a few microseconds, about what going to sleep costs anyway; where the others arrive in time
it grows back.
"""

from __future__ import annotations

from string import Template

# Linux: number of the futex system call, and the instruction that tells the core a loop is only waiting.
FUTEX = {"x86_64": 202, "aarch64": 98}
PAUSE = {
    "x86_64": 'llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()',
    "aarch64": 'llvm.call_intrinsic "llvm.aarch64.hint"(%yield) : (i32) -> ()',
}

WAITING = Template("""
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

// Returns when *counter is no longer `seen`; what its advancer wrote before is then visible. Pauses up to `spin` times
// before it sleeps, and returns how often to pause the next time: twice as often after a wait that pausing outlasted,
// half as often after one that it did not, between `most` and an eighth of it.
llvm.func internal @wait(%counter: !llvm.ptr, %seen: i32, %spin: i64, %most: i64) -> i64 {
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
  %next_spin = scf.if %left#1 -> i64 {
    %sleepers = byte_offset %counter[$sleepers_bytes]
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
    %half = arith.shrui %spin, %one : i64
    %three = arith.constant 3 : i64
    %least = arith.shrui %most, %three : i64
    %shorter = arith.maxsi %half, %least : i64
    scf.yield %shorter : i64
  } else {
    %doubled = arith.shli %spin, %one : i64
    %longer = arith.ori %doubled, %one : i64
    %bounded = arith.minsi %longer, %most : i64
    scf.yield %bounded : i64
  }
  llvm.return %next_spin : i64
}

llvm.func internal @advance(%counter: !llvm.ptr) {
  %zero = arith.constant 0 : i32
  %one = arith.constant 1 : i32
  %old = llvm.atomicrmw add %counter, %one seq_cst : !llvm.ptr, i32
  %at = byte_offset %counter[$sleepers_bytes]
  %sleepers = llvm.load %at atomic seq_cst {alignment = 4 : i64} : !llvm.ptr -> i32
  %asleep = arith.cmpi ne, %sleepers, %zero : i32
  scf.if %asleep {
    llvm.call @futex_wake_all(%counter) : (!llvm.ptr) -> ()
  }
  llvm.return
}
""")
