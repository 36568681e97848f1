"""The base of every exception class that optwrap defines.

    OptwrapError
      ReplayError      the norms of a run cannot be read (replay.py); `python -m optwrap.replay` prints the message
      TransportError   a report got no usable answer (_monitor/sending/transport.py); never reaches the training program

Wrong arguments raise Python's own ValueError and TypeError.
"""


class OptwrapError(Exception):
    """Base class of optwrap's own exceptions."""
