"""Examples of optwrap. Each is a program."""
