"""What a receiver holds, as it is told and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from module_utils.offline_rebuild.delta import Held, Holdings, common, read_holdings
from module_utils.offline_rebuild.errors import OfflineRebuildError
from tests.unit.depot import image_of

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def there(*images: tuple[str, ...]) -> Holdings:
    return Holdings("classic", "linux/amd64", tuple(Held(layers) for layers in images))


@pytest.mark.parametrize(
    ("held", "left_out"),
    [
        ([], 0),
        ([(A,)], 1),
        ([(A, B, C)], 2),
        ([(B,), (A,)], 1),
        # the same layer on another one is another to an engine
        ([(C, B), (B,)], 0),
        ([(A, C, B)], 1),
    ],
)
def test_what_counts_is_the_longest_common_beginning(held: list[tuple[str, ...]], left_out: int) -> None:
    image = image_of({"rootfs": {"type": "layers", "diff_ids": [A, B]}})
    assert common(image, there(*held))[0] == left_out


def test_what_is_printed_can_be_read() -> None:
    descriptors = ({"mediaType": "t", "digest": B, "size": 3},)
    for made in (there((A, B)), Holdings("containerd", "linux/arm64", (Held((A,), descriptors),))):
        assert read_holdings(json.dumps(made.to_dict())) == made
        assert read_holdings(json.dumps({"holdings": made.to_dict()})) == made


GOOD: dict[str, Any] = Holdings("classic", "linux/amd64", (Held((A,)),)).to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{}", "\0", "[" * 100_000,
        json.dumps({**GOOD, "schema": 2}),
        json.dumps({**GOOD, "store": "other"}),
        json.dumps({**GOOD, "store": "containerd"}),
        json.dumps({**GOOD, "images": [{"layers": ["sha256:x"]}]}),
        json.dumps({**GOOD, "images": [{"layers": ["../../etc"]}]}),
        json.dumps({**GOOD, "images": 3}),
        json.dumps({**GOOD, "store": "containerd", "images": [{"layers": [A], "descriptors": []}]}),
    ],
)  # fmt: skip
def test_what_is_not_of_the_form_is_an_error_with_its_file(text: str) -> None:
    with pytest.raises(OfflineRebuildError) as caught:
        read_holdings(text, "there.json")
    assert (caught.value.code, caught.value.file) == ("holdings-invalid", "there.json")
