"""Features of many videos, kept on disk in parts: what was computed once is read, and an attempt that was ended early
goes on with the part that it was in.

The folder belongs to one student. A part's name holds a hash of all else that its numbers depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.atomic import write_atomic
from data.input_spec import InputSpec
from data.render import RENDERER
from data.views import ClipSpec
from teacher_server.zoo.network import VideoNetwork
from trainer.evaluate.extract import Frames, Progress, clip_features

VIDEOS_PER_PART = 100
_FORMAT = 2


def kept_features(
    network: VideoNetwork,
    store: Frames,
    rows: NDArray[np.int64],
    spec: ClipSpec,
    input_spec: InputSpec,
    clips_per_video: int,
    folder: Path,
    batch_clips: int = 64,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """[V, M, D], as `clip_features` gives them; read from `folder` as far as they lie there, and kept there."""
    folder.mkdir(parents=True, exist_ok=True)
    total = len(rows) * clips_per_video
    parts = []
    for start in range(0, len(rows), VIDEOS_PER_PART):
        part = rows[start : start + VIDEOS_PER_PART]
        file = folder / f"{_key(store, part, spec, input_spec, clips_per_video, network)}.npy"
        features = _read(file, (len(part), clips_per_video, network.feature_size))
        if features is None:
            shown = None if progress is None else _shifted(progress, start * clips_per_video, total)
            features = clip_features(
                network, store, part, spec, input_spec, clips_per_video, batch_clips=batch_clips, progress=shown
            )
            _write(file, features)
        elif progress is not None:
            progress((start + len(part)) * clips_per_video, total)
        parts.append(features)
    return np.concatenate(parts)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _total: progress(before + done, total)


def _key(
    store: Frames,
    rows: NDArray[np.int64],
    spec: ClipSpec,
    input_spec: InputSpec,
    clips_per_video: int,
    network: VideoNetwork,
) -> str:
    facts = {
        "format": _FORMAT,
        "renderer": RENDERER,
        "store": store.videos.fingerprint,
        "rows": rows.tolist(),
        "clips": [spec.clip_len, spec.crop, clips_per_video],
        "input": dataclasses.asdict(input_spec),
        "device": next(network.parameters()).device.type,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path, shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
    """None for a file that is missing or not what was written: it is computed again."""
    try:
        features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = features.dtype == np.float32 and features.shape == shape and np.isfinite(features).all()
    return features if whole else None


def _write(file: Path, features: NDArray[np.float32]) -> None:
    blob = io.BytesIO()
    np.save(blob, features, allow_pickle=False)
    write_atomic(file, blob.getvalue())
