"""An exception that came at a bad moment, raised again where it does no harm.

Python runs a signal's handler in the main thread, wherever that is: in a host callback, too, where XLA calls it from
the thread that runs the program, as XLA:CPU does with small ones. Ctrl-C, or the `sys.exit` of a handler of SIGTERM,
then comes out of the callback. JAX makes a ValueError of whatever does, and whoever swallowed it would keep the process
from ending.
"""

import signal
import sys
import threading
import traceback
import types
from typing import Any, Final

_PAUSE: Final = 0.01
"""Seconds after which it is tried to raise it: a step is over by then, or the next try comes."""
_CALLBACKS: Final = "jax._src.callback"
"""The module of JAX's half of a host callback, in which an exception does as much harm as in ours."""


def raise_later(error: BaseException) -> bool:
    """Raise `error` in the main thread, as soon as that is in no host callback.

    It comes as from the handler of a signal, so that it interrupts what the thread waits for: SIGINT, whose own handler
    is back in its place when it has come.

    Args:
      error: what was raised in the main thread.

    Returns:
      Whether it will be; False in any other thread, where no signal's handler can have raised it.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        return False
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGINT)
        else:
            signal.pthread_kill(main.ident or 0, signal.SIGINT)

    def wait() -> None:
        timer = threading.Timer(_PAUSE, interrupt)
        timer.daemon = True
        timer.start()

    def come(number: int, frame: types.FrameType | None) -> None:
        del number
        if in_callback(frame):
            wait()
            return
        # None: it was not Python that set it, and Python cannot set it again.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        raise error

    signal.signal(signal.SIGINT, come)
    wait()
    return True


def is_a_handlers(error: BaseException) -> bool:
    """Whether a signal's handler raised it, as one of SIGALRM does that ends what takes too long: no failure of ours.

    What is no Exception is taken for one: KeyboardInterrupt comes from a handler that is not written in Python.
    """
    if not isinstance(error, Exception):
        return True
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {_code(handler) for handler in map(signal.getsignal, signal.valid_signals()) if callable(handler)} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _code(handler: Any) -> types.CodeType | None:
    """What runs when a handler is called: a function, a method, a partial of one, or an object that can be called."""
    handler = getattr(handler, "func", handler)
    found = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    return found if isinstance(found, types.CodeType) else None


def in_callback(frame: types.FrameType | None) -> bool:
    """Whether JAX is calling the host in `frame`, or in a frame that led there."""
    while frame is not None:
        if frame.f_globals.get("__name__") == _CALLBACKS:
            return True
        frame = frame.f_back
    return False
