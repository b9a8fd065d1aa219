"""What `preceptor teacher list` does: the library here, or what a gateway says of the one behind it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.home import teachers_folder
from services.directory import Aliases, Directory, TeacherInfo, Teachers
from services.finding import token
from teacher_server.clients.http_control import ask_gateway
from teacher_server.contract import TOKEN_VARIABLE
from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster
from teacher_server.roster.state import AliasChange


def print_teachers(gateway: str = "") -> None:
    """A table on standard output. gateway: its URL, "" for the library here."""
    if gateway:
        said = ask_gateway(gateway, token(TOKEN_VARIABLE), "/v1/teachers", "for the list of teachers", Teachers)
        teachers = said.teachers
    else:
        teachers = Directory(TeacherLibrary(teachers_folder())).teachers()
    Console().print(table_of(teachers))


def print_alias_log(gateway: str = "") -> None:
    """The audit log of the aliases, oldest first, as a table on standard output; a gateway tells the newest changes."""
    log: Sequence[AliasChange]
    if gateway:
        log = ask_gateway(gateway, token(TOKEN_VARIABLE), "/v1/aliases", "for the list of aliases", Aliases).log
    else:
        log = Roster(TeacherLibrary(teachers_folder())).state().log
    console = Console()
    if not log:
        console.print("no alias was made or changed yet")
        return
    console.print(log_table(log))


def log_table(log: Sequence[AliasChange]) -> Table:
    """A row for each change: when (local time), who, what, from and to."""
    table = Table("when", "who", "change", "from", "to")
    for entry in log:
        when = datetime.datetime.fromtimestamp(entry.when).astimezone().isoformat(sep=" ", timespec="seconds")
        old = "" if entry.old is None else f"{entry.name}@{entry.old}"
        table.add_row(when, Text(entry.who), entry.kind, old, f"{entry.name}@{entry.new}")
    return table


def table_of(teachers: Sequence[TeacherInfo]) -> Table:
    """A row for each version; the one that the alias means is marked."""
    table = Table("teacher", "alias", "digest", "arch", "head", "input")
    for info in teachers:
        for version in info.versions:
            mark = "yes" if version.version == info.alias else ""
            name = f"{info.name}@{version.version}"
            if version.card is None or version.digest is None:
                table.add_row(name, mark, "damaged", version.problem or "", "", "")
                continue
            card = version.card
            takes = f"{card.modality} {card.crop}x{card.crop}, {card.min_clip_len}+ frames"
            table.add_row(name, mark, version.digest[:12], card.arch, card.head, takes)
    return table
