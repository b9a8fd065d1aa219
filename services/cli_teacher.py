"""The `preceptor teacher` and `preceptor ledger` commands: what they take; what they do is imported when they run."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Literal

from tyro.extras import SubcommandApp

from services.arguments import Members, Name, Source, Teacher, Version
from teacher_server.card import CHUNK_ITEMS
from teacher_server.importers.layout import Triple
from teacher_server.importers.wishes import Wishes
from teacher_server.promotion import GateFloors

LayoutName = Literal["auto", "native", "vcop", "torchvision", "pcl"]


def list_(log: bool = False, gateway: str = "") -> None:
    """List the teachers of the library, their versions and digests.

    Example: preceptor teacher list --log

    Args:
        log: list the changes of the aliases instead: when, who, from what to what.
        gateway: URL of a service's gateway, to list what is there; PRECEPTOR_TOKEN is its token.
    """
    from services.listing import print_alias_log, print_teachers

    if log:
        print_alias_log(gateway)
    else:
        print_teachers(gateway)


def import_(
    source: Source,
    name: str,
    layout: LayoutName = "auto",
    arch: str | None = None,
    width: float | None = None,
    head: Literal["auto", "pretext", "action"] = "auto",
    classes: Path | None = None,
    modality: Literal["rgb", "res"] | None = None,
    crop: int | None = None,
    resize: bool = False,
    clip_len: int | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    compile: bool = False,
    chunk_items: int = CHUNK_ITEMS,
    device: Literal["cpu", "cuda"] = "cpu",
    allow_unused: bool = False,
    trust_pickle: bool = False,
    dry_run: bool = False,
) -> None:
    """Add weights to the library as the next version of a teacher.

    A torch checkpoint is read by a process of its own, which runs nothing that is in the file. What the weights were
    taken for is shown, and they are tested, before they are added.

    Example: preceptor teacher import vcp_r3d.pth --name r3d-vcp --clip-len 16 --crop 112

    Args:
        source: a .pth, .pt, .bin, .pkl or .safetensors file, or run:ID for a student of this project, as it
            was after its last step, run:ID:best as validation liked it most, or the folder of one that preceptor eval
            fine-tuned, which it prints as model.
        name: of the teacher.
        layout: whose names the tensors have; native is this project's, vcop that of VCOP, VCP and PCL, torchvision that
            of its r3d_18, mc3_18 and r2plus1d_18, pcl that of PCL's release of these.
        arch: architecture, seen from the tensors; of a network of your own, module:function (see docs/plugins.md).
        width: width multiplier; seen from the shapes.
        head: which head to serve, if there are two.
        classes: file of class names, one a line, in the order of the head; the five pretext classes need none, and
            those of an action head are numbered without it.
        modality: what the network saw, frames (rgb) or frame differences (res). Without it, --crop, --clip-len, --mean
            and --std, what the networks of that layout were trained on.
        crop: side of its input in pixels.
        resize: take clips of other sizes too and bring them to that; without it they are refused.
        clip_len: frames it was trained with.
        mean: of R, G and B, for values from 0 to 1.
        std: of R, G and B.
        precision: what it computes in; auto takes bfloat16 where that is faster here and close enough. It cannot be
            changed afterwards.
        compile: serve it compiled by torch for clips of its length; it takes longer to load.
        chunk_items: items per forward pass. More may be faster on a GPU. It cannot be changed afterwards.
        device: where it is measured and tested: where it will serve.
        allow_unused: import although some tensors have no place in the network.
        trust_pickle: run the Python code in the checkpoint, if it has any. Only for files whose maker you trust.
        dry_run: show what would be imported, and add nothing.
    """
    from data.home import teachers_folder
    from services.importing import ImportMode, import_teacher, read_classes
    from teacher_server.library import TeacherLibrary

    wishes = Wishes(
        layout=layout,
        arch=arch,
        width=width,
        head=head,
        classes=None if classes is None else read_classes(classes),
        modality=modality,
        crop=crop,
        resize=resize,
        clip_len=clip_len,
        mean=mean,
        std=std,
        precision=precision,
        compile=compile,
        chunk_items=chunk_items,
        allow_unused=allow_unused,
    )
    library = TeacherLibrary(teachers_folder())
    teacher = import_teacher(source, name, wishes, library, ImportMode(trust_pickle, dry_run, device))
    print("nothing was added: this was a dry run" if teacher is None else f"{teacher} added to {library.root}")


def ensemble(name: Name, members: Members) -> None:
    """Add a teacher that averages the probabilities of others.

    Example: preceptor teacher ensemble both r3d@1=0.5 r2plus1d@1=0.5

    Args:
        name: of the new teacher.
        members: name@version=weight, two or more of one signature; only the ratio of the weights counts.
    """
    from services.teachers import add_ensemble

    add_ensemble(name, members)


def verify(teacher: Teacher, device: Literal["cpu", "cuda"] = "cpu") -> int:
    """Check one teacher: files, digest, self-test, speed in both precisions.

    The exit code is 1 when something is wrong with it.

    Example: preceptor teacher verify r2plus1d@1

    Args:
        teacher: name (the version that its alias means) or name@version.
        device: where it is tested.
    """
    from services.teachers import verify as check

    return check(teacher, device)


def promote(
    name: Name,
    version: Version,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    max_latency_ratio: float | None = None,
    expected: int | None = None,
    who: str = "",
    gateway: str = "",
) -> None:
    """Point an alias at another version, while training goes on.

    All replicas load and test the new version first, then it answers recently asked views beside the old one. If a
    floor is missed or a replica cannot load it, nothing changes. Without a service, the roster's file is changed.

    Example: preceptor teacher promote r2plus1d 2 --min-agreement 0.9 --max-kl 0.1

    Args:
        name: of the alias.
        version: that it is to point to.
        min_agreement: least share, 0 to 1, of items on which both choose the same class.
        max_kl: largest mean KL divergence from the old to the new version, in nats.
        max_latency_ratio: most times as long that a clip may take.
        expected: version that the alias must point to now.
        who: for the log; your user name by default.
        gateway: URL of the service's gateway, if it is not on this machine; PRECEPTOR_OPERATOR_TOKEN is its token.
    """
    from services.teachers import promote as change

    floors = GateFloors(min_agreement, max_kl, max_latency_ratio)
    change(name, version, who=who or _user(), gateway=gateway, floors=floors, expected=expected)


def rollback(name: Name, expected: int | None = None, who: str = "", gateway: str = "") -> None:
    """Point an alias back at the version that it had before its last promotion.

    Example: preceptor teacher rollback r2plus1d

    Args:
        name: of the alias.
        expected: version that the alias must point to now.
        who: for the log; your user name by default.
        gateway: URL of the service's gateway, if it is not on this machine; PRECEPTOR_OPERATOR_TOKEN is its token.
    """
    from services.teachers import rollback as change

    change(name, who=who or _user(), gateway=gateway, expected=expected)


def evict(teacher: Teacher, who: str = "", gateway: str = "") -> None:
    """Unload a version from all replicas, once its questions are answered. One that is needed stays.

    Example: preceptor teacher evict r2plus1d@1

    Args:
        teacher: name@version.
        who: for the log; your user name by default.
        gateway: URL of the service's gateway, if it is not on this machine; PRECEPTOR_OPERATOR_TOKEN is its token.
    """
    from services.teachers import evict as unload

    unload(teacher, who=who or _user(), gateway=gateway)


def bench(teacher: Teacher, views: int = 24, seconds: float = 5.0, in_flight: int = 4, gateway: str = "") -> None:
    """Measure how fast a teacher answers: the running service, or this process when there is none.

    Example: preceptor teacher bench r2plus1d --views 48

    Args:
        teacher: name or name@version.
        views: clips in each question.
        seconds: how long to ask.
        in_flight: questions at a time.
        gateway: URL of the service's gateway, if it is not on this machine; PRECEPTOR_TOKEN is its token.
    """
    from services.teachers import bench as measure

    measure(teacher, views=views, seconds=seconds, in_flight=in_flight, gateway=gateway)


def ledger_list() -> None:
    """List the ledgers of recorded answers.

    Example: preceptor ledger list
    """
    from services.ledgers import list_ledgers

    list_ledgers()


def ledger_verify(name: Name, sample: int = 64, seed: int = 0) -> int:
    """Ask the teacher again for some recorded answers and print the differences. Exit code 1 when there are any.

    Example: preceptor ledger verify r2plus1d@1 --sample 200

    Args:
        name: of the ledger, or the beginning of one name only.
        sample: items to ask for again.
        seed: of the choice.
    """
    from services.ledgers import verify_ledger

    return verify_ledger(name, sample, seed)


def teacher_app() -> SubcommandApp:
    """`preceptor teacher`."""
    app = SubcommandApp()
    app.command(name="list")(list_)
    app.command(name="import")(import_)
    for command in (ensemble, verify, promote, rollback, evict, bench):
        app.command(command)
    return app


def ledger_app() -> SubcommandApp:
    """`preceptor ledger`."""
    app = SubcommandApp()
    app.command(name="list")(ledger_list)
    app.command(name="verify")(ledger_verify)
    return app


def _user() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a container's user without a name
        return "unknown"
