"""Aligning a stage with a history: where the base ends, how far the text is the same, never further."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.ancestry import Alignment, align, is_base_of
from module_utils.offline_rebuild.image import Image
from module_utils.offline_rebuild.stage import global_args
from tests.unit.depot import build_input, image_of, made_config, timeline_of
from tests.unit.recorded import RECORDED, Recorded
from tests.unit.test_history import BUILDKIT, TEXTS


def aligned(
    image: Image, text: str, base: Image | None = None, args: dict[str, str] | None = None, boundary: int | None = None
) -> Alignment | None:
    build = build_input(text, args)
    triggers = ((base.config.get("config") or {}).get("OnBuild") or []) if base else []
    return align(image, timeline_of(build, triggers), build, global_args(build), base, boundary)


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_recorded_images_with_their_base(case: Recorded) -> None:
    image, base = image_of(case.image), image_of(case.base)
    assert is_base_of(base, image)
    assert not is_base_of(image, base)
    found = aligned(image, case.dockerfile, base, case.args)
    assert found is not None
    assert found.boundary == len(base.history)
    total = len(found.outcomes)
    assert found.matched == total, image.history[found.positions[-1]].created_by
    assert found.whole == (found.matched == total and case.name != "commit")
    layers = [found.layers_before(j) for j in range(found.matched)]
    assert layers == sorted(layers)


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_recorded_images_without_their_base(case: Recorded) -> None:
    """The boundary is found; the triggers of a base that is not there are taken for its own entries."""
    image, base = image_of(case.image), image_of(case.base)
    found = aligned(image, case.dockerfile, None, case.args)
    assert found is not None
    triggers = len(base.config["config"].get("OnBuild") or [])
    assert found.boundary == len(base.history) + triggers
    assert not found.base_present
    with_base = aligned(image, case.dockerfile, base, case.args)
    assert with_base is not None
    assert found.matched == with_base.matched - triggers


@pytest.mark.parametrize("case", [c for c in RECORDED if c.name == "full"], ids=str)
@pytest.mark.parametrize("with_base", [True, False])
def test_every_edited_line_ends_the_match(case: Recorded, with_base: bool) -> None:
    image, base = image_of(case.image), image_of(case.base)
    lines = case.dockerfile.splitlines()
    starts = [n for n, line in enumerate(lines) if n > 1 and not line.startswith("    ")]
    for place, line in enumerate(starts):
        if lines[line].startswith("ONBUILD"):
            continue
        edited = "\n".join([*lines[:line], "RUN something-else", *lines[line:]])
        found = aligned(image, edited, base if with_base else None, case.args)
        assert (found.matched if found else 0) <= place
        assert not with_base or (found is not None and found.matched == place)


def test_another_build_argument() -> None:
    for case in RECORDED:
        if case.name == "full":
            found = aligned(image_of(case.image), case.dockerfile, image_of(case.base), {**case.args, "VERSION": "3.0"})
            assert found is not None
            assert found.matched < 6  # ENV VERSION shows it
            found = aligned(
                image_of(case.image), case.dockerfile, image_of(case.base), {**case.args, "DISTRO": "other"}
            )
            assert found is not None
            assert found.matched < 11  # RUN shows it


BASE = "FROM scratch\nADD root.tar /\nENV LANG=C\nCMD x\n"


def test_two_places_that_fit_alike_are_none() -> None:
    base = made_config("FROM scratch\nRUN a\nRUN a\n")
    image = image_of(made_config("FROM base\nRUN a\n", base=base))
    assert aligned(image, "FROM base\nRUN a\nRUN b\n") is None
    assert aligned(image, "FROM base\nRUN a\nRUN b\n", boundary=2) is not None


def test_an_image_of_another_base_or_without_history_is_none() -> None:
    image = image_of(made_config("FROM base\nRUN a\n", base=made_config(BASE)))
    assert aligned(image, "FROM base\nRUN a\n", image_of(made_config(BASE.replace("LANG=C", "LANG=D")))) is None
    assert aligned(image_of({**made_config(BASE), "history": []}), "FROM base\nRUN a\n") is None
    assert aligned(image, "FROM base\n") is None
    bare = {**made_config(BASE), "history": []}
    assert not is_base_of(image_of(bare), image)


def test_arguments_that_a_derived_dockerfile_repeats_are_passed_over() -> None:
    base = made_config(BASE)
    built = image_of(made_config("FROM base\nARG A=1\nRUN a\nARG A=1\nRUN b\n", base=base))
    found = aligned(built, "FROM base\nARG A=1\nRUN a\nRUN b\n", image_of(base))
    assert found is not None
    assert found.whole
    # one that sets anew what an ENV had hidden is no repetition
    built = image_of(made_config("FROM base\nARG A=1\nENV A=2\nARG A=1\nRUN b\n", base=base))
    found = aligned(built, "FROM base\nARG A=1\nENV A=2\nRUN b\n", image_of(base))
    assert found is not None
    assert found.matched == 2


def test_an_argument_that_an_env_hides_need_not_be_repeated() -> None:
    base = made_config(BASE)
    built = image_of(made_config("FROM base\nARG A=1\nENV A=2\nRUN b\n", base=base))
    entries = [{**e, "created_by": e["created_by"].replace("|1 A=2 ", "")} for e in built.config["history"]]
    found = aligned(
        image_of({**built.config, "history": entries}), "FROM base\nARG A=1\nENV A=2\nRUN b\n", image_of(base)
    )
    assert found is not None
    assert found.whole


#: No two of these leave the same text.
LINES = [
    "RUN a",
    "RUN b",
    'RUN ["a"]',
    "COPY a /a",
    "COPY b /a",
    "ADD a /a",
    "ENV A=1",
    "ENV A=2",
    "ENV B=$A",
    "WORKDIR /a",
    "WORKDIR b",
    "CMD a",
    'CMD ["a"]',
    "ENTRYPOINT a",
    "USER 1",
    "USER 2",
    "LABEL a=1",
    "LABEL a=2",
    "EXPOSE 1",
    "EXPOSE 2/udp",
    "VOLUME /a",
    "STOPSIGNAL 9",
    "HEALTHCHECK NONE",
    "HEALTHCHECK CMD a",
    'SHELL ["/bin/x", "-c"]',
]
FILES = st.lists(st.sampled_from(LINES), min_size=1, max_size=8)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(FILES, FILES, st.integers(0, 8), st.booleans())
def test_never_further_than_the_files_are_the_same(old: list[str], new: list[str], keep: int, with_base: bool) -> None:
    new = old[:keep] + new
    base = made_config(BASE)
    image = image_of(made_config("\n".join(["FROM base", *old]), base=base))
    found = aligned(image, "\n".join(["FROM base", *new]), image_of(base) if with_base else None)
    same = next((n for n, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    if with_base:
        assert found is not None
        assert found.matched == same
        assert found.whole == (same == len(old))
    elif found is not None and found.boundary == len(base["history"]):
        assert found.matched == same


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from(["", BUILDKIT]), st.booleans()), max_size=7), FILES)
def test_any_history_is_aligned_or_not(entries: list[tuple[str, str, bool]], lines: list[str]) -> None:
    config = {
        "config": {"Env": ["A"], "Labels": None, "OnBuild": ["x"]},
        "history": [{"created_by": t, "comment": c, "empty_layer": e} for t, c, e in entries],
        "rootfs": {"diff_ids": [str(n) for n in range(sum(1 for e in entries if not e[2]))]},
    }
    for boundary in (None, 0, 3):
        found = aligned(image_of(config), "\n".join(["FROM base", *lines]), boundary=boundary)
        assert found is None or list(found.positions) == sorted(found.positions)
        assert found is None or found.positions[-1] <= max(len(entries), boundary or 0)


def test_a_long_history_does_not_take_long() -> None:
    entry = {"created_by": "RUN /bin/sh -c a # buildkit", "comment": BUILDKIT, "empty_layer": True}
    started = time.monotonic()
    for count in (300, 100_000):
        config = {
            "config": {},
            "history": [entry] * count + [{**entry, "empty_layer": False}] * 2,
            "rootfs": {"diff_ids": ["1", "2"]},
        }
        aligned(image_of(config), "FROM base\n" + "RUN a\n" * 12)
    assert time.monotonic() - started < 30
