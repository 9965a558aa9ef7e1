"""Benchmarks: us and the peers side by side in one run, each round interleaved with the machine's measured ceilings.

`cases` says what is timed, `contestants` who takes part (adding a peer is adding a class there), `server` runs one of
them in a process of its own, `rounds` takes turns, `results` reads the numbers and writes them down.
"""
