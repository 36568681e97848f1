"""Training loops of other libraries, and of one's own, with the fewest lines that have them watched.

Each module runs with `python -m examples.loops.NAME`. docs/guides/your-own-loop.md shows them.
"""
