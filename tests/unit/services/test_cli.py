"""The command line: quick help, one sentence for wrong input, a table of teachers."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from services import cli
from services.addresses import check_address, check_port_is_free, is_loopback
from services.directory import Directory
from services.listing import table_of
from teacher_server.library import CARD, TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster
from trainer.config import ConfigError

REPOSITORY = Path(__file__).parents[3]


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["preceptor", *args])
    return cli.main()


COMMANDS = [
    ["serve"],
    ["stop"],
    *(["teacher", x] for x in ("list", "import", "ensemble", "verify", "promote", "rollback", "evict", "bench")),
    *(["ledger", x] for x in ("list", "verify")),
    ["eval"],
    ["predict"],
    ["verify"],
    ["export"],
    ["export-metrics"],
    ["demo-data"],
]


@pytest.mark.parametrize("args", [[], ["teacher"], ["ledger"], *COMMANDS])
def test_help_is_there_for_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *args, "--help")
    assert ended.value.code == 0
    assert "usage: preceptor" in capsys.readouterr().out


@pytest.mark.parametrize("args", COMMANDS)
def test_every_command_shows_an_example_of_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *args, "--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "Example: " in words
    assert "preceptor " + " ".join(args) in words.split("Example: ")[1]


@pytest.mark.parametrize(
    "args", [[], ["eval"], ["predict"], ["teacher", "import"], ["teacher", "promote"], ["ledger", "verify"]]
)
def test_help_imports_neither_torch_nor_ray_nor_fastapi(args: list[str]) -> None:
    program = (
        "import sys\nfrom services.cli import main\nsys.argv = ['preceptor', *sys.argv[1:], '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'ray', 'fastapi', 'cv2', 'pyarrow') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "some.host"])
def test_an_address_that_others_reach_needs_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    for name in ("PRECEPTOR_TOKEN", "PRECEPTOR_OPERATOR_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert run(monkeypatch, "serve", "--host", host) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --host {host} can be reached from other machines: set a token in PRECEPTOR_TOKEN")
    assert error.count("\n") == 1
    check_address(host, has_token=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    check_address(host, has_token=False)


def test_a_port_in_use_is_found_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(monkeypatch, "serve", "--port", str(port)) == 2
    printed = capsys.readouterr()
    assert f"--port {port} cannot be used: Address already in use" in printed.err
    assert printed.out == ""
    with pytest.raises(ConfigError, match="cannot be used"):
        check_port_is_free("127.0.0.1", 70000)


def test_stop_without_a_cluster_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run(monkeypatch, "stop") == 2
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err


def test_a_relative_home_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRECEPTOR_HOME", "here")
    assert run(monkeypatch, "teacher", "list") == 2
    assert capsys.readouterr().err == (
        "error: PRECEPTOR_HOME must be an absolute path, got 'here': workers run in other folders\n"
    )


def test_the_list_has_a_row_for_each_version_and_marks_the_alias(library: TeacherLibrary) -> None:
    Roster(library).promote("alpha", 2, "test")
    (library.root / "beta" / "1" / CARD).write_text("{}")
    console = Console(file=io.StringIO(), width=400)
    teachers = [info for info in Directory(library).teachers() if info.name in ("alpha", "beta")]
    console.print(table_of(teachers))
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        if line.startswith("│")
    ]
    digests = [library.entry(TeacherId("alpha", number)).digest[:12] for number in (1, 2)]
    assert rows[0] == ["alpha@1", "", digests[0], "r3d", "pretext", "rgb 8x8, 8+ frames"]
    assert rows[1] == ["alpha@2", "yes", digests[1], "r3d", "pretext", "rgb 8x8, 8+ frames"]
    assert rows[2][:3] == ["beta@1", "yes", "damaged"]
    assert "arch: Field required" in rows[2][3]


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    """`preceptor ledger list | head -0`."""
    command = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "ledger", "list"],
        cwd=REPOSITORY,
        env={**os.environ, "PRECEPTOR_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    command.wait(60)
