"""A run's claim on the teacher service, held by a thread: deploy or adopt, then renew until the run has ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from teacher_server.contract import RunControl
from teacher_server.errors import TeacherUnavailable
from teacher_server.protocol import TeacherRef
from teacher_server.roster.roster import LEASE_TTL_S

_ACQUIRE_LIMIT_S = 150.0  # longer than the service's own limit, whose error says more
_JOIN_S = 60.0  # a renewal under way takes milliseconds, a deployment seconds
logger = logging.getLogger(__name__)

_Control = TypeVar("_Control", bound=RunControl)


class TeacherLease(Generic[_Control]):
    """Use it as a context. The teachers are there after `wait`; on a cluster of its own a run need not wait, because
    its questions are repeated until they are answered. It outlasts a long validation and the final evaluation.

    connect: finds the service; called in the lease's thread. acquire: how the lease is taken, where the contract's way
    does not say enough.
    """

    def __init__(
        self,
        connect: Callable[[], _Control],
        run_id: str,
        ref: TeacherRef,
        acquire: Callable[[_Control], object] | None = None,
    ) -> None:
        self._connect = connect
        self._run_id = run_id
        self._ref = ref
        self._acquire = acquire if acquire is not None else lambda control: control.acquire(run_id, ref)
        self._control: _Control | None = None
        self._error: Exception | None = None
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="teacher-lease", daemon=True)

    def __enter__(self) -> TeacherLease[_Control]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=_JOIN_S)  # a Ray call of the thread after Ray's shutdown would end the process

    def check(self) -> None:
        """Raises what went wrong in getting the teachers, if anything did. Does not wait."""
        if self._error is not None:
            raise self._error

    def wait(self) -> _Control:
        """Returns once the teachers answer. Raises TeacherError otherwise."""
        if not self._ready.wait(_ACQUIRE_LIMIT_S):
            raise TeacherUnavailable(str(self._ref), _ACQUIRE_LIMIT_S, "the teacher service did not start")
        self.check()
        assert self._control is not None
        return self._control

    def release(self) -> None:
        """Gives the lease back; the last one ends what a run started. One that cannot be given back runs out: the run
        is over, and how it ended is not to be lost for that."""
        self._ended.set()  # a renewal after this would take it again
        try:
            self._connect().release(self._run_id)
        except TeacherUnavailable:
            pass
        except Exception as error:
            logger.warning("the lease of run %s was not given back and will run out: %s", self._run_id, error)

    def _hold(self) -> None:
        """The thread's body."""
        try:
            self._control = self._connect()
            self._acquire(self._control)
        except Exception as error:  # handed to the main thread, which raises it
            self._error = error
            return
        finally:
            self._ready.set()
        while not self._ended.wait(LEASE_TTL_S / 4):
            try:
                held = self._control.renew(self._run_id)
                if not held and not self._ended.is_set():  # expired, after a long stall, and not just released
                    self._acquire(self._control)
            except TeacherUnavailable:
                continue  # it is away; tried again, and binding a block of steps renews as well
            except Exception as error:  # the same for whatever else: a thread that died of it would let the lease end
                logger.warning("the lease of run %s could not be renewed, trying again: %s", self._run_id, error)
