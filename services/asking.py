"""The gateway's questions under way, and whether teachers answer. The event loop never waits here: threads do.

body ──► [thread: parse ──► resolve the name ──► ask the teacher ──► check ──► encode] ──► response
                                                    └── given up when the client goes away
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from data.errors import StoreError
from services.bodies import read_body
from services.directory import Directory
from services.lanes import Lane, Shares, on_disconnect
from services.oip import Encoded, Question, encode_reply, parse_question
from services.stores import Stores, without_path
from teacher_server.contract import OPERATOR_TOKEN_VARIABLE, TOKEN_VARIABLE, PendingReply, TeacherClient
from teacher_server.errors import BadQuery, TeacherError, TeacherNotResident, TeacherUnavailable
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherReply, check_reply, new_request_id

READY_FOR_S = 1.0
_LOADING_PAUSE_S = 0.2
_AT_THE_DOOR = 4  # questions that are read although all places are taken: they may be another run's
_RUN_OF_OTHERS = "http"  # callers that name no run share one run's part of a busy teacher


@dataclass(frozen=True)
class GatewayOptions:
    """Limits and bearer tokens. token: may ask. operator_token: may also change what is served. See services.guards."""

    token: str | None = field(default=None, repr=False)
    operator_token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 32 * 2**20
    max_in_flight: int = 16
    max_control: int = 16
    max_waiting: int = 32  # for teachers to load: leases, promotions
    body_timeout_s: float = 30.0
    answer_timeout_s: float = 30.0

    @classmethod
    def from_environment(cls) -> GatewayOptions:
        """With the tokens that the environment holds; an empty one is none."""
        return cls(os.environ.get(TOKEN_VARIABLE) or None, os.environ.get(OPERATOR_TOKEN_VARIABLE) or None)

    @property
    def has_token(self) -> bool:
        """Whether a request without a token is refused."""
        return self.token is not None or self.operator_token is not None


class Asking:
    """Questions under way: at most max_in_flight, and a few whose run is not known yet, bodies included, so memory has
    a bound. A run has no more of the places than its part, so that a greedy one leaves room for the others."""

    def __init__(self, client: TeacherClient, directory: Directory, stores_root: Path, options: GatewayOptions) -> None:
        self._client = client
        self._directory = directory
        self._stores = Stores(stores_root)
        self._options = options
        self._lane = Lane("questions", options.max_in_flight + _AT_THE_DOOR)
        self._shares = Shares("questions", options.max_in_flight)

    def close(self) -> None:
        """Frees the threads and the client."""
        self._lane.close()
        self._client.close()

    async def infer(self, request: Request, teacher: str, json_length: str | None) -> Encoded:
        """The response to a question. teacher: `name` or `name@version`. json_length: the header of that name.

        Raises the errors that services.errors lists.
        """
        with self._lane.place() as place:
            body = await read_body(
                request, max_bytes=self._options.max_body_bytes, timeout_s=self._options.body_timeout_s
            )
            patience = _Patience()
            async with on_disconnect(request, patience.give_up):
                return await place.run(self._answer, teacher, body, json_length, patience)

    def _answer(self, teacher: str, body: memoryview, json_length: str | None, patience: _Patience) -> Encoded:
        """Blocks; runs in a thread."""
        question = parse_question(body, json_length)
        entry = self._directory.resolve(teacher)
        query = self._query(entry, question)
        try:
            with self._shares.hold(query.run):
                reply = self._ask(query, entry, patience)
        except StoreError as error:
            assert question.request.parameters.store is not None  # nothing else opens a store
            raise without_path(error, question.request.parameters.store) from None
        return encode_reply(question.request, reply)

    def _query(self, entry: TeacherEntry, question: Question) -> TeacherQuery:
        given = question.request.parameters
        if (given.store is None) != (question.views is None):
            raise BadQuery("views come with the name of their store in parameters.store, and a store with views")
        views = question.views
        return TeacherQuery(
            request_id=new_request_id(),
            teacher=entry.teacher,
            temperature=given.temperature,
            views_per_item=entry.card.views_per_item if views is None else views.views_per_item,
            run=given.run or _RUN_OF_OTHERS,
            views=None if views is None else views.to_bytes(),
            store=None if given.store is None else str(self._stores.path(given.store)),
            pixels=question.pixels,
            want_features=question.wants_features,
            dtype=given.dtype,
            timeout_s=given.limit_s(self._options.answer_timeout_s),
            weight=given.weight,
        )

    def _ask(self, query: TeacherQuery, entry: TeacherEntry, patience: _Patience) -> TeacherReply:
        """A version that the replica is still loading is asked again, overload is not."""
        deadline = time.monotonic() + query.timeout_s
        while True:
            pending = self._client.submit(query)
            patience.wait_for(pending)
            try:
                reply = pending.result(timeout_s=max(0.0, deadline - time.monotonic()))
                return check_reply(query, reply, digest=entry.digest, num_classes=len(entry.card.classes))
            except TeacherNotResident:
                if time.monotonic() + _LOADING_PAUSE_S > deadline or patience.pause(_LOADING_PAUSE_S):
                    raise
            except TeacherUnavailable:
                pending.cancel()  # nobody waits for it any more
                raise


class _Patience:
    """Lets the event loop end a wait in a thread: the question is cancelled, and not asked again."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._pending: PendingReply | None = None

    def wait_for(self, pending: PendingReply) -> None:
        self._pending = pending
        if self._over.is_set():
            pending.cancel()

    def pause(self, seconds: float) -> bool:
        """Whether it is over."""
        return self._over.wait(seconds)

    def give_up(self) -> None:
        self._over.set()
        if self._pending is not None:
            self._pending.cancel()


class Readiness:
    """Asks the teachers at most once a second, however often it is asked, and never twice at a time."""

    def __init__(
        self, check_teachers: Callable[[], frozenset[TeacherId]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._check_teachers = check_teachers
        self._clock = clock
        self._turn = asyncio.Lock()
        self._checked_at = float("-inf")
        self._found: frozenset[TeacherId] | TeacherError = frozenset()

    async def check(self) -> frozenset[TeacherId]:
        """The versions that are loaded. Raises TeacherUnavailable while no teacher answers."""
        async with self._turn:
            if self._clock() - self._checked_at >= READY_FOR_S:
                self._found = await asyncio.to_thread(self._look)
                self._checked_at = self._clock()
        if isinstance(self._found, TeacherError):
            raise copy.copy(self._found)  # raised again and again, it would keep the frames of all who asked
        return self._found

    def _look(self) -> frozenset[TeacherId] | TeacherError:
        try:
            return self._check_teachers()
        except TeacherError as error:
            return error
