"""One run a folder."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from genfast._errors import RunError, WriteError, option

_log = logging.getLogger("genfast")

LOCK = ".lock"


class RunLock:
    """Held while a run writes to a folder. The system releases it when the process ends, however it ends.

    Raises:
        RunError: another run holds it; names its process, host and start.
        WriteError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._handle = self._acquire()
        facts = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime()),
        }
        with contextlib.suppress(OSError):  # a full disk is told by the files that matter
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(facts).encode(), 0)

    def _acquire(self) -> int:
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise WriteError(f"cannot write to the folder {self.path.parent}: {error.strerror}") from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(handle):
                    return handle
            except BlockingIOError as error:
                holder = self._holder(handle)
                os.close(handle)
                raise RunError(
                    f"{self.path.parent} is in use by another run{holder}; wait for its end or take another "
                    f"{option('out')}"
                ) from error
            except OSError as error:  # a file system without locks
                _log.warning("cannot lock %s (%s): start no second run there", self.path.parent, error.strerror)
                return handle
            os.close(handle)  # its holder removed it between our open and our lock

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    @staticmethod
    def _holder(handle: int) -> str:
        try:
            facts = json.loads(os.pread(handle, 4096, 0))
            return f" (process {facts['pid']} on {facts['host']}, started {facts['started']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def release(self) -> None:
        """Let others in."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "RunLock":  # noqa: PYI034  (Self came with Python 3.11)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
