"""The program that is evaluated: its jaxprs, and the user's lines that they come from.

Modules, lowest first: source jaxprs mapped.
"""
