"""Teachers on disk: cards, digests, versions, damage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from data.views import REMOTE, SEGMENT_COPY, ClipSpec
from teacher_server import library as library_module
from teacher_server.card import TeacherCard, parse_card, pretext_classes
from teacher_server.errors import BadQuery, LibraryError, TeacherMismatch, UnknownTeacher
from teacher_server.library import CARD, WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef

pytestmark = pytest.mark.usefixtures("no_bundled")

ONE = TeacherId("alpha", 1)


@pytest.fixture
def own(tiny: ModuleType, tmp_path: Path) -> TeacherLibrary:
    """A library that a test may damage."""
    return tiny.build_library(tmp_path / "library", tmp_path)


def test_a_teacher_reads_back_as_it_was_added(own: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> None:
    entry = own.entry(ONE)
    sha256 = hashlib.sha256(entry.weights.read_bytes()).hexdigest()
    assert entry.card == tiny.make_card(weights_sha256=sha256)
    assert entry.weights.read_bytes() == (tmp_path / "0.safetensors").read_bytes()
    assert own.names() == ("alpha", "beta", "gamma")
    assert own.versions("alpha") == (1, 2)
    assert own.first(TeacherRef("alpha")) == ONE
    assert own.first(TeacherRef("alpha", 2)) == TeacherId("alpha", 2)


def test_the_digest_is_that_of_weights_architecture_and_card(own: TeacherLibrary) -> None:
    entry = own.entry(ONE)
    weights = hashlib.sha256(entry.weights.read_bytes()).hexdigest()
    fields = entry.card.model_dump(mode="json", exclude={"weights_sha256"})
    card = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(f"{weights}\nr3d:{entry.card.arch_version}\n{card}".encode()).hexdigest()
    assert entry.digest == expected


def test_the_digest_follows_every_byte_of_weights_and_card(own: TeacherLibrary, tiny: ModuleType) -> None:
    digests = {own.entry(ONE).digest, own.entry(TeacherId("alpha", 2)).digest}
    folder = own.root / "alpha" / "1"
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    tiny.replace_weights(folder, weights)
    digests.add(own.entry(ONE).digest)
    (folder / CARD).write_text((folder / CARD).read_text().replace('"chunk_items": 4', '"chunk_items": 8'))
    digests.add(own.entry(ONE).digest)
    assert len(digests) == 4


def test_versions_are_numbered_on_and_folders_are_whole(own: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> None:
    card = tiny.make_card()
    assert own.add("alpha", card, tmp_path / "0.safetensors") == TeacherId("alpha", 3)
    assert own.add("delta", card, tmp_path / "0.safetensors") == TeacherId("delta", 1)
    assert sorted(p.name for p in (own.root / "alpha").iterdir()) == ["1", "2", "3"]


def test_weights_that_are_missing_leave_nothing_behind(own: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"none\.safetensors"):
        own.add("delta", tiny.make_card(), tmp_path / "none.safetensors")
    assert list((own.root / "delta").iterdir()) == []
    assert "delta" not in own.names()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "x" * 65])
def test_names_never_leave_the_library(own: TeacherLibrary, tiny: ModuleType, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadQuery, match="is no teacher name"):
        own.add(name, tiny.make_card(), tmp_path / "0.safetensors")
    with pytest.raises(UnknownTeacher):
        own.versions(name)


def test_an_unknown_name_or_version_lists_the_known_ones(own: TeacherLibrary) -> None:
    with pytest.raises(UnknownTeacher, match=r"no teacher 'nobody': known are .*alpha, beta"):
        own.entry(TeacherId("nobody", 1))
    with pytest.raises(UnknownTeacher, match=r"no teacher 'alpha@3': known are alpha@1, alpha@2"):
        own.entry(TeacherId("alpha", 3))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "vgg"}, "architecture 'vgg' is not one of"),
        ({"classes": ["a", "a"]}, "class names repeat"),
        ({"std": [1, 0, 1]}, "std must be positive"),
        ({"crop": "large"}, "crop"),
        ({"extra": 1}, "extra"),
        ({"format": 2}, "format"),
    ],
)
def test_a_card_that_cannot_be_used_names_the_file_and_the_field(
    own: TeacherLibrary, change: dict[str, object], reason: str
) -> None:
    path = own.root / "alpha" / "1" / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LibraryError, match=reason) as caught:
        own.entry(ONE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_card_that_is_no_card_is_refused(text: bytes) -> None:
    with pytest.raises(LibraryError, match=r"^teacher library, card\.json: "):
        parse_card("card.json", text)


def test_a_reading_library_writes_nothing(tmp_path: Path) -> None:
    library = TeacherLibrary(tmp_path / "none")
    library.names()
    with pytest.raises(UnknownTeacher):
        library.versions("nobody")
    assert not library.root.exists()


def test_the_packages_own_teachers_are_copied_in_once(
    own: TeacherLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "BUNDLED", own.root)
    library = TeacherLibrary(tmp_path / "new")
    assert library.names() == ("alpha", "beta", "gamma")  # known before they are copied
    bundled = library.entry(ONE)
    library.add_bundled()
    library.add_bundled()
    assert library.versions("alpha") == (1,)
    assert library.entry(ONE).folder == library.root / "alpha" / "1"
    assert library.entry(ONE).digest == bundled.digest


class TestFit:
    """check_fits spells out every difference."""

    def fits(self, card: TeacherCard, **spec: int) -> tuple[str, ...]:
        try:
            card.check_fits("alpha@1", ClipSpec(**({"clip_len": 8, "interval": 8, "crop": 32} | spec)))
        except TeacherMismatch as error:
            return error.args[1]
        return ()

    def test_a_run_with_its_clips_fits(self, tiny: ModuleType) -> None:
        assert self.fits(tiny.make_card()) == ()
        assert self.fits(tiny.make_card(), clip_len=16) == ()

    def test_clip_length_crop_and_classes_must_fit(self, tiny: ModuleType) -> None:
        card = tiny.make_card(min_clip_len=10, classes=("a", "b"))
        differences = self.fits(card, crop=40)
        assert len(differences) == 3
        assert "at least 10 frames, the run has 8" in differences[0]
        assert "32x32 pixels, the run crops 40x40" in differences[1]
        assert "its classes are a, b" in differences[2]

    def test_an_operation_of_the_run_s_own_must_be_the_teacher_s_fifth_class(self, tiny: ModuleType) -> None:
        spec = ClipSpec(clip_len=8, interval=8, crop=32)
        own = tiny.make_card(classes=(*tiny.make_card().classes[:4], "ops:reverse"))
        own.check_fits("alpha@1", spec, operation="ops:reverse")
        for card, operation in ((own, ""), (own, "ops:mirror"), (tiny.make_card(), "ops:reverse")):
            with pytest.raises(TeacherMismatch, match="its classes are unchanged"):
                card.check_fits("alpha@1", spec, operation=operation)

    def test_a_teacher_of_the_other_temporal_shuffle_is_refused_with_the_flag(self, tiny: ModuleType) -> None:
        spec = ClipSpec(clip_len=8, interval=8, crop=32)
        copied, remote = tiny.make_card(), tiny.make_card(classes=pretext_classes(shuffle=REMOTE))
        remote.check_fits("alpha@1", spec, shuffle=REMOTE)
        for card, shuffle in ((copied, REMOTE), (remote, SEGMENT_COPY)):
            with pytest.raises(TeacherMismatch, match=r"remote_clip.*--shuffle"):
                card.check_fits("alpha@1", spec, shuffle=shuffle)

    def test_a_card_that_resizes_takes_any_crop(self, tiny: ModuleType) -> None:
        assert self.fits(tiny.make_card(resize=True), crop=40) == ()

    def test_an_action_teacher_must_know_the_stores_classes(self, tiny: ModuleType) -> None:
        card = tiny.make_card(head="action")
        card.check_fits("beta@1", ClipSpec(clip_len=8, crop=32), num_action_classes=3)
        with pytest.raises(TeacherMismatch, match="knows 3 classes, the store has 4"):
            card.check_fits("beta@1", ClipSpec(clip_len=8, crop=32), num_action_classes=4)
