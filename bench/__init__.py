"""Benchmarks: us and the peers side by side in one run, each round interleaved with the machine's measured ceilings."""
