"""From a plan to what its training loop asks: who binds, who answers, and what a ledger does in between.

transport    binds             answers                   a ledger (record, auto) stands before who answers; with
serve        TeacherService    ServeTeacherClient        replay it is all there is, and the roster's file binds:
http         HttpRunControl    HttpTeacherClient         no service is needed
in_process   the roster file   InProcessTeacherClient
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from teacher_server.clients.http import HttpRunControl, HttpTeacherClient
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import TOKEN_VARIABLE, TeacherClient
from teacher_server.ledger.client import LedgerClient
from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster
from teacher_server.serve.deployment import TeacherService
from trainer.plan import Plan
from trainer.teacher_facts import TeacherFacts
from trainer.teaching import BoundTeacher, InputKind
from trainer.timeline import Binder, BlockControl


def token_from_environment() -> str | None:
    """The gateway's bearer token, if there is one."""
    return os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True)
class SignalMaker:
    """Makes the teacher signal of one worker's process. token: of the gateway."""

    plan: Plan
    run_id: str
    input_kind: InputKind
    token: str | None

    def make(self) -> BoundTeacher | None:
        """None for scratch."""
        config, ref = self.plan.config, self.plan.config.teacher_ref
        if ref is None:
            return None
        keep_last = config.on_teacher_loss != "wait"
        binder = Binder(
            self._control(),
            self.run_id,
            ref,
            recorded=self.plan.timeline,
            keep_last=keep_last,
            budget_s=config.teacher_budget_s,
        )
        ledger = None if config.ledger == "off" else self._ledger(config.ledger, binder)
        return BoundTeacher(
            self._client() if ledger is None else ledger,
            binder,
            config=config,
            run_id=self.run_id,
            store_path=self.plan.store_path,
            input_kind=self.input_kind,
            facts=self.plan.teacher or TeacherFacts(),
            ledger=ledger,
            replay_only=None if config.ledger in ("off", "replay") else lambda: self._ledger("replay", binder),
        )

    def _control(self) -> BlockControl:
        config, library_root = self.plan.config, self.plan.library_root
        if not config.asks_service:
            return Roster(TeacherLibrary(library_root))
        if config.teacher_transport == "http":
            return HttpRunControl(config.gateway, self.token)
        return TeacherService.connect(library_root)

    def _client(self) -> TeacherClient:
        config = self.plan.config
        if config.teacher_transport == "in_process":
            return InProcessTeacherClient(TeacherLibrary(self.plan.library_root))
        if config.teacher_transport == "http":
            return HttpTeacherClient(config.gateway, self.token)
        return TeacherService(self.plan.library_root).client()

    def _ledger(self, mode: Literal["record", "replay", "auto"], binder: Binder) -> LedgerClient:
        inner = None if mode == "replay" else self._client()
        return LedgerClient(self.plan.ledger_root, mode, inner=inner, digest_of=binder.digest_of)
