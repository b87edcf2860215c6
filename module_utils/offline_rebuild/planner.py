"""From a compose project, a tree and the local images to a plan; and from a plan's service to an image.

Planning reads only. Making loads grafts and builds; it never moves the service's own tag.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, AbstractSet, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from . import compose, debug, graft, once
from .ahead import Ahead, indexed
from .ancestry import align
from .cli import CommandFailed, Docker, parse_version
from .compose import Build, Project, Service
from .context import Context, diff
from .derive import Derived, blocked_reason, derive, derive_overlay, droppable, remaining, way_of, with_triggers
from .dockerfile import Dockerfile, parse
from .errors import OfflineRebuildError
from .files import write_atomic
from .ignorefile import load as load_ignore
from .image import Image, ImageStore, pull_remedy, sha256
from .importer import remember
from .later import Later
from .layers import EvidenceStore, LayerReader
from .places import RunningLayers
from .plan import MOST_COMMAND, MOST_FILES, Plan, ServicePlan, Start, mend_command
from .records import RecordStore, StageRecord
from .reuse import Analyzer, StageReuse
from .stage import BuildInput, canonical
from .supply import Sources, Supply, missing_in
from .swap import Wishes, judge

if TYPE_CHECKING:
    from .overlay import Overlay

__all__ = ["Planner", "Settings", "image_store"]

_TARGET_STAGE = "TARGETSTAGE"


@dataclass(frozen=True)
class Settings:
    """What the operator set for a run.

    :param evidence: the least evidence accepted: ``recorded``, ``observed`` or ``assumed``.
    :param may_write: whether caches under ``state_dir`` may be written (not in check mode).
    :param run_time: seconds since the epoch, given once by the controller for all hosts.
    :param wishes: what the operator set of the services' swap.
    :param trusting: the operator says that the tree is untouched (``prime``).
    :param cheapest: the cheapest way that may be taken: ``assemble``, ``thin graft`` or ``graft`` (tests force them).
    :param modes: ``exact``, or ``image``: files that the ancestor holds keep their mode from there.
    :param reuse: ``exact``, or ``overlay``: what cannot be made exact may be made by overlay (overlay.py).
    :param dependency_files: patterns of files that must not have changed for that, beside those known by name.
    :param overlay_run: the RUNs to run again on an overlay: parts of their texts, or line numbers.
    :param sent: service to an image that another host made for it (once.py).
    :param sources: folders on the host that RUNs may install from (supply.py).
    """

    state_dir: str
    build_args: Mapping[str, str]
    evidence: str = "assumed"
    may_write: bool = False
    run_time: int = 0
    cheapest: str = "assemble"
    trusting: bool = False
    modes: str = "exact"
    reuse: str = "exact"
    dependency_files: Tuple[str, ...] = ()
    overlay_run: Tuple[str, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)
    sent: Mapping[str, once.Sent] = field(default_factory=dict)
    sources: Sources = field(default_factory=Sources)


def image_store(docker: Docker, settings: Settings) -> ImageStore:
    """:returns: the local images, as a run with these settings reads them."""
    return ImageStore(docker, os.path.join(settings.state_dir, "configs"), settings.may_write)


class Planner:
    """Plans one project on one host, and makes the images of the plan."""

    def __init__(
        self,
        docker: Docker,
        project: Project,
        settings: Settings,
        wanted: Optional[AbstractSet[str]] = None,
        store: Optional[ImageStore] = None,
        ahead: Optional[Ahead] = None,
    ) -> None:
        self.docker = docker
        self._ahead = ahead
        self.project = project
        self.services = [s for s in project.services if not wanted or s.name in wanted]
        self.settings = settings
        self.store = store if store is not None else image_store(docker, settings)
        self.records = RecordStore(settings.state_dir)
        self.evidence = EvidenceStore(os.path.join(settings.state_dir, "layers"))
        self._running = RunningLayers(docker, self.store.layers) if self.store.content_dir is not None else None
        #: Thin layers and derived Dockerfiles of a run; here the next run finds what a killed one left, unlike in /tmp.
        self.work = os.path.join(settings.state_dir, "work", project.name)
        self._making = graft.Making(settings.state_dir)
        self._readers: Dict[str, LayerReader] = {}
        self._analyzers: Dict[str, Analyzer] = {}
        self._contexts: Dict[Tuple[str, str], Context] = {}
        self._ignored: Dict[Tuple[str, str], Optional[bytes]] = {}
        self.run_time = settings.run_time or int(time.time())
        self._made: Dict[Tuple[Any, ...], str] = {}

    # -- plan ---------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """:returns: what a run would do.

        :raises OfflineRebuildError: for input that cannot be planned for; nothing has been touched then.
        """
        later_containers = Later(lambda: compose.containers(self.docker, self.project))
        later_hashes = Later(lambda: compose.config_hashes(self.docker, self.project))
        one_shots = compose.one_shots(self.project)
        services: List[ServicePlan] = []
        hashes: Optional[Dict[str, str]] = None
        for service in self.services:
            planned = self._service(service)
            if planned.action == "unchanged":
                states = later_containers.result().get(service.name, [])
                if hashes is None:
                    every = later_containers.result()
                    hashes = compose.comparable_hashes(self.docker, self.project, every, later_hashes.result())
                wanted_hash = hashes.get(service.name, "")
                one_shot = service.name in one_shots
                reason = compose.service_state(service, planned.image_before, states, wanted_hash, one_shot)
                if reason:
                    planned = replace(planned, action="restart", reasons=(reason, *planned.reasons))
            services.append(planned)
        changed = {planned.service for planned in services if planned.changed}
        if changed:
            found = later_containers.result()
            services = [self._with_manner(s, found, changed) if s.changed else s for s in services]
        if self._ahead is not None:
            self._ahead.remember({s.name: self._scanned_by(s.build) for s in self.services if s.build is not None})
        return Plan(self.project.name, self.store.info.version, self.store.info.store, tuple(services))

    def _with_manner(
        self, planned: ServicePlan, states: Mapping[str, List[compose.ContainerState]], changed: AbstractSet[str]
    ) -> ServicePlan:
        """The volumes are those of the image that is there; the run looks again when it has the new one."""
        service = self.project.service(planned.service)
        current = self.store.inspect_of(service.image)
        volumes = tuple(((current or {}).get("Config") or {}).get("Volumes") or ())
        manner = judge(self.project, service, states, volumes, self.settings.wishes, changed)
        return replace(
            planned,
            swap=manner.swap,
            swap_why=manner.why,
            pregate=manner.pregate,
            pregate_why=manner.pregate_why,
        )

    def _service(self, service: Service) -> ServicePlan:
        current = self.store.inspect_of(service.image)
        before = str(current["Id"]) if current is not None else ""
        if service.build is None:
            if current is None:
                raise OfflineRebuildError(
                    "image-missing",
                    f"image {service.image} of service {service.name} is not on this host",
                    pull_remedy(service.image, self.store.info.platform),
                )
            return ServicePlan(service.name, service.image, "unchanged", image_before=before)
        analyzer = self.analyzer(service)
        target = analyzer.stage(analyzer.target)
        stages = tuple(analyzer.stage(index).to_plan() for index in analyzer.needed())
        start, dockerfile, reasons, files = self._first_change(analyzer)
        moded = sorted(
            {path for i in analyzer.needed() for found in analyzer.stage(i).modes.values() for path in found}
        )
        common = ServicePlan(
            service=service.name,
            image=service.image,
            action="unchanged",
            files=files,
            dockerfile=dockerfile,
            reused=target.proven,
            total=len(target.timeline.steps),
            start=start,
            evidence=target.evidence,
            assumed=target.assumed,
            ancestor=target.alignment.image.name if target.alignment else "",
            ancestor_digest=target.alignment.image.config_digest if target.alignment else "",
            inputs=_inputs(analyzer, service.build),
            image_before=before,
            stages=stages,
            mend=self._mend(service.build, analyzer) if any(change.mend for change in files) else "",
            image_modes=tuple(moded[:MOST_FILES]),
            image_modes_total=len(moded),
        )
        found = target.alignment.image if target.alignment else None
        if (
            target.alignment is not None
            and target.whole
            and found is not None
            and found.id == before
            and target.alignment.whole
        ):
            missing = self._other_labels(service.build, analyzer)
            if not missing:
                return common
            common = replace(common, way="graft", reasons=(f"labels changed: {', '.join(missing)}",))
            return self._labels_judged(replace(common, action="rebuild"), service.build, analyzer)
        sent = self.settings.sent.get(service.name)
        if sent is not None and sent.inputs == common.inputs:
            return _taken(common, sent, reasons)
        reason, remedy = blocked_reason(analyzer, self._supply(service.build))
        if reason:
            said = [reason, f"remedy: {remedy}"]
            if self.settings.reuse == "overlay":
                overlay, why_not = self._overlay(analyzer, service)
                if overlay is not None:
                    return self._overlaid(common, overlay, reason, current)
                said.append(f"no overlay: {why_not}")
            if common.mend and len(common.mend) <= MOST_COMMAND:
                said.append(f"some files differ by mode or line ends alone; mended by: {common.mend}")
            return replace(common, action="blocked", reasons=tuple(said))
        way = way_of(analyzer)
        if not reasons:
            reasons = (f"{found.name if found else service.image} holds this tree, {service.image} is another image",)
        planned = replace(common, action="rebuild", way=way, reasons=reasons)
        return self._labels_judged(planned, service.build, analyzer)

    def _labels_judged(self, planned: ServicePlan, build: Build, analyzer: Analyzer) -> ServicePlan:
        """A label that goes shows the base's again, if it has one: of a base that is absent, none is known."""
        target = analyzer.stage(analyzer.target)
        gone = self._gone_labels(build, analyzer)
        if not gone or target.alignment is None or target.base is not None or target.timeline.base == "scratch":
            return planned
        assumed = (*planned.assumed, *(f"FROM {target.timeline.base}: it sets no label {key}" for key in gone))
        if self.settings.evidence != "assumed":
            said = f"no evidence ({'; '.join(assumed)}), and offline_rebuild_evidence is {self.settings.evidence}"
            remedy = f"remedy: bring the image {target.timeline.base} here"
            return replace(planned, action="blocked", way="", reasons=(said, remedy), assumed=assumed)
        return replace(planned, evidence="assumed", assumed=assumed)

    def _first_change(self, analyzer: Analyzer) -> Tuple[Optional[Start], str, Tuple[str, ...], Tuple[Any, ...]]:
        """Where the build starts: the first instruction, in the order of the stages, that has to run."""
        name = os.path.relpath(analyzer.build.dockerfile.file, self.project.src)
        for stage, _ in remaining(analyzer):
            step = stage.start
            if step is not None:
                reason = stage.reason or "it follows a change"
                said = [f"{name}:{step.instruction.line} {step.title}: {reason}"]
                _, why_not = analyzer.thin(stage.timeline.index)
                if why_not:
                    said.append(f"no thin layer: {why_not}")
                if analyzer.modes == "image":
                    said += [
                        f"modes are the tree's and not the image's in line {copy.instruction.line} {copy.title}: "
                        f"{'nothing in the image stands for it' if stage.alignment else 'there is no ancestor'}"
                        for copy in analyzer.without_counterpart(stage)
                    ]
                return Start(step.instruction.line, step.title), name, tuple(said), stage.changes
        return None, name, (), ()

    @staticmethod
    def _mend(build: Build, analyzer: Analyzer) -> str:
        changes = [change for index in analyzer.needed() for change in analyzer.differences(analyzer.stage(index))]
        return mend_command(build.context, dict.fromkeys((change.mend, change.path) for change in changes))

    def _overlay(self, analyzer: Analyzer, service: Service) -> Tuple[Optional[Overlay], str]:
        """:returns: the overlay for a service that cannot be made exact, or why there is none."""
        from .overlay import Refused, plan_overlay

        assert service.build is not None
        settings = self.settings
        labels = self._overlay_labels(service.build, analyzer)
        try:
            return plan_overlay(analyzer, settings.dependency_files, settings.overlay_run, labels), ""
        except Refused as reason:
            return None, str(reason)

    def _overlaid(
        self, common: ServicePlan, overlay: Overlay, reason: str, current: Optional[Mapping[str, Any]]
    ) -> ServicePlan:
        steps = overlay.stage.timeline.steps
        planned = replace(
            common,
            action="rebuild",
            way="overlay",
            reasons=(f"cannot be exact: {reason}", *overlay.said),
            files=overlay.changes,
            start=None,
            evidence="overlay",
            assumed=overlay.assumed,
            not_run=tuple(f"line {step.instruction.line} {step.title}" for step in overlay.not_run),
            run_again=tuple(f"line {steps[place].instruction.line} {steps[place].title}" for place in overlay.again),
        )
        image = self.store.find(str(current["Id"])) if current is not None else None
        if image is not None and self.records.overlay_key(image.id, image.config_digest) == overlay.key:
            return replace(planned, action="unchanged", way="")
        return planned

    def _lost_labels(self, build: Build, analyzer: Analyzer) -> Set[str]:
        """Labels that the compose file gave an image of this service, by its record, and no longer gives."""
        target = analyzer.stage(analyzer.target)
        images = [self.store.find(name) for name in analyzer.preferred]
        images += [target.alignment.image] if target.alignment is not None else []
        known = [r for image in images if image is not None for r in self.records.of(image.id, image.config_digest)]
        return {key for record in known for key in record.labels} - set(build.labels)

    def _gone_labels(self, build: Build, analyzer: Analyzer) -> List[str]:
        """Those of the lost labels that nothing else sets."""
        return droppable(analyzer.stage(analyzer.target), self._lost_labels(build, analyzer))

    def _overlay_labels(self, build: Build, analyzer: Analyzer) -> Dict[str, Optional[str]]:
        """:returns: the compose file's labels as they are to be; without a value those that go."""
        return {**build.labels, **dict.fromkeys(self._gone_labels(build, analyzer))}

    def _other_labels(self, build: Build, analyzer: Analyzer) -> List[str]:
        """Labels that the image does not have as a build would give them, or has and should not."""
        target = analyzer.stage(analyzer.target)
        assert target.alignment is not None
        have = (target.alignment.image.config.get("config") or {}).get("Labels") or {}
        wanted: Dict[str, Optional[str]] = dict(build.labels)
        below = target.alignment.states[-1].config.get("Labels") or {}
        lost = self._lost_labels(build, analyzer)
        wanted.update({key: below.get(key) for key in lost})
        wanted.update(dict.fromkeys(droppable(target, lost)))
        return sorted(key for key, value in wanted.items() if have.get(key) != value)

    # -- analysis -----------------------------------------------------------------------------------------------------

    def analyzer(self, service: Service) -> Analyzer:
        """:returns: the analysis of a service's build, made once."""
        if service.name not in self._analyzers:
            self._analyzers[service.name] = self._analyze(service)
        return self._analyzers[service.name]

    def _analyze(self, service: Service) -> Analyzer:
        build = service.build
        assert build is not None
        _check_build(service, build)
        context = self.context(build)
        source = self.dockerfile(build)
        args = {key: value for key, value in build.args.items() if value is not None}
        args.update(self.settings.build_args)
        engine = self.store.info.platform
        wanted = build.platforms[0] if build.platforms else str(service.raw.get("platform") or engine)
        dockerfile = parse(source, build.dockerfile)
        knows = _knows_target_stage(self.store.info.version)
        if knows is None and _asks_target_stage(dockerfile, args):
            raise OfflineRebuildError(
                "build-unsupported",
                f"{build.dockerfile}: whether Docker {self.store.info.version} has a value for TARGETSTAGE is unknown",
                f"give service {service.name} the build argument TARGETSTAGE",
            )
        labels = frozenset(build.labels)
        parsed = BuildInput(dockerfile, args, wanted, engine, build.target or "", bool(knows), labels)
        return Analyzer(
            parsed,
            context,
            self.store,
            self.records,
            self.reader,
            preferred=(service.image,),
            least=self.settings.evidence,
            cheapest=self.settings.cheapest,
            trusting=self.settings.trusting,
            modes=self.settings.modes,
        )

    @staticmethod
    def dockerfile(build: Build) -> bytes:
        """:returns: the Dockerfile's bytes.

        :raises OfflineRebuildError: ``dockerfile-missing``.
        """
        if build.inline is not None:
            return build.inline.encode("utf-8", "surrogateescape")
        try:
            with open(build.dockerfile, "rb") as handle:
                return handle.read()
        except OSError as error:
            raise OfflineRebuildError(
                "dockerfile-missing",
                f"the Dockerfile cannot be read: {error.strerror}",
                "set build.dockerfile in the compose file",
                file=build.dockerfile,
            ) from None

    def context(self, build: Build) -> Context:
        """:returns: the context of a build, with its ignore file and its stat index."""
        key = (build.context, build.dockerfile)
        if key not in self._contexts:
            if not os.path.isdir(build.context):
                raise OfflineRebuildError(
                    "context-missing", "the build context is not a folder", "set build.context", file=build.context
                )
            where = self._scanned_by(build)
            ignore = load_ignore(*where)
            self._ignored[key] = _read(ignore.file) if ignore.file else None  # as the plan saw it
            scanned = self._ahead.take(*where, ignore) if self._ahead is not None else None
            if scanned is None:
                scanned = indexed(self.settings.state_dir, build.context, ignore, self.settings.may_write)
            self._contexts[key] = scanned
        return self._contexts[key]

    def _scanned_by(self, build: Build) -> Tuple[str, str, bool]:
        """:returns: context, Dockerfile, and whether the ignore file is read as by the CLI up to 20.10, which sends the
        context by rules of its own; buildx, which later ones call, by others."""
        dockerfile = build.dockerfile or os.path.join(build.context, "Dockerfile")
        return build.context, dockerfile, parse_version(self.store.info.client_version) < (23,)

    def reader(self, image: Image) -> LayerReader:
        """:returns: the reader of an image's layers."""
        if image.id not in self._readers:
            self._readers[image.id] = LayerReader(
                self.docker,
                image.inspect,
                image.diff_ids,
                image.layer_descriptors,
                self.store.content_dir,
                self.evidence,
                self.settings.may_write,
                self._running,
            )
        return self._readers[image.id]

    # -- making -------------------------------------------------------------------------------------------------------

    def make(self, planned: ServicePlan) -> str:
        """Make the image of a service that is to be rebuilt.

        :returns: its id; it has a name under :data:`graft.REGISTRY` until :meth:`clean` takes it away.
        :raises OfflineRebuildError: ``build-failed``, ``context-changed``, ``load-failed``.
        """
        service = next(s for s in self.project.services if s.name == planned.service)
        analyzer = self.analyzer(service)
        build = service.build
        assert build is not None
        key = (
            build.context,
            build.dockerfile,
            build.inline,
            analyzer.build.platform,
            repr((build.secrets, build.ssh, build.extra_hosts, build.shm_size, build.no_cache)),
            build.target,
            tuple(sorted(analyzer.build.args.items())),
            tuple(sorted(build.labels.items())),
        )
        self._making.begin()
        if key not in self._made:
            if planned.way == "delta":
                image_id = self._take(planned.service, analyzer, build)
            elif planned.way == "overlay":
                image_id = self._make_overlay(service, analyzer)
            else:
                image_id = self._make(service, analyzer)
                self._record(analyzer, image_id, build)
            self._made[key] = image_id
        return self._made[key]

    def made(self, planned: ServicePlan, image_id: str) -> Dict[str, Any]:
        """What was made for a service, for the comparison of hosts.

        :returns: ``service``, ``way``, ``evidence``, ``assumed``, ``inputs`` and ``ancestor_digest`` of its plan;
            ``config_digest``, ``layers`` (diff_ids, bottom first) and the base's ``boundary`` of its image.
        """
        image = self.store.find(image_id)
        records = self.records.of(image.id, image.config_digest) if image is not None else ()
        return {
            "service": planned.service,
            "way": planned.way,
            "evidence": planned.evidence,
            "assumed": list(planned.assumed),
            "boundary": records[0].boundary if records else None,
            "inputs": planned.inputs,
            "ancestor_digest": planned.ancestor_digest,
            "config_digest": image.config_digest if image is not None else "",
            "layers": list(image.diff_ids) if image is not None else [],
        }

    def _make(self, service: Service, analyzer: Analyzer) -> str:
        build = service.build
        assert build is not None
        target = analyzer.stage(analyzer.target)
        if target.whole and target.alignment is not None and target.alignment.whole:
            if not self._other_labels(build, analyzer):
                return target.alignment.image.id
        gone = self._gone_labels(build, analyzer)
        with self._folder() as folder:
            derived = derive(analyzer, self.run_time, folder, build.labels, gone, self._supply(build))
            for image in derived.grafts:
                graft.load(self.store, image)
        return self._built(service, analyzer, derived)

    def _supply(self, build: Build) -> Optional[Supply]:
        """:returns: what RUNs can have without a network; ``None`` where no folder is given."""
        if not self.settings.sources.given:
            return None
        names = (str(secret.get("target") or secret.get("source") or "") for secret in build.secrets)
        return Supply(self.settings.sources, frozenset(names))

    def _take(self, service: str, analyzer: Analyzer, build: Build) -> str:
        """Take the image that another host made, and record it as what this tree gives."""
        sent = self.settings.sent[service]
        image = once.take(self.store, sent, self.settings.state_dir)
        self.record(analyzer, analyzer.stage(analyzer.target), image, build, sent.boundary)
        return image.id

    def _make_overlay(self, service: Service, analyzer: Analyzer) -> str:
        """Make an image by overlay and record it as one: it is no ancestor that anything is proven by."""
        build = service.build
        assert build is not None
        overlay, why_not = self._overlay(analyzer, service)
        if overlay is None:
            raise OfflineRebuildError("plan-stale", f"there is no overlay any more: {why_not}", "run again")
        labels = self._overlay_labels(build, analyzer)
        with self._folder() as folder:
            derived = derive_overlay(
                analyzer, overlay.stage, overlay.layer, overlay.again, self.run_time, folder, labels
            )
            graft.load(self.store, derived.grafts[0])
        image_id = self._built(service, analyzer, derived)
        if derived.final is not None:  # after a build it has been looked at
            self._unchanged_since(analyzer)
        image = self.store.find(image_id)
        if image is not None:
            about = {
                "ancestor": overlay.alignment.image.id,
                "not_run": [step.title for step in overlay.not_run],
                "run_again": [overlay.stage.timeline.steps[place].title for place in overlay.again],
            }
            self.records.write_overlay(image.id, image.config_digest, overlay.key, about)
        return image_id

    def _built(self, service: Service, analyzer: Analyzer, derived: Derived) -> str:
        """Run what is left to run on the images that were loaded. :returns: the id of the result."""
        for name, image_id in derived.tags.items():
            self.docker.run("tag", image_id, name, guarded=True)
        if derived.final is not None:
            return derived.final.id
        name = f"{graft.REGISTRY}/build:{self.project.name}-{service.name}".lower()
        self._run_build(service, analyzer, derived.text, derived.target, name)
        self._unchanged_since(analyzer)
        found = self.docker.inspect("image", [name])
        if not found:
            raise OfflineRebuildError("build-failed", f"the build of {service.name} left no image")
        self.store.learn(found[0])
        if derived.onbuild:
            return self._with_triggers(service, name, derived.onbuild)
        return str(found[0]["Id"])

    def _with_triggers(self, service: Service, name: str, triggers: Sequence[str]) -> str:
        built = self.store.find(name)
        if built is None:
            raise OfflineRebuildError("build-failed", f"the image that the build of {service.name} left cannot be read")
        return graft.load(self.store, with_triggers(built, triggers))

    def _run_build(
        self, service: Service, analyzer: Analyzer, text: str, target: str, name: str, more: Sequence[str] = ()
    ) -> None:
        build = service.build
        assert build is not None
        with self._folder() as folder:
            path = os.path.join(folder, "Dockerfile")
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as handle:
                handle.write(text)
            ignored = self._ignored[(build.context, build.dockerfile)]
            if ignored is not None:
                with open(path + ".dockerignore", "wb") as raw:
                    raw.write(ignored)
            argv = ["build", "--progress=plain", "--network=none", "-f", path, "-t", name, "--target", target]
            for key, value in analyzer.build.args.items():
                argv += ["--build-arg", f"{key}={value}"]
            argv += _target_stage(analyzer, text)
            for key, value in build.labels.items():
                argv += ["--label", f"{key}={value}"]
            argv += [*more, *_build_flags(build, self.project)]
            if analyzer.build.platform != analyzer.build.host_platform:
                argv += ["--platform", analyzer.build.platform]
            try:
                self.docker.run(*argv, build.context, env={"DOCKER_BUILDKIT": "1"}, guarded=True)
            except CommandFailed as failed:
                log = failed.result.stderr
                self._check_supply(service, log, analyzer.build.dockerfile.file)
                about, line, instruction = debug.of_build(
                    service.name, log, text, analyzer.build.dockerfile, self.project.src, self.run_time
                )
                tail, remedy = _build_tail(log), ""
                if "invalid UTF-8" in tail:
                    remedy = _rename_remedy(analyzer.context.manifest())
                raise debug.BuildFailed(
                    f"the build of service {service.name} failed"
                    + (f" at {instruction}" if instruction else "")
                    + f":\n{tail}",
                    remedy or "mend the instruction, or build the image on a connected machine and bring it in",
                    analyzer.build.dockerfile.file,
                    line,
                    log,
                    about,
                ) from None

    def _check_supply(self, service: Service, log: str, file: str) -> None:
        """:raises OfflineRebuildError: ``dependency-missing`` where that is why a build failed."""
        missing = missing_in(log) if self.settings.sources.given else ""
        if missing:
            raise OfflineRebuildError(
                "dependency-missing",
                f"the build of service {service.name} failed, nothing that serves was touched: {missing}",
                "get all that the instruction installs on a connected machine with the same Python or Node, put it "
                "into the folder; see docs/dependencies.md",
                file=file,
            )

    def keep_last_good(self, service_name: str, stage: str, place: int, name: str, labels: Mapping[str, str]) -> None:
        """Build a service's derived Dockerfile up to an instruction, see :func:`debug.cut`, and name the result.

        :raises OfflineRebuildError: ``build-failed``, ``context-changed``, ``load-failed``.
        """
        service = self.project.service(service_name)
        analyzer = self.analyzer(service)
        assert service.build is not None
        self._making.begin()
        with self._folder() as folder:
            gone = self._gone_labels(service.build, analyzer)
            derived = derive(analyzer, self.run_time, folder, service.build.labels, gone, self._supply(service.build))
            for image in derived.grafts:
                graft.load(self.store, image)
        for ref, image_id in derived.tags.items():
            self.docker.run("tag", image_id, ref, guarded=True)
        more = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
        self._run_build(service, analyzer, debug.cut(derived.text, stage, place), stage, name, more)
        self._unchanged_since(analyzer)

    @staticmethod
    def _unchanged_since(analyzer: Analyzer) -> None:
        """What the plan saw must be what was built: a file edited in between would be recorded wrongly."""
        context = analyzer.context
        now = Context(context.given_root, context.ignore, context.index).manifest()
        if not analyzer.unchanged_in(now):
            changed = diff(context.manifest(), now)[0].path
            raise OfflineRebuildError(
                "context-changed",
                "the context changed while the image was built",
                "run again when the files are at rest",
                file=os.path.join(context.given_root, changed),
            )

    def _record(self, analyzer: Analyzer, image_id: str, build: Build) -> None:
        if self.store.inspect_of(image_id) is None:
            self.store.forget()
        image = self.store.find(image_id)
        stage = analyzer.stage(analyzer.target)
        if image is not None:
            self.record(analyzer, stage, image, build)

    def record(
        self, analyzer: Analyzer, stage: StageReuse, image: Image, build: Build, boundary: Optional[int] = None
    ) -> bool:
        """Record that a stage, as the tree is now, is what an image holds.

        :param build: the compose file's, for the labels of the target.
        :param boundary: the number of history entries that are the base's, where it is known.
        :returns: whether a record was written.
        """
        if boundary is None and stage.alignment is not None:
            boundary = stage.alignment.boundary
        found = align(image, stage.timeline, analyzer.build, analyzer.outer, stage.base, boundary, True)
        if found is None or found.matched != len(stage.timeline.steps) or not found.whole:
            return False
        positions = list(found.positions)
        layer, _ = analyzer.thin(stage.timeline.index)
        if layer is not None:  # one layer for several instructions: there is no cut between them
            positions[layer.start + 1 : layer.end] = [-1] * (layer.end - layer.start - 1)
        stored: Dict[str, str] = {}
        for place, manifest in stage.manifests.items():
            digest = manifest.digest()
            path = self.records.manifest_path(digest)
            if not os.path.exists(path):
                write_atomic(path, manifest.to_json().encode())
            stored[str(place)] = digest
        return self.records.write(
            image.id,
            image.config_digest,
            StageRecord(
                base=stage.timeline.base,
                base_id=stage.base.id if stage.base else "",
                triggers=tuple(((stage.base.config.get("config") or {}).get("OnBuild") or ()) if stage.base else ()),
                boundary=found.boundary,
                positions=tuple(positions),
                keys=stage.keys,
                texts=tuple(canonical(step.instruction) for step in stage.timeline.steps),
                manifests=stored,
                images=analyzer.images_of(stage.timeline.index),
                modes="image" if any(stage.modes.values()) else "exact",
                labels=tuple(sorted(build.labels)) if stage.timeline.index == analyzer.target else (),
            ),
        )

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        os.makedirs(self.work, mode=0o700, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.work)

    @property
    def left_behind(self) -> bool:
        """:returns: whether an earlier run could not take away what it made."""
        return os.path.isdir(self.work)

    def clean(self) -> None:
        """Take away the names and files that making left, now or in a run that was cut off; the layers that are in use
        stay. What was known of the host's images is forgotten."""
        shutil.rmtree(self.work, ignore_errors=True)
        try:
            self._making.end(lambda: graft.remove_left_behind(self.docker))
        except (OfflineRebuildError, OSError):  # the engine is away, or the disk full: the next run sees the folder
            with contextlib.suppress(OSError):
                os.makedirs(self.work, mode=0o700, exist_ok=True)
        self.store.forget()
        self._analyzers.clear()
        self._made.clear()

    def prime(self) -> List[Tuple[str, bool, str]]:
        """Record the tree as it is for every image that holds it, on the operator's word that it is untouched; and what
        the layers hold of every image that may be an ancestor.

        :returns: per service its name, whether something new was recorded, and why not where the tree is not what the
            image holds.
        """
        self.settings = replace(self.settings, evidence="assumed", trusting=True)
        self._analyzers.clear()
        found: List[Tuple[str, bool, str]] = []
        for service in self.services:
            if service.build is None:
                continue
            analyzer = self.analyzer(service)
            written, why = False, ""
            for image in analyzer.possible():
                written = remember(image, self.reader(image)) > 0 or written
            for index in analyzer.needed():
                stage = analyzer.stage(index)
                if stage.whole and stage.alignment is not None and stage.alignment.whole:
                    written = (
                        self.settings.may_write and self.record(analyzer, stage, stage.alignment.image, service.build)
                    ) or (written or not self._recorded(analyzer, stage))
                elif index == analyzer.target:
                    why = stage.reason
            found.append((service.name, written, why))
        return found

    def _recorded(self, analyzer: Analyzer, stage: StageReuse) -> bool:
        assert stage.alignment is not None
        image = stage.alignment.image
        images = analyzer.images_of(stage.timeline.index)
        known = self.records.of(image.id, image.config_digest)
        return any(record.keys == stage.keys and dict(record.images) == images for record in known)


