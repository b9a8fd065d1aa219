"""What `preceptor teacher verify`, `promote`, `rollback`, `evict`, `ensemble` and `bench` do and print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from data.home import teachers_folder
from services.bench_teacher import Speed, measure
from services.directory import Directory
from services.finding import find, operator_control, teacher_client
from teacher_server.card import EnsembleCard, TeacherCard
from teacher_server.errors import BadQuery, LibraryError
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.promotion import GateFloors, Promotion
from teacher_server.protocol import TeacherId
from trainer.config import ConfigError

if TYPE_CHECKING:
    from teacher_server.engine.verify import PrecisionReport

SOUND, WRONG = 0, 1


def verify(text: str, device: str = "cpu") -> int:
    """Prints what a teacher is, tests it in this process and measures it: SOUND, or WRONG after saying why.

    Raises BadQuery or UnknownTeacher when there is no such teacher.
    """
    from teacher_server.engine.verify import verify_teacher  # needs torch

    library = TeacherLibrary(teachers_folder())
    try:
        entry = Directory(library).resolve(text)
        print("\n".join(card_lines(entry)), flush=True)
        checked = verify_teacher(entry, device)
    except LibraryError as error:
        print(f"wrong      {error}")
        return WRONG
    print("self-test  passed: finite, repeatable, the same alone and among others")
    print(f"speed      {checked.ms_per_clip:.2f} ms per clip on {checked.engine}, {checked.num_bytes / 2**20:.1f} MiB")
    for number, report in enumerate(checked.reports, start=1):
        whose = f"member {number}, " if len(checked.reports) > 1 else ""
        print(f"precision  {whose}{precision_line(report)}")
    return SOUND


def precision_line(report: PrecisionReport) -> str:
    """Both precisions side by side; one that cannot serve has a reason instead of figures."""
    float32 = f"float32 {report.float32_ms:.2f} ms per clip"
    if report.problem:
        return f"{float32}; bfloat16 cannot serve: {report.problem}"
    return (
        f"{float32}; bfloat16 {report.bfloat16_ms:.2f} ms, {report.agreement:.1%} of {report.items} items agree, "
        f"probabilities differ by at most {report.max_difference:.4f}"
    )


def card_lines(entry: TeacherEntry) -> list[str]:
    """The card, for people."""
    card = entry.card
    lines = [
        f"teacher    {entry.teacher}",
        f"digest     {entry.digest}",
        f"network    {card.arch}, {card.feature_size} features{_precision(card)}",
        f"input      {card.modality}, {card.clip_len} frames of {card.crop}x{card.crop}, {card.min_clip_len} and more",
        f"head       {card.head}, items of {card.views_per_item} clips, {card.chunk_items} items a pass",
        f"classes    {', '.join(card.classes)}",
        f"made by    {card.provenance.command}",
    ]
    if card.provenance.source_file:
        made = card.provenance
        lines.append(f"source     {made.source_file}, {made.mapping}, sha256 {made.source_sha256}")
    return lines


def _precision(card: TeacherCard | EnsembleCard) -> str:
    return "" if isinstance(card, EnsembleCard) else f", width {card.width:g}, computed in {card.precision}"


def promote(
    name: str,
    version: int,
    *,
    who: str,
    gateway: str = "",
    floors: GateFloors | None = None,
    expected: int | None = None,
) -> None:
    """Points an alias at another version and prints the gate's report and the seconds. Raises as OperatorControl."""
    library = TeacherLibrary(teachers_folder())
    place = find(library, gateway)
    print(f"through    {place}", flush=True)
    with operator_control(place, library) as control:
        promotion = control.promote(name, version, who, floors=floors, expected=expected)
    print("\n".join(promotion_lines(promotion)))


