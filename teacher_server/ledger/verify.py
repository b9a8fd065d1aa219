"""Asking the teacher again: whether a ledger's answers are those that the teacher gives now.

random sample ──► views ──► item digest again, from the store ──► teacher, in this process ──► compare
                              │ another one: the store's video at that row is not what was recorded

A checksum shows that a file is as it was written; only this shows that what was written is right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.errors import DataError
from data.store import ClipStore
from data.views import ViewBatch
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import TeacherClient
from teacher_server.engine.teacher import engine_of
from teacher_server.errors import LedgerError
from teacher_server.ledger.segments import Segment
from teacher_server.ledger.store import Ledger, LedgerHeader
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, new_request_id

BATCH_ITEMS = 32
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ItemCheck:
    """One recorded answer, named by its digest in hex, its segment's file and its row there.

    max_difference: the largest |recorded - asked again| over raw logits and, if recorded, features. bit_equal: not a
    bit differs. reason: why the teacher could not be asked, then the difference is NaN; empty otherwise.
    """

    digest: str
    segment: str
    row: int
    max_difference: float = float("nan")
    bit_equal: bool = False
    reason: str = ""


@dataclass(frozen=True)
class LedgerCheck:
    """What a verification found. num_items: answers in the ledger; checks: the sample, in the ledger's order;
    problems: a sentence for each segment that cannot be used."""

    header: LedgerHeader
    seed: int
    num_items: int
    checks: tuple[ItemCheck, ...]
    problems: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every sampled answer was given again bit by bit, and every segment is sound."""
        return not self.problems and all(check.bit_equal for check in self.checks)


@dataclass(frozen=True, eq=False)
class _Place:
    """One row of one segment."""

    segment: Segment
    row: int

    @property
    def digest(self) -> bytes:
        return self.segment.rows.digests[self.row : self.row + 1].tobytes()

    @property
    def views(self) -> NDArray[np.void]:
        """[V]"""
        return self.segment.rows.views[self.row]

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for places that one query can ask about."""
        rows = self.segment.rows
        shape = self.views[0][["clip_len", "crop_h", "crop_w"]].item()
        return self.segment.origin.store_path, shape, rows.features is not None

    def check(self, *, max_difference: float = float("nan"), bit_equal: bool = False, reason: str = "") -> ItemCheck:
        return ItemCheck(self.digest.hex(), self.segment.path.name, self.row, max_difference, bit_equal, reason)

    def compare(self, again: Sequence[NDArray[np.floating]]) -> ItemCheck:
        """again: logits, and features if they were recorded."""
        rows = self.segment.rows
        recorded = [array[self.row] for array in (rows.logits, rows.features) if array is not None]
        pairs = list(zip(recorded, again, strict=True))
        return self.check(
            max_difference=max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs),
            bit_equal=all(a.tobytes() == b.tobytes() for a, b in pairs),
        )


def verify_ledger(
    folder: Path,
    library: TeacherLibrary,
    *,
    sample: int,
    seed: int,
    open_store: Callable[[Path], ClipStore] = ClipStore.open,
) -> LedgerCheck:
    """Asks the teacher again for `sample` random items, or for all when there are fewer.

    Raises LedgerError when the ledger cannot be read, the library holds other weights, or this machine lacks the
    engine that answered; UnknownTeacher, LibraryError.
    """
    problems: list[str] = []
    ledger = Ledger.open(folder, lambda error: problems.append(str(error)))
    header = ledger.header
    _check_can_answer(folder, header, library)
    client = InProcessTeacherClient(library, open_store, device=_device_of(header.engine))
    try:
        checks = _Verifier(ledger, client, open_store).check(_sample(ledger, sample, seed))
    finally:
        client.close()
    return LedgerCheck(header, seed, len(ledger), tuple(checks), tuple(problems))


def _check_can_answer(folder: Path, header: LedgerHeader, library: TeacherLibrary) -> None:
    found = library.entry(TeacherId.parse(header.teacher)).digest
    if found != header.digest:
        raise LedgerError(
            str(folder),
            f"the library's {header.teacher} has digest {found[:12]}, recorded was {header.digest[:12]}: name the "
            "library that it was recorded from (PRECEPTOR_HOME)",
        )
    device = _device_of(header.engine)
    if device != "cpu" and not (torch.cuda.is_available() and engine_of(torch.device(device)) == header.engine):
        raise LedgerError(str(folder), f"it was recorded on {header.engine}, which this machine lacks: verify it there")


def _device_of(engine: str) -> str:
    """`cuda` of `cuda:nvidia-h200`."""
    return engine.partition(":")[0]


def _sample(ledger: Ledger, sample: int, seed: int) -> list[_Place]:
    chosen = np.random.default_rng(seed).choice(len(ledger), size=min(sample, len(ledger)), replace=False)
    ends = np.cumsum([len(segment) for segment in ledger.segments])
    places = []
    for i in np.sort(chosen).tolist():
        number = int(np.searchsorted(ends, i, side="right"))
        segment = ledger.segments[number]
        places.append(_Place(segment, i - int(ends[number]) + len(segment)))
    return places


class _Verifier:
    """Asks about places of one ledger again. Stores are taken as they are now: they may have grown since."""

    def __init__(self, ledger: Ledger, client: TeacherClient, open_store: Callable[[Path], ClipStore]) -> None:
        self._ledger = ledger
        self._client = client
        self._open_store = open_store
        self._stores: dict[str, ClipStore] = {}

    def check(self, places: Sequence[_Place]) -> list[ItemCheck]:
        """One check for each place, in order."""
        checks: dict[_Place, ItemCheck] = {}
        askable: dict[object, list[_Place]] = defaultdict(list)  # a query has one store and one shape of clips
        for place in places:
            if reason := self._why_not(place):
                checks[place] = place.check(reason=reason)
            else:
                askable[place.group].append(place)
        for group in askable.values():
            for i in range(0, len(group), BATCH_ITEMS):
                some = group[i : i + BATCH_ITEMS]
                checks.update(zip(some, self._ask(some), strict=True))
        return [checks[place] for place in places]

    def _why_not(self, place: _Place) -> str:
        """Why these views no longer mean what was recorded; empty when they do."""
        try:
            store = self._store(place)
        except DataError as error:
            return str(error)
        views = place.views
        outside = int(views["video"].max()) >= len(store) or store.frame_size != place.segment.origin.frame_size
        if outside or ViewBatch(views, len(views), store.fingerprint).item_digests(store.videos) != [place.digest]:
            return f"its digest does not match: store {store.path} holds another video, or none, at its row now"
        return ""

    def _store(self, place: _Place) -> ClipStore:
        path = place.segment.origin.store_path
        if path not in self._stores:
            self._stores[path] = self._open_store(Path(path))
        return self._stores[path]

    def _ask(self, places: Sequence[_Place]) -> list[ItemCheck]:
        """Places of one group."""
        store, header = self._store(places[0]), self._ledger.header
        batch = ViewBatch(np.concatenate([p.views for p in places]), header.views_per_item, store.fingerprint)
        query = TeacherQuery(
            request_id=new_request_id(),
            teacher=TeacherId.parse(header.teacher),
            temperature=1.0,
            views_per_item=header.views_per_item,
            views=batch.to_bytes(),
            store=str(store.path),
            want_features=places[0].segment.rows.features is not None,
            timeout_s=_TIMEOUT_S,
        )
        reply = self._client.submit(query).result(_TIMEOUT_S)
        again = [reply.logits] if reply.features is None else [reply.logits, reply.features]
        return [place.compare([array[i] for array in again]) for i, place in enumerate(places)]
