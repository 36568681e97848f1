"""A parser for the repository's Dockerfiles. It supports only what they use."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction, its continuation lines joined."""

    name: str
    text: str


def stages(path: Path) -> list[list[Instruction]]:
    """The instructions of each stage, from its FROM on. Instructions before the first FROM are left out."""
    text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#"))
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            found.append([])
        if name and found:
            found[-1].append(Instruction(name, rest.strip()))
    return found


def environment(stage: list[Instruction]) -> dict[str, str]:
    """The variables that the stage's ENV instructions set."""
    words = [word for instruction in stage if instruction.name == "ENV" for word in shlex.split(instruction.text)]
    return dict(word.split("=", 1) for word in words)


def sources(stages_: list[list[Instruction]]) -> list[str]:
    """The paths that are copied from the build context."""
    copies = [
        i.text.split() for stage in stages_ for i in stage if i.name == "COPY" and not i.text.startswith("--from=")
    ]
    return [source for words in copies for source in words[:-1]]


def health_check(stage: list[Instruction]) -> list[str]:
    """The command of the stage's HEALTHCHECK."""
    (check,) = [instruction.text for instruction in stage if instruction.name == "HEALTHCHECK"]
    command: list[str] = json.loads(check.partition("CMD ")[2])
    return command
