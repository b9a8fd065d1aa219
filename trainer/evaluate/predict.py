"""What a student says about video files.

    file -> frames (decoded in a child process) -> even clips, centre crop -> features
        -> action head -> mean of the logits -> classes          a student that has one, such as a fine-tuned one
        -> cosine to the videos of a store   -> nearest videos   any student, with a gallery

A file that cannot be answered gets its reason in the answer's place; the others are answered.

Axis letters: T frames, H, W, V videos, M clips of a video, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.decode import decode
from data.decode_pool import DecodePool, Failure
from data.home import evaluations_folder
from data.store import ClipStore
from data.views import VideoTable, ViewBatch
from trainer.errors import EvaluationError
from trainer.evaluate.extract import PhaseProgress, clip_features, phase_of
from trainer.evaluate.feature_files import kept_features
from trainer.evaluate.finetune import mean_logits
from trainer.evaluate.protocols import printable
from trainer.evaluate.retrieval import nearest
from trainer.evaluate.splits import check_frames, fitting
from trainer.plan import student_input
from trainer.student_files import LoadedStudent

_NO_FINGERPRINT = "00" * 16


@dataclass(frozen=True)
class Guess:
    """A class and its probability, or a gallery video's class and the cosine of its features (then `video` is it)."""

    action: str
    score: float
    video: str | None = None


@dataclass(frozen=True)
class FileAnswer:
    """guesses: best first; empty with a `problem`, a sentence that says why there are none."""

    file: str
    guesses: tuple[Guess, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class PredictOptions:
    """clips_per_video: even clips of a video. top: guesses per file. timeout_s: limit for decoding one file."""

    clips_per_video: int = 10
    top: int = 5
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.clips_per_video < 1 or self.top < 1 or self.timeout_s <= 0:
            raise EvaluationError(
                "clips per video and answers per file must be at least 1 and the time limit positive, got "
                f"{self.clips_per_video}, {self.top} and {self.timeout_s:g}"
            )


class VideoInMemory:
    """One decoded video in the form that features are taken from (`Frames`)."""

    def __init__(self, key: str, frames_THW3: NDArray[np.uint8]) -> None:
        self._frames = frames_THW3
        height, width = frames_THW3.shape[1:3]
        none = np.zeros(1, dtype=np.uint64)  # nothing is drawn, so the video needs no name in the generator
        self.videos = VideoTable(
            fingerprint=_NO_FINGERPRINT,
            keys=(key,),
            key_hashes=none,
            content_hashes=none,
            num_frames=np.array([len(frames_THW3)], dtype=np.int64),
            frame_size=(height, width),
        )

    def gather(self, batch: ViewBatch) -> list[NDArray[np.uint8]]:
        """The frames of every view."""
        return [self._frames[view["start"] : view["start"] + view["clip_len"]] for view in batch.records]


def predict(
    student: LoadedStudent,
    files: Sequence[Path],
    *,
    gallery: ClipStore | None = None,
    options: PredictOptions | None = None,
    progress: PhaseProgress | None = None,
) -> Iterator[FileAnswer]:
    """An answer for each file, in order, as soon as it is known.

    gallery: nearest videos are wanted; without it the student must have an action head. Raises EvaluationError when it
    has neither, and for a gallery without any of the files, before one is opened.
    """
    options = options or PredictOptions()
    if gallery is None:
        answerer: _Classifier | _Nearest = _Classifier(student, options)
    else:
        if not any(file.is_file() for file in files):  # a gallery takes a while
            raise EvaluationError(f"there is no such video file: {', '.join(map(str, files))}; expected paths of files")
        answerer = _Nearest(student, gallery, options, progress)
    frame_size = answerer.frame_size
    check_frames(frame_size, student.config.clip_spec, "what this student is asked about")
    return _answers(student, files, frame_size, answerer, options)


def _answers(
    student: LoadedStudent,
    files: Sequence[Path],
    frame_size: tuple[int, int],
    answerer: _Classifier | _Nearest,
    options: PredictOptions,
) -> Iterator[FileAnswer]:
    with DecodePool(decode, 1, options.timeout_s) as pool:
        for file, frames in zip(files, pool.map([(file, frame_size) for file in files]), strict=True):
            if isinstance(frames, Failure):
                yield FileAnswer(str(file), problem=frames.reason)
            elif len(frames) < student.config.clip_len:
                needed = student.config.clip_len
                yield FileAnswer(str(file), problem=f"it has {len(frames)} frames, this student needs {needed}")
            else:
                features = _features(student, VideoInMemory(str(file), frames), options)
                yield FileAnswer(str(file), answerer.guesses(features))


def _features(student: LoadedStudent, video: VideoInMemory, options: PredictOptions) -> NDArray[np.float32]:
    """[1, M, D]."""
    config = student.config
    only = np.zeros(1, dtype=np.int64)
    return clip_features(student.network, video, only, config.clip_spec, student_input(config), options.clips_per_video)


class _Classifier:
    """Answers of an action head, be it from fine-tuning, from labels in training or from an action teacher."""

    def __init__(self, student: LoadedStudent, options: PredictOptions) -> None:
        if student.network.action_head is None:
            raise EvaluationError(
                "this student has not learned to name actions: name a --store whose videos it shall compare with, "
                "or fine-tune it with preceptor eval ... --protocol finetune and ask the model that this writes"
            )
        if student.frame_size is None:
            raise EvaluationError(
                f"clip store {student.config.store}, on whose frames this student learned to name actions, is not "
                "here, so their size is not known: bring it back, or name a --store to compare with"
            )
        self.frame_size = student.frame_size
        self._student, self._top = student, options.top

    def guesses(self, features_1MD: NDArray[np.float32]) -> tuple[Guess, ...]:
        """The likeliest classes."""
        logits_K = mean_logits(self._student.network, features_1MD)[0].astype(np.float64)
        shares_K = np.exp(logits_K - logits_K.max())
        shares_K /= shares_K.sum()
        order = np.argsort(-shares_K, kind="stable")[: self._top]
        return tuple(Guess(self._student.classes[k], float(shares_K[k])) for k in order)


class _Nearest:
    """Nearest videos of a store; all of its videos that are long enough are the gallery."""

    def __init__(
        self, student: LoadedStudent, store: ClipStore, options: PredictOptions, progress: PhaseProgress | None
    ) -> None:
        spec = student.config.clip_spec
        check_frames(store.frame_size, spec, f"clip store {store.path}")
        self.frame_size = store.frame_size
        self._top = options.top
        rows = fitting(store, np.arange(len(store)), spec.clip_len, "gallery")
        classes = printable(store.classes)
        self._actions = [classes[int(label)] for label in store.labels[rows]]
        self._videos = printable(tuple(store.videos.keys[row] for row in rows))
        self._gallery_VMD = kept_features(
            student.network,
            store,
            rows,
            spec,
            student_input(student.config),
            options.clips_per_video,
            evaluations_folder() / student.key / "features",
            progress=phase_of(progress, "gallery"),
        )

    def guesses(self, features_1MD: NDArray[np.float32]) -> tuple[Guess, ...]:
        """The nearest videos."""
        near = nearest(features_1MD, self._gallery_VMD, self._top)
        return tuple(
            Guess(self._actions[place], float(cosine), self._videos[place])
            for place, cosine in zip(near.places[0], near.cosines[0], strict=True)
        )
