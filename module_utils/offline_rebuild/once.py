"""Images that one host makes for others (``strategy: build_once``).

The builder makes a service's image, gives it a name of its own and writes a delta of it (delta.py); a receiver whose
tree asks for the very same inputs takes that image in place of making one. What is taken is compared with what the
builder said that it is: config digest and layers.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .cli import Docker
from .errors import OfflineRebuildError
from .graft import REGISTRY, SENT
from .image import Image, ImageStore
from .importer import ImportRequest, import_archives

__all__ = ["Sent", "forget", "hold", "name_of", "read_sent", "take"]


@dataclass(frozen=True)
class Sent:
    """An image that was made for this host.

    :param inputs: the digest of all that went into it; ``evidence`` and ``assumed``, what its reuse rested on.
    :param builder: the host that made it.
    :param ref: the name that it has in the archive, or here on the builder.
    :param config_digest: of its config; ``layers``, its diff_ids, bottom first.
    :param boundary: the number of history entries that are the base's; ``None`` where the builder does not know.
    :param archive: the delta's path on this host; ``""`` where the image is here.
    """

    service: str
    inputs: str
    builder: str
    ref: str = ""
    config_digest: str = ""
    layers: Tuple[str, ...] = ()
    evidence: str = ""
    assumed: Tuple[str, ...] = ()
    boundary: Optional[int] = None
    archive: str = ""


def read_sent(given: Sequence[Mapping[str, Any]]) -> Dict[str, Sent]:
    """:returns: service to the image that was made for it.

    :raises OfflineRebuildError: ``option-invalid``.
    """
    found: Dict[str, Sent] = {}
    for item in given:
        values = {key: value for key, value in item.items() if key in Sent.__dataclass_fields__ and value is not None}
        for key in ("layers", "assumed"):
            values[key] = tuple(values.get(key) or ())
        if not values.get("service") or not values.get("inputs") or not values.get("builder"):
            raise OfflineRebuildError(
                "option-invalid", "an image of sent lacks service, inputs or builder", "run the playbook rebuild.yml"
            )
        sent = Sent(**values)
        found[sent.service] = sent
    return found


def name_of(project: str, service: str) -> str:
    """:returns: the name that a service's image has on its way; it is taken away when the run is over."""
    return f"{REGISTRY}/{SENT}:" + re.sub(r"[^a-zA-Z0-9_.-]", "_", f"{project}-{service}")[:128]


def hold(store: ImageStore, image_id: str, ref: str) -> None:
    """Give an image its name on its way. One of an earlier run that never came to its swap goes, unless in use."""
    left = store.inspect_of(ref)
    store.docker.run("tag", image_id, ref, guarded=True)
    if left is not None and left["Id"] != image_id:
        store.docker.run("image", "rm", "--no-prune", str(left["Id"]), check=False)


def take(store: ImageStore, sent: Sent, state_dir: str) -> Image:
    """Load a delta, unless the image is here, and compare the image with what its builder said.

    :raises OfflineRebuildError: ``archive-missing``, ``archive-invalid``, ``archive-platform``, ``load-failed``,
        ``sent-differs``.
    """
    if sent.archive and _here(store, sent) is None:
        import_archives(ImportRequest((sent.archive,), state_dir=state_dir))
        store.forget()
    image = _here(store, sent)
    if image is None:
        have = store.find(sent.ref)
        raise OfflineRebuildError(
            "sent-differs",
            f"{sent.ref} is {have.config_digest if have is not None else 'not on this host'}, and {sent.builder} made "
            f"{sent.config_digest} for it; no service was touched",
            "run again; when it stays so, load the imported images of the two hosts again",
        )
    return image


def _here(store: ImageStore, sent: Sent) -> Optional[Image]:
    have = store.find(sent.ref)
    same = have is not None and have.config_digest == sent.config_digest and have.diff_ids == sent.layers
    return have if same else None


def forget(docker: Docker, sent: Mapping[str, Sent]) -> List[str]:
    """Take away the names that the images had on their way, and the archives. :returns: the names."""
    names = sorted({item.ref for item in sent.values() if item.ref})
    if names:
        docker.run("image", "rm", "--no-prune", *names, check=False)
    for item in sent.values():
        if item.archive:
            with contextlib.suppress(OSError):
                os.unlink(item.archive)
    return names
