"""tests/data/history.json: what real engines made of some Dockerfiles, and of each of their beginnings.

``{engine: {"bases": {name: config}, "cases": {name: {"dockerfile", "args", "base", "image": config, "prefixes":
[{"config", "history", "layers"}]}}}}``; ``prefixes[n]`` is what a build of the file up to its n-th instruction gave.
Recorded with 20.10.24 (bookworm), 26.1.5 (trixie) and 28.5.2 with the containerd store (testing).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from module_utils.offline_rebuild.dockerfile import parse

DATA: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data" / "history.json").read_text("utf-8"))
#: Fields that engines fill in and that mean nothing in an image.
_IDLE = frozenset(
    "Hostname Domainname AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Image ArgsEscaped".split()
)


@dataclass(frozen=True)
class Recorded:
    """One Dockerfile, built by one engine."""

    engine: str
    name: str
    dockerfile: str
    args: dict[str, str]
    base: dict[str, Any]
    base_name: str
    image: dict[str, Any]
    results: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.engine}-{self.name}"

    @property
    def classic(self) -> bool:
        """Whether the classic builder made it."""
        return self.name == "classic"

    def prefixes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The file up to each instruction after the first FROM, and what a build of it gave."""
        lines = self.dockerfile.splitlines(keepends=True)
        ends: list[int] = []
        for stage in parse(self.dockerfile.encode()).stages:
            ends += [stage.from_instruction.end_line, *(i.end_line for i in stage.instructions)]
        yield from zip(("".join(lines[:end]) for end in ends), self.results, strict=bool(self.results))


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is empty or means nothing."""
    return {
        key: {k: v for k, v in value.items() if v or key != "Healthcheck"} if isinstance(value, dict) else value
        for key, value in config.items()
        if value and key not in _IDLE and (key, value) != ("WorkingDir", "/")
    }


RECORDED = [
    Recorded(
        engine,
        name,
        case["dockerfile"],
        case["args"],
        made["bases"][case["base"]],
        case["base"],
        case["image"],
        tuple(case["prefixes"]),
    )
    for engine, made in DATA.items()
    for name, case in made["cases"].items()
]
