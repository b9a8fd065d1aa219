"""What an import is going to do, all of it checked before anything is written.

    Source + Wishes -> layout -> our names -> width, head, classes from the shapes -> card -> every shape -> ImportPlan

What the shapes say cannot be overruled, only refused: a wish that contradicts them is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from data.input_spec import IMAGENET_MEAN, IMAGENET_STD
from data.plugins import PluginError
from data.views import REMOTE
from teacher_server.card import Provenance, TeacherCard, numbered_classes, pretext_classes
from teacher_server.engine.weights import build_teacher_network, scaffold
from teacher_server.importers import torchvision
from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.layout import ACTION_HEAD, HEAD, PRETEXT_HEAD, PROJECTOR, Layout
from teacher_server.importers.layouts import choose_layout, rename, shortened
from teacher_server.importers.source import Source
from teacher_server.importers.wishes import Wishes
from teacher_server.zoo.heads import CLIPS_PER_TUPLE
from teacher_server.zoo.names import ARCH_VERSION, UnknownArchitecture
from teacher_server.zoo.registry import build_backbone

_COUNTER = ".num_batches_tracked"  # of batch-norm; old checkpoints lack it, and frozen networks do not use it
_HEADS = {"pretext": PRETEXT_HEAD, "action": ACTION_HEAD}
_SAY_OTHERWISE = "(--modality, --mean and --std say otherwise)"


@dataclass(frozen=True)
class ImportPlan:
    """The card and all tensors of the teacher, by our names. dropped: ours that a teacher does not serve (projector,
    the other head). unused: theirs that have no place here. notes: what else a person should know, a line each."""

    card: TeacherCard
    tensors: dict[str, Tensor]
    layout: Layout
    dropped: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(source: Source, wishes: Wishes, command: str = "") -> ImportPlan:
    """Checks everything that can be checked without running the network. Raises ImportRefused.

    command: what made the import, for the card.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    layout = choose_layout(source.file, shapes, wishes.layout, wishes.arch)
    renaming = rename(source.file, layout, source.tensors)
    if renaming.unused and not wishes.allow_unused:
        raise ImportRefused(
            source.file,
            f"layout {layout.name}/{layout.arch} has no place for {len(renaming.unused)} of its tensors "
            f"({shortened(renaming.unused)}): it may be another network; --allow-unused imports the rest",
        )
    found = {ours: source.tensors[theirs] for theirs, ours in renaming.ours.items()}
    size = (
        _plugin_feature_size(source.file, layout, wishes) if layout.kept else _feature_size(source.file, layout, found)
    )
    found = _with_known_head(source.file, found, size)
    head = _choose_head(source.file, found, wishes)
    notes: list[str] = []
    layout = _as_trained(layout, found, head, wishes, notes)
    classes = _classes(source.file, layout, found, head, wishes, notes)
    card = _card(source, wishes, layout, head, size, classes, command)
    served = {name: tensor for name, tensor in found.items() if name.startswith(("backbone.", _HEADS[head]))}
    tensors = _fitted(source.file, served, card, notes)
    if layout.backward_residual and card.modality == "res":
        tensors[layout.stem[1]] = -tensors[layout.stem[1]]
        notes.append("the first convolution's sign is turned: that code takes frame t-1 minus frame t")
    return ImportPlan(card, tensors, layout, tuple(sorted(found.keys() - served)), renaming.unused, tuple(notes))


def _feature_size(file: str, layout: Layout, found: Mapping[str, Tensor]) -> int:
    name = f"{layout.last_norm}.weight"
    if name not in found or found[name].ndim != 1:
        theirs = next(their for their, ours in layout.modules.items() if ours == layout.last_norm)
        raise ImportRefused(file, f"{theirs}.weight, from which the width is seen, is missing or no vector")
    return len(found[name])


def _plugin_feature_size(file: str, layout: Layout, wishes: Wishes) -> int:
    """Asked of the network itself."""
    try:
        with scaffold(layout.arch):
            return build_backbone(layout.arch, _plugin_width(wishes)).feature_size
    except (PluginError, UnknownArchitecture) as error:
        raise ImportRefused(file, str(error)) from None


def _plugin_width(wishes: Wishes) -> float:
    """Its shapes tell nothing about it."""
    return wishes.width if wishes.width is not None else 1.0