def _taken(common: ServicePlan, sent: once.Sent, reasons: Tuple[str, ...]) -> ServicePlan:
    """:returns: the plan of a service whose image another host made from the same inputs."""
    return replace(
        common,
        action="rebuild",
        way="delta",
        reasons=(f"{sent.builder} makes the image, it is sent from there", *reasons),
        evidence=sent.evidence or common.evidence,
        assumed=sent.assumed,
        start=None,
    )


def _check_build(service: Service, build: Build) -> None:
    """:raises OfflineRebuildError: ``build-unsupported`` for what cannot be judged or built here."""
    why = ""
    if build.remote:
        why = f"its build context {build.context} is not a folder on this host"
    elif build.additional_contexts:
        why = "build.additional_contexts is not understood"
    elif build.unknown:
        why = f"build.{', build.'.join(build.unknown)} is not understood"
    if why:
        raise OfflineRebuildError(
            "build-unsupported", f"service {service.name}: {why}", "take the service out of offline_rebuild_services"
        )


def _knows_target_stage(version: str) -> Optional[bool]:
    """:returns: whether an engine's BuildKit predefines TARGETSTAGE, None where it was not tried: 20.10 and 26.1 leave
    it empty, 28.5 gives the target's name."""
    major = parse_version(version)[:1]
    return None if not major or (26,) < major < (28,) else major >= (28,)


