"""Builders for tests: random teachers at width .125, crop 32, clip_len 8, and a store of six videos.

Test folders are no packages, so conftest files load this by path.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from data.draw import draw_tuples, uniform_clips
from data.store import ClipStore, StoreWriter
from data.views import Augment, ClipSpec, ViewBatch
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.engine.teacher import build_teacher_network
from teacher_server.library import CARD, WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, new_request_id
from teacher_server.zoo.names import ARCH_VERSION

SPEC = ClipSpec(clip_len=8, interval=2, crop=32)
NUM_VIDEOS = 6


def make_card(arch: str = "r3d", head: str = "pretext", **changes: object) -> TeacherCard:
    """A card for random weights."""
    values: dict[str, object] = {
        "arch": arch,
        "arch_version": ARCH_VERSION,
        "width": 0.125,
        "head": head,
        "classes": PRETEXT_CLASSES if head == "pretext" else ("bow", "kick", "wave"),
        "clip_len": 8,
        "crop": 32,
        "modality": "rgb",
        "feature_size": 64,
        "chunk_items": 4,
        "provenance": Provenance(command="random weights for tests"),
    }
    return TeacherCard.model_validate(values | changes)


def save_random_weights(card: TeacherCard, path: Path, seed: int) -> Path:
    """Writes the architecture's own initial weights."""
    torch.manual_seed(seed)
    save_file(build_teacher_network(card).state_dict(), path)
    return path


def replace_weights(folder: Path, content: bytes) -> None:
    """Other bytes in a version's folder, with their sha256 on its card: what whoever can write there would do."""
    (folder / WEIGHTS).write_bytes(content)
    card = json.loads((folder / CARD).read_bytes())
    card["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / CARD).write_text(json.dumps(card, indent=2))


def build_library(root: Path, scratch: Path) -> TeacherLibrary:
    """alpha@1 and alpha@2 (pretext, r3d), beta@1 (action, r2plus1d), gamma@1 (pretext, res, another crop)."""
    library = TeacherLibrary(root)
    cards = [
        ("alpha", make_card()),
        ("alpha", make_card()),
        ("beta", make_card("r2plus1d", "action")),
        ("gamma", make_card(crop=24, modality="res")),
    ]
    for seed, (name, card) in enumerate(cards):
        library.add(name, card, save_random_weights(card, scratch / f"{seed}.safetensors", seed))
    return library


def build_store(path: Path, *, seed: int = 0) -> ClipStore:
    """Six videos of 40 random frames of 40x48."""
    rng = np.random.default_rng(seed)
    with StoreWriter(path, frame_size=(40, 48), classes=("a",)) as writer:
        for i in range(NUM_VIDEOS):
            writer.add(f"a/v{i}", 0, f"g{i}", rng.integers(0, 256, (40, 40, 48, 3), dtype=np.uint8))
        writer.commit({"train01": [f"a/v{i}" for i in range(NUM_VIDEOS)]})
    return ClipStore.open(path)


def draw(store: ClipStore, items: int, seed: int = 0, spec: ClipSpec = SPEC) -> ViewBatch:
    """Training tuples."""
    rows = np.arange(items, dtype=np.int64) % NUM_VIDEOS
    return draw_tuples(store.videos, rows, view_seed=seed, epoch=0, spec=spec, augment=Augment())


def single_clips(store: ClipStore, items: int) -> ViewBatch:
    """Items of one view."""
    return uniform_clips(store.videos, np.arange(items, dtype=np.int64), spec=SPEC, clips_per_video=1)


def views_query(store: ClipStore, batch: ViewBatch, /, **fields: object) -> TeacherQuery:
    """A question about views, to alpha@1 at temperature 4 unless fields say otherwise."""
    values: dict[str, object] = {
        "request_id": new_request_id(),
        "teacher": TeacherId("alpha", 1),
        "temperature": 4.0,
        "views_per_item": batch.views_per_item,
        "views": batch.to_bytes(),
        "store": str(store.path),
    }
    return TeacherQuery(**(values | fields))  # type: ignore[arg-type]