def _with_known_head(file: str, found: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """A head whose kind its name does not tell, under the name that its shape gives it."""
    weight = found.get(f"{HEAD}.weight")
    if weight is None:
        return dict(found)
    kinds = {CLIPS_PER_TUPLE * size: PRETEXT_HEAD, size: ACTION_HEAD}
    if weight.ndim != 2 or weight.shape[1] not in kinds:
        raise ImportRefused(
            file,
            f"its head is {list(weight.shape)}; [classes, {size}] (action, of one clip) or "
            f"[classes, {CLIPS_PER_TUPLE * size}] (pretext, of {CLIPS_PER_TUPLE}) was expected",
        )
    ours = kinds[weight.shape[1]]
    return {
        name.replace(f"{HEAD}.", f"{ours}.") if name.startswith(f"{HEAD}.") else name: x for name, x in found.items()
    }


def _choose_head(file: str, found: Mapping[str, Tensor], wishes: Wishes) -> Literal["pretext", "action"]:
    there = [head for head, name in _HEADS.items() if f"{name}.weight" in found]
    if not there:
        raise ImportRefused(file, "it has no head, so it has no logits to teach with")
    head = there[0] if wishes.head == "auto" else wishes.head
    if head not in there:
        raise ImportRefused(file, f"it has no {head} head, its head is for {there[0]}")
    return "pretext" if head == "pretext" else "action"


def _as_trained(layout: Layout, found: Mapping[str, Tensor], head: str, wishes: Wishes, notes: list[str]) -> Layout:
    """The layout with the input that these weights were trained on, as far as their heads tell. Adds to `notes`."""
    own_heads = any(name.startswith((PRETEXT_HEAD, PROJECTOR)) for name in found)
    if layout.name == torchvision.NAME and own_heads:
        notes.append(f"its heads are this project's: taken for its students' input {_SAY_OTHERWISE}")
        return dataclasses.replace(layout, modality="res", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if layout.name == torchvision.NAME and head == "action" and wishes.modality is None:
        notes.append(
            "taken for frames with the mean of Kinetics: a student of this project that was fine-tuned and exported "
            "has the same names, so import its folder instead"
        )
    if not layout.backward_residual:
        return layout
    if head == "pretext" and f"{PROJECTOR}.weight" in found:  # VCOP, VCP and all classifiers have none
        notes.append(
            "its projector shows PCL's pretext training: taken for frame differences with ImageNet's mean and std "
            f"{_SAY_OTHERWISE}"
        )
        return dataclasses.replace(layout, modality="res", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if wishes.modality is None:
        notes.append(
            "taken for RGB frames without normalisation: weights that were trained on frame differences, as PCL's "
            "classifiers are by default, need --modality res"
        )
    elif wishes.modality == "res" and head == "pretext":
        notes.append(
            "VCP's residual pretext training puts its clips in [0, 1] around one half, which no card can say: the "
            "answers of such weights would mean nothing here"
        )
    return layout


def _classes(
    file: str, layout: Layout, found: Mapping[str, Tensor], head: str, wishes: Wishes, notes: list[str]
) -> tuple[str, ...]:
    """The user's names, or the pretext operations, or numbers for an action head. Adds to `notes`."""
    count = len(found[f"{_HEADS[head]}.weight"])
    operations = pretext_classes(shuffle=layout.shuffle)
    if wishes.classes is None and head == "pretext" and count == len(operations):
        if layout.shuffle == REMOTE:
            notes.append(
                "taken for the five operations of VCP and PCL, the fifth a remote clip: for students with --shuffle "
                "remote, best with --any-swap (--classes says otherwise)"
            )
        return operations
    if wishes.classes is None and head == "action":
        notes.append(f"its {count} classes are numbered; --classes FILE names them")
        return numbered_classes(count)
    if wishes.classes is None:
        raise ImportRefused(file, f"its {head} head has {count} classes: name them with --classes FILE, one a line")
    if len(wishes.classes) != count:
        raise ImportRefused(file, f"its {head} head has {count} classes, --classes names {len(wishes.classes)}")
    return wishes.classes


def _card(
    source: Source,
    wishes: Wishes,
    layout: Layout,
    head: Literal["pretext", "action"],
    size: int,
    classes: tuple[str, ...],
    command: str,
) -> TeacherCard:
    clip_len = wishes.clip_len if wishes.clip_len is not None else layout.clip_len
    width = _plugin_width(wishes) if layout.kept else size / layout.full_features
    return checked_card(
        source.file,
        {
            "arch": layout.arch,
            "arch_version": ARCH_VERSION,
            "width": wishes.width if wishes.width is not None else width,
            "head": head,
            "classes": classes,
            "clip_len": clip_len,
            "crop": wishes.crop if wishes.crop is not None else layout.crop,
            "resize": wishes.resize,
            "modality": wishes.modality if wishes.modality is not None else layout.modality,
            "mean": wishes.mean if wishes.mean is not None else layout.mean,
            "std": wishes.std if wishes.std is not None else layout.std,
            "feature_size": size,
            "precision": "bfloat16" if wishes.precision == "bfloat16" else "float32",
            "compile": wishes.compile,
            "chunk_items": wishes.chunk_items,
            "provenance": Provenance(
                command=command,
                source_file=source.file,
                source_sha256=source.sha256,
                mapping=f"{layout.name}/{layout.arch}",
            ),
        },
    )


def checked_card(file: str, fields: Mapping[str, object]) -> TeacherCard:
    """The card with these fields. file: that the weights come from. Raises ImportRefused for what no card can say."""
    try:
        return TeacherCard.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise ImportRefused(file, f"{where}: {first['msg']}") from None


def _fitted(file: str, served: Mapping[str, Tensor], card: TeacherCard, notes: list[str]) -> dict[str, Tensor]:
    """The tensors with the network's shapes and types; counters that are missing are 0. Adds to `notes`."""
    with scaffold(card.arch):
        wanted = build_teacher_network(card).state_dict()
    tensors = dict(served)
    lacking = sorted(wanted.keys() - tensors.keys())
    missing = [name for name in lacking if not name.endswith(_COUNTER)]
    if missing:
        raise ImportRefused(file, f"{len(missing)} tensors of {card.arch} are missing: {shortened(missing)}")
    extra = sorted(tensors.keys() - wanted.keys())
    if extra:
        raise ImportRefused(file, f"{card.arch} has no {shortened(extra)}")
    tensors |= {name: torch.zeros((), dtype=torch.int64) for name in lacking}
    wrong = [name for name in sorted(wanted) if tensors[name].shape != wanted[name].shape]
    if wrong:
        name = wrong[0]
        raise ImportRefused(
            file,
            f"{len(wrong)} tensors have other shapes than {card.arch} of width {card.width:g}; {name} is "
            f"{list(tensors[name].shape)}, {list(wanted[name].shape)} was expected (--width)",
        )
    other_types = [name for name in sorted(wanted) if tensors[name].dtype != wanted[name].dtype]
    if other_types:
        kinds = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in other_types})
        notes.append(f"{len(other_types)} tensors are converted from {', '.join(kinds)} to the network's own types")
    return {name: tensor.to(wanted[name].dtype).contiguous() for name, tensor in tensors.items()}
