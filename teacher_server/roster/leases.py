"""The half of the roster that says who needs which app, and until when: leases of runs, and notes of apps that run.

Everything here lasts LEASE_TTL_S unless it is said again, so what a dead run or cluster left behind ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from teacher_server.protocol import TeacherId
from teacher_server.roster.file import RosterFile
from teacher_server.roster.state import App, Lease, RosterState

LEASE_TTL_S = 120.0
FORGET_AFTER_S = 24 * 3600.0  # by then the cluster of an expired lease is gone, or it would have swept it
FORGET_TIMELINE_AFTER_S = 30 * FORGET_AFTER_S  # a run that is resumed later brings its timeline in its checkpoint


class RosterLeases:
    """Leases and apps in one roster file. clock: seconds since 1970."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._file = RosterFile(path)
        self._clock = clock

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self._file.path

    def state(self) -> RosterState:
        """What the file says now. Raises LibraryError when it is damaged."""
        return self._file.read()

    def acquire(self, run: str, app: str, teacher: TeacherId, *, deploying: bool, cluster_address: str = "") -> Lease:
        """Notes that a run needs an app and a teacher for the next LEASE_TTL_S seconds.

        deploying: whether the app is about to be started for this run; the last lease then ends it. An app that runs
        already keeps its origin, and one without any lease is an operator's, which no run ever ends.
        """

        def change(state: RosterState) -> tuple[RosterState, Lease]:
            others = [lease for lease in state.leases.values() if lease.app == app]
            started = deploying or any(lease.started_by_run for lease in others)
            expires_at = self._clock() + LEASE_TTL_S
            lease = Lease(
                app=app,
                teacher=str(teacher),
                started_by_run=started,
                expires_at=expires_at,
                cluster_address=cluster_address,
            )
            return state.with_lease(run, lease).with_origin(app, started_by_run=started), lease

        return self._file.change(change)

    def hand_to_operator(self, app: str) -> None:
        """The app is an operator's from now on: no run's release ends it."""
        self._file.change(lambda state: (state.with_origin(app, started_by_run=False), None))

    def renew(self, run: str) -> bool:
        """Keeps a lease for another LEASE_TTL_S seconds; False when there is none, and then it must be acquired."""
        return self._file.change(
            lambda state: (state.with_renewal(run, self._clock() + LEASE_TTL_S), run in state.leases)
        )

    def release(self, run: str, *, only_expired: bool = False) -> Lease | None:
        """Ends a lease and returns it; None when there was none, or when it has not run out and only_expired."""

        def change(state: RosterState) -> tuple[RosterState, Lease | None]:
            lease = state.leases.get(run)
            if lease is None or (only_expired and lease.expires_at > self._clock()):
                return state, None
            return state.without_lease(run), lease

        return self._file.change(change)

    def leases(self, app: str) -> dict[str, Lease]:
        """The leases on one app, expired ones included."""
        return {run: lease for run, lease in self.state().leases.items() if lease.app == app}

    def expired(self, app: str) -> list[str]:
        """The runs whose leases on this app ran out. What ended a day ago is forgotten, whatever its app,
        and so is the timeline of a run that was not heard of for a month."""
        now = self._clock()
        self._file.change(
            lambda state: (state.without_stale(now - FORGET_AFTER_S, now - FORGET_TIMELINE_AFTER_S), None)
        )
        return sorted(run for run, lease in self.leases(app).items() if lease.expires_at <= now)

    def note_app(self, key: str, cluster_address: str) -> None:
        """The app runs, and will for the next LEASE_TTL_S seconds; written only when the last note is half as old."""

        def change(state: RosterState) -> tuple[RosterState, None]:
            by_run = any(lease.app == key and lease.started_by_run for lease in state.leases.values())
            expires_at = self._clock() + LEASE_TTL_S
            app = App(cluster_address=cluster_address, owner="run" if by_run else "operator", expires_at=expires_at)
            noted = state.apps.get(key)
            if noted is not None and expires_at - noted.expires_at < LEASE_TTL_S / 2:
                app = app.model_copy(update={"expires_at": noted.expires_at})
            return state.with_app(key, app), None

        self._file.change(change)

    def forget_app(self, key: str) -> None:
        """The app is gone."""
        self._file.change(lambda state: (state.without_app(key), None))
