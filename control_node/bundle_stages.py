"""What of a project goes into a bundle: its images, bases and build stages, by name, and its compose files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from module_utils.offline_rebuild.cli import CommandFailed, Docker
from module_utils.offline_rebuild.compose import Project, Service
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.planner import Planner, Settings, _build_flags
from module_utils.offline_rebuild.presence import needs
from module_utils.offline_rebuild.run import Request, open_project

__all__ = ["build", "names", "project_of", "put_files", "run_request"]


def run_request(request: Any, **more: Any) -> Request:
    """:returns: a request of the core for the project of a :class:`bundle_make.MakeRequest`."""
    return Request(
        project_src=str(Path(request.project_src).absolute()),
        compose_files=request.compose_files,
        env_files=request.env_files,
        profiles=request.profiles,
        project_name=request.project_name or None,
        build_args=request.build_args,
        **more,
    )


def project_of(docker: Docker, request: Any) -> Project:
    """:returns: the compose project.

    :raises OfflineRebuildError: ``project-missing``, ``compose-invalid`` and others of compose.
    """
    if not Path(request.project_src).is_dir():
        raise OfflineRebuildError(
            "project-missing", "the project folder does not exist", "set offline_rebuild_project_src",
            request.project_src,
        )  # fmt: skip
    docker.require()
    return open_project(docker, run_request(request))


def _planner(docker: Docker, project: Project, request: Any) -> Planner:
    args = {key: str(value) for key, value in request.build_args.items()}
    return Planner(docker, project, Settings("/nonexistent", args))


def names(docker: Docker, project: Project, request: Any) -> tuple[list[str], list[str]]:
    """:returns: the services' images; the bases and other images that Dockerfiles name, and the images of stages
    (``<repository>:<stage>``), where they are here; and the images of stages that are not."""
    planner = _planner(docker, project, request)
    found = [service.image for service in project.services]
    stages = list(dict.fromkeys(name for _, _, name in _stages(planner)))
    wanted = [need.name for need in needs(planner)] + stages
    here = [name for name in wanted if planner.store.find(name) is not None]
    return found + here, [name for name in stages if name not in here]


def _stages(planner: Planner) -> Iterator[tuple[Service, str, str]]:
    """Service, stage and name of the image of each named stage before the last that its build needs."""
    for service in planner.services:
        if service.build is not None:
            analyzer = planner.analyzer(service)
            for index in analyzer.needed():
                stage = analyzer.timelines[index].name
                if stage and index != analyzer.target:
                    yield service, stage, f"{service.image.rsplit(':', 1)[0]}:{stage}"


def build(docker: Docker, project: Project, request: Any) -> None:
    """Build the images of the stages that are not here.

    :raises OfflineRebuildError: ``build-failed``.
    """
    planner = _planner(docker, project, request)
    for service, stage, name in _stages(planner):
        section = service.build
        if section is None or planner.store.find(name) is not None:
            continue
        argv = ["build", "--target", stage, "-t", name, "-f", section.dockerfile or "-"]
        for key, value in planner.analyzer(service).build.args.items():
            argv += ["--build-arg", f"{key}={value}"]
        argv += [*_build_flags(section, project), section.context]
        stdin = section.inline.encode() if section.inline is not None else None
        try:
            docker.run(*argv, stdin=stdin, env={"DOCKER_BUILDKIT": "1"}, cwd=project.src)
        except CommandFailed as failed:
            raise OfflineRebuildError(
                "build-failed",
                f"stage {stage} of service {service.name} cannot be built: {failed.result.stderr.strip()[-2000:]}",
                "mend the Dockerfile, or leave offline_rebuild_bundle_build_stages out",
                section.dockerfile or None,
            ) from None


def put_files(folder: Path, project: Project, request: Any) -> None:
    """Copy the compose files, and the env files that are named, into the bundle's ``project``."""
    env = [str(Path(project.src) / name) for name in request.env_files]
    for file in dict.fromkeys([*project.files, *env]):
        name = os.path.relpath(file, project.src)
        target = folder / "project" / (Path(file).name if name.startswith("..") else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
