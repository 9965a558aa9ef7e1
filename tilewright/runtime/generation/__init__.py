"""The host half of text generation: pages of the cache, samplers, the engine, speculation, text.

Everything here stands on one protocol, `step.py`: a compiled program over a flat token axis that owns the cache's
memory. At import it needs numpy alone; tokenizers, jinja2 and llguidance are imported where they are used.
"""
