"""Everything that a teacher, its library, its service or its client can refuse.

    TeacherError(RuntimeError)
    ├── RetryableTeacherError      the same question may succeed later, or at another replica
    │   ├── TeacherNotResident     the replica has not loaded that version; it starts loading it
    │   ├── TeacherOverloaded      the replica's queue is full
    │   └── TeacherUnavailable     nobody answered in time
    ├── UnknownTeacher             no such name or version in the library
    ├── TeacherMismatch            the card does not fit the run
    ├── NoCapacity                 the cluster has no room for a teacher replica
    ├── LibraryError               files on disk are missing, damaged or of another format
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
    """Argument: the teacher that was asked for."""

    def __str__(self) -> str:
        return f"teacher {self.args[0]} is not loaded on this replica yet: it is being loaded, ask again"


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


class LibraryError(TeacherError):
    """Arguments: path, what is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"teacher library, {path}: {reason}"


class BadQuery(TeacherError):
    """The question cannot be answered as it is. Argument: why, and what was expected."""


class BadReply(TeacherError):
    """The answer must not be used. Argument: why."""