def rollback(name: str, *, who: str, gateway: str = "", expected: int | None = None) -> None:
    """Points an alias back at the version before its last promotion. Raises as OperatorControl."""
    library = TeacherLibrary(teachers_folder())
    place = find(library, gateway)
    print(f"through    {place}", flush=True)
    with operator_control(place, library) as control:
        promotion = control.rollback(name, who, expected=expected)
    print("\n".join(promotion_lines(promotion)))


def evict(text: str, *, who: str, gateway: str = "") -> None:
    """Unloads a version from all replicas. Raises as OperatorControl, BadQuery without a version."""
    teacher = TeacherId.parse(text)
    library = TeacherLibrary(teachers_folder())
    place = find(library, gateway)
    print(f"through    {place}", flush=True)
    with operator_control(place, library) as control:
        replicas = control.evict(teacher, who)
    print(f"{teacher} was unloaded from {replicas} replicas" if replicas else f"{teacher} was loaded nowhere")


def bench(text: str, *, views: int, seconds: float, in_flight: int, gateway: str = "") -> None:
    """Measures how fast the running service answers, or this process when there is none."""
    if views < 1 or in_flight < 1 or not seconds > 0:
        raise ConfigError(
            f"--views and --in-flight must be at least 1 and --seconds above 0, got {views}, {in_flight}, {seconds:g}"
        )
    library = TeacherLibrary(teachers_folder())
    entry = Directory(library).resolve(text)
    place = find(library, gateway)
    print(f"through    {place}", flush=True)
    with teacher_client(place, library) as client, _progress() as progress:
        task = progress.add_task(f"asking {entry.teacher}", total=seconds)
        speed = measure(
            client,
            entry,
            views=views,
            seconds=seconds,
            in_flight=in_flight,
            tick=lambda done: progress.update(task, completed=done),
        )
    print("\n".join(speed_lines(entry.teacher, speed, in_flight)))


def _progress() -> Progress:
    """A bar that goes away when it is done; none where nobody watches."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def speed_lines(teacher: TeacherId, speed: Speed, in_flight: int) -> list[str]:
    """Throughput and latency, for people."""
    questions = len(speed.latencies_ms)
    return [
        f"{teacher}: {speed.clips_per_s:.1f} clips/s",
        f"latency    p50 {speed.percentile_ms(50):.1f} ms, p99 {speed.percentile_ms(99):.1f} ms",
        f"measured   {questions} questions of {speed.clips // questions} clips in {speed.seconds:.1f} s, "
        f"{in_flight} in flight",
    ]


def promotion_lines(promotion: Promotion) -> list[str]:
    """From what to what, how the two compare, and the seconds by phase."""
    lines = [f"gate       {promotion.gate.figures()}"] if promotion.gate is not None else []
    if promotion.seconds:
        lines.append("seconds    " + ", ".join(f"{phase} {value:.3f}" for phase, value in promotion.seconds.items()))
    if promotion.previous == promotion.teacher:
        return [*lines, f"{promotion.teacher.name} points to {promotion.teacher} already"]
    return [*lines, f"{promotion.teacher.name}: {promotion.previous or 'new'} -> {promotion.teacher}"]


def add_ensemble(name: str, members: Sequence[str]) -> None:
    """Adds a teacher that averages others. Raises BadQuery or UnknownTeacher for members that cannot be."""
    library = TeacherLibrary(teachers_folder())
    library.add_bundled()
    teacher = library.add_ensemble(name, parse_members(members))
    print("\n".join(card_lines(library.entry(teacher))))
    print(f"{teacher} added to {library.root}")


def parse_members(texts: Sequence[str]) -> list[tuple[TeacherId, float]]:
    """`name@version=weight` each. Raises BadQuery for anything else."""
    members = []
    for text in texts:
        ref, _, number = text.partition("=")
        teacher = TeacherId.parse(ref)
        try:
            weight = float(number)
        except ValueError:
            raise BadQuery(f"{text!r} is no member: expected name@version=weight, for example r3d@1=0.5") from None
        members.append((teacher, weight))
    return members
