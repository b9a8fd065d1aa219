"""What an import can refuse. Needs neither torch nor Ray."""

from __future__ import annotations

from teacher_server.errors import TeacherError


class ImportRefused(TeacherError):
    """Arguments: the source as the user named it, what is wrong and what to do."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)

    def __str__(self) -> str:
        source, reason = self.args
        return f"{source} cannot be imported: {reason}"
