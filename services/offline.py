"""Changing teachers while nobody serves them: the same checks in this process, then the same durable record."""

from __future__ import annotations

import time

from teacher_server.contract import OperatorControl
from teacher_server.errors import GateRefused, UnknownTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import NO_ITEMS, AliasRequest, GateFloors, Promotion
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster

_APP = "offline"


class OfflineControl(OperatorControl):
    """An OperatorControl without a service. The new version is loaded and tested here before an alias may point to it;
    a gate with floors refuses, because nobody has recorded views."""

    def __init__(self, library: TeacherLibrary) -> None:
        self._library = library
        self._roster = Roster(library)

    def promote(
        self, name: str, version: int, who: str, *, floors: GateFloors | None = None, expected: int | None = None
    ) -> Promotion:
        """Points an alias at another version once that has passed its self-test in this process."""
        return self._move(AliasRequest(name, version, who, expected), floors or GateFloors())

    def rollback(self, name: str, who: str, *, expected: int | None = None) -> Promotion:
        """Points an alias back at the version that it had before its last promotion."""
        return self._move(AliasRequest(name, None, who, expected), GateFloors())

    def evict(self, teacher: TeacherId, who: str) -> int:  # noqa: ARG002 the contract's signature
        """0: nothing holds it. Raises as every evict does for what is needed or unknown."""
        known = self._library.versions(teacher.name)
        if teacher.version not in known:
            raise UnknownTeacher(str(teacher), tuple(f"{teacher.name}@{version}" for version in known))
        self._roster.check_unused(teacher)
        return 0

    def _move(self, request: AliasRequest, floors: GateFloors) -> Promotion:
        self._roster.abort_all(_APP)  # a command that was killed in the middle left its proposal pending
        proposal = self._roster.begin(request, _APP)
        if proposal.settled:
            return Promotion(proposal.teacher, proposal.previous)
        began = time.monotonic()
        try:
            if reasons := NO_ITEMS.refusals(floors):
                raise GateRefused(str(proposal.teacher), reasons)
            self._test(proposal.teacher)
            prepared = time.monotonic()
            self._roster.commit(proposal)
        except BaseException:
            self._roster.abort(request.name, _APP)
            raise
        seconds = {"prepare": prepared - began, "commit": time.monotonic() - prepared}
        return Promotion(proposal.teacher, proposal.previous, None, seconds)

    def _test(self, teacher: TeacherId) -> None:
        from teacher_server.engine.ensemble import load_teacher  # needs torch

        load_teacher(self._library.entry(teacher))
