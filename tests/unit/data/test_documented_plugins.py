"""The examples of a catalog and of a pretext operation in docs/plugins.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from data.catalogs import Catalog

DOCUMENT = Path(__file__).parents[3] / "docs" / "plugins.md"


def example(section: str) -> dict[str, Any]:
    """What the section's Python code defines."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names


def test_the_documented_catalog_reads_classes_and_groups_and_splits_by_person(tmp_path: Path) -> None:
    for name in ("run_anna_01.mp4", "run_ben_01.mp4", "jump_ben_02.mp4", "notes.txt"):
        (tmp_path / name).touch()
    catalog = example("Catalogs")["by_prefix"](tmp_path, None)
    assert isinstance(catalog, Catalog)
    assert catalog.classes == ("jump", "run")
    assert [(entry.key, entry.label, entry.group) for entry in catalog.entries] == [
        ("jump_ben_02.mp4", 0, "ben"),
        ("run_anna_01.mp4", 1, "anna"),
        ("run_ben_01.mp4", 1, "ben"),
    ]
    assert catalog.subsets == {"train01": ("jump_ben_02.mp4", "run_ben_01.mp4"), "test01": ("run_anna_01.mp4",)}


def test_the_documented_operation_shows_a_clip_backwards() -> None:
    clip = np.arange(2 * 1 * 1 * 3, dtype=np.uint8).reshape(2, 1, 1, 3)
    np.testing.assert_array_equal(example("Pretext operations")["reverse"](clip).ravel(), [3, 4, 5, 0, 1, 2])
