"""Everything that a teacher, its library, its service or its client can refuse.

    TeacherError(RuntimeError)
    ├── RetryableTeacherError      the same question may succeed later, or at another replica
    │   ├── TeacherNotResident     the replica has not loaded that version; it starts loading it
    │   ├── TeacherOverloaded      the replica's queue is full
    │   └── TeacherUnavailable     nobody answered in time
    │       └── NoReplyYet         the time is up, and the question is still on its way
    ├── UnknownTeacher             no such name or version in the library
    ├── TeacherMismatch            the card does not fit the run
    ├── NoCapacity                 the cluster has no room for a teacher replica
    ├── OverBudget                 the replica's memory budget has no room for that version
    ├── TeacherInUse               an alias or a live run is bound to the version that should go
    ├── AliasMoved                 the alias points elsewhere than the caller believed
    ├── GateRefused                the new version is too far from the old one
    ├── LibraryError               files on disk are missing, damaged or of another format
    │   ├── OtherFiles             they are not those that a run was bound to
    │   └── LibraryUnreadable      the disk or the memory failed, not they
    ├── LedgerError                a ledger is damaged, or was recorded from something else
    ├── NotInLedger                the ledger has no answer to this question
    ├── BadQuery                   the question itself is wrong
    └── BadReply                   an answer from another version, of another shape or temperature, or not finite

Every class pickles, because Ray carries it between processes: raw arguments go to `super().__init__`, the text is
made in `__str__`.
"""

from __future__ import annotations


class TeacherError(RuntimeError):
    """Base of all errors of this package."""


class RetryableTeacherError(TeacherError):
    """Repeating is safe, because logits are a pure function of the question."""


class TeacherNotResident(RetryableTeacherError):
    """Arguments: the teacher that was asked for, what happens to it."""

    def __init__(self, teacher: str, fate: str = "it is being loaded, ask again") -> None:
        super().__init__(teacher, fate)

    def __str__(self) -> str:
        teacher, fate = self.args
        return f"teacher {teacher} is not loaded on this replica: {fate}"


class TeacherOverloaded(RetryableTeacherError):
    """Arguments: clips waiting, clips that the question adds, the limit."""

    def __init__(self, waiting: int, asked: int, limit: int) -> None:
        super().__init__(waiting, asked, limit)

    def __str__(self) -> str:
        waiting, asked, limit = self.args
        return f"{waiting} clips wait on this replica and {asked} more would pass its limit of {limit}: ask again later"


class TeacherUnavailable(RetryableTeacherError):
    """Arguments: the teacher, seconds waited, the last reason."""

    def __init__(self, teacher: str, waited_s: float, reason: str) -> None:
        super().__init__(teacher, waited_s, reason)

    def __str__(self) -> str:
        teacher, waited_s, reason = self.args
        return f"teacher {teacher} did not answer within {waited_s:.1f} s: {reason}"


class NoReplyYet(TeacherUnavailable):
    """The time to wait is up; the question is still on its way, so waiting again may bring the reply."""


class UnknownTeacher(TeacherError):
    """Arguments: what was asked for, what there is."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)

    def __str__(self) -> str:
        name, known = self.args
        return f"no teacher {name!r}: known are {', '.join(known) if known else 'none'}"


class TeacherMismatch(TeacherError):
    """The teacher's card does not fit the run. Arguments: the teacher, the differences as sentences."""

    def __init__(self, teacher: str, differences: tuple[str, ...]) -> None:
        super().__init__(teacher, differences)

    def __str__(self) -> str:
        teacher, differences = self.args
        return f"teacher {teacher} does not fit this run: {'; '.join(differences)}"


class NoCapacity(TeacherError):
    """The cluster cannot hold the teacher service. Argument: what is missing, and what to do."""


class OverBudget(TeacherError):
    """Arguments: the teacher, bytes that it takes, bytes in use, the budget in bytes."""

    def __init__(self, teacher: str, needed: int, used: int, budget: int) -> None:
        super().__init__(teacher, needed, used, budget)

    def __str__(self) -> str:
        teacher, *sizes = self.args
        needed, used, budget = (size / 2**20 for size in sizes)
        return (
            f"{teacher} takes {needed:.1f} MiB, {used:.1f} of the replica's budget of {budget:.1f} MiB are in use: "
            "evict a version that nobody needs (preceptor teacher evict), or deploy with a larger budget"
        )


class TeacherInUse(TeacherError):
    """Arguments: the teacher, who needs it."""

    def __init__(self, teacher: str, users: tuple[str, ...]) -> None:
        super().__init__(teacher, users)

    def __str__(self) -> str:
        teacher, users = self.args
        return f"{teacher} is needed by {', '.join(users)}: it stays"


class AliasMoved(TeacherError):
    """Arguments: the alias, the version that was expected, the version that it points to (None: no such alias)."""

    def __init__(self, name: str, expected: int | None, found: int | None) -> None:
        super().__init__(name, expected, found)

    def __str__(self) -> str:
        name, expected, found = self.args
        wanted = "not to exist yet" if expected is None else f"at version {expected}"
        return f"alias {name} was expected {wanted}, it points to {found}: look again and decide anew"


class GateRefused(TeacherError):
    """Arguments: the new version, the reasons as sentences."""

    def __init__(self, teacher: str, reasons: tuple[str, ...]) -> None:
        super().__init__(teacher, reasons)

    def __str__(self) -> str:
        teacher, reasons = self.args
        return f"{teacher} was not promoted: {'; '.join(reasons)}"


class LedgerError(TeacherError):
    """Arguments: path, what is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"ledger {path}: {reason}"


class NotInLedger(TeacherError):
    """Arguments: path, items without an answer, items asked for."""

    def __init__(self, path: str, missing: int, asked: int) -> None:
        super().__init__(path, missing, asked)

    def __str__(self) -> str:
        path, missing, asked = self.args
        return (
            f"ledger {path} has no answer to {missing} of {asked} items: record them first (--ledger auto), with the "
            "same store, view seed and --views-per-video"
        )


class LibraryError(TeacherError):
    """Arguments: path, what is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"teacher library, {path}: {reason}"


class OtherFiles(LibraryError):
    """A run was bound to a version whose files are others now, or names a digest that they never had."""


class LibraryUnreadable(LibraryError):
    """The disk or the memory failed, not the files: another try may go well."""


class BadQuery(TeacherError):
    """The question cannot be answered as it is. Argument: why, and what was expected."""


class BadReply(TeacherError):
    """The answer must not be used. Argument: why."""