def _asks_target_stage(dockerfile: Dockerfile, args: Mapping[str, str]) -> bool:
    """:returns: whether the predefined value of TARGETSTAGE may reach a build. An ARG that gives it a default is left
    alone: a build argument would override that."""
    every = [*dockerfile.meta_args, *(i for stage in dockerfile.stages for i in stage.instructions)]
    values = [value for i in every if i.keyword == "ARG" for key, value in i.pairs if key == _TARGET_STAGE]
    in_from = any(_TARGET_STAGE in f"{stage.base} {stage.platform}" for stage in dockerfile.stages)
    return _TARGET_STAGE not in args and all(value is None for value in values) and (bool(values) or in_from)


def _target_stage(analyzer: Analyzer, text: str) -> List[str]:
    """TARGETSTAGE as BuildKit has it for the whole Dockerfile: in the derived one the target has another name."""
    build = analyzer.build
    if _TARGET_STAGE not in text or not build.target_stage or not _asks_target_stage(build.dockerfile, build.args):
        return []
    return ["--build-arg", f"{_TARGET_STAGE}={analyzer.outer[_TARGET_STAGE]}"]


def _build_flags(build: Build, project: Project) -> List[str]:
    """The flags of ``docker build`` for what the compose file says of a build."""
    flags: List[str] = []
    for secret in build.secrets:
        source = str(secret.get("source") or "")
        name = str(secret.get("target") or source)
        where = (project.raw.get("secrets") or {}).get(source) or {}
        if where.get("file"):
            flags += ["--secret", f"id={name},src={where['file']}"]
        elif where.get("environment"):
            flags += ["--secret", f"id={name},env={where['environment']}"]
    for item in build.ssh:
        flags += ["--ssh", item]
    for host in build.extra_hosts:
        flags += ["--add-host", host]
    if build.shm_size:
        flags += ["--shm-size", str(build.shm_size)]
    if build.no_cache:
        flags.append("--no-cache")
    return flags


def _inputs(analyzer: Analyzer, build: Build) -> str:
    """The digest of all that goes into a build's image; the same on every host with the same tree, whatever the times
    of its files."""
    keys, _ = analyzer.keys(analyzer.target)
    timeline = analyzer.timelines[analyzer.target]
    parts = [timeline.base, timeline.platform, keys[-1:], sorted(build.labels.items())]
    return sha256(json.dumps(parts).encode())


def _read(path: str) -> bytes:
    with open(path, "rb") as handle:
        return handle.read()


def _rename_remedy(context: Iterable[str]) -> str:
    """Later engines send names as UTF-8 to the builder, and can build nothing from a context with others."""
    odd = next((path for path in context if any("\udc80" <= char <= "\udcff" for char in path)), "")
    what = repr(odd.encode("utf-8", "surrogateescape"))[1:]
    return f"this engine builds from names in UTF-8 only: rename {what}, or name it in the ignore file" if odd else ""


def _build_tail(stderr: str, lines: int = 25) -> str:
    """The last lines of a build's log, without the transfer chatter."""
    kept = [line for line in stderr.splitlines() if line.strip() and "transferring" not in line]
    return "\n".join(kept[-lines:])
