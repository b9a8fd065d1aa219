"""The `preceptor predict` command: what it takes; what it does is imported when it runs."""

from __future__ import annotations

from services.arguments import Checkpoint, Files


def predict(
    checkpoint: Checkpoint,
    files: Files,
    store: str = "",
    clips: int = 10,
    top: int = 5,
    timeout_s: float = 60.0,
    json: bool = False,
) -> int:
    """Ask a student which action video files show.

    A student that has an action head (from fine-tuning, --ce-weight or an action teacher) names classes; any other one
    names the nearest videos of a store. The exit code is 1 when a file could not be answered.

    Example: preceptor predict my-run clip.mp4 other.avi --store demo

    Args:
        checkpoint: the model folder that preceptor eval --protocol finetune wrote, or a run; see above.
        files: videos.
        store: clip store whose videos the files are compared with.
        clips: even clips per video; their answers are averaged.
        top: answers per file.
        timeout_s: seconds that decoding one file may take.
        json: print the answers as JSON.
    """
    from services.evaluating import predict_and_print

    return predict_and_print(checkpoint, files, store=store, clips=clips, top=top, timeout_s=timeout_s, json_=json)
