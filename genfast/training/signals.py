"""SIGINT and SIGTERM end a run at the end of a step, or within a long one."""

import _thread
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_PATIENCE = 0.5


class Signals:
    """Notes a signal during a `with` block, so that the loop can end in good order.

    A step that has not ended half a second later is broken off with KeyboardInterrupt; so is everything by a second
    signal. Only the main thread gets signals; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._in_step = False
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals in this block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Mark a block that a signal may break off when it takes long."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._timer is None:
            self.number = number
            self._timer = threading.Timer(_PATIENCE, self._break_off)
            self._timer.daemon = True
            self._timer.start()
        elif self._timer.is_alive() or self._in_step:
            raise KeyboardInterrupt

    def _break_off(self) -> None:
        if self._in_step:
            _thread.interrupt_main(signal.Signals(self.number or signal.SIGINT))
