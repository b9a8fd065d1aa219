"""The arguments without a flag of `preceptor`, called in --help by what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Name = Annotated[Positional[str], arg(metavar="NAME")]
Teacher = Annotated[Positional[str], arg(metavar="TEACHER")]
Version = Annotated[Positional[int], arg(metavar="VERSION")]
Members = Annotated[Positional[tuple[str, ...]], arg(metavar="MEMBER=WEIGHT ...")]
Source = Annotated[Positional[str], arg(metavar="SOURCE")]
Student = Annotated[Positional[str], arg(metavar="STUDENT")]
Checkpoint = Annotated[Positional[str], arg(metavar="CHECKPOINT")]
Run = Annotated[Positional[str], arg(metavar="RUN")]
Files = Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE ...")]
