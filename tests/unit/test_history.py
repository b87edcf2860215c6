"""Reading histories: which text is which instruction's, and what the config was at a point."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.history import UNKNOWN, config_at, is_certain, is_redundant_arg, matches, touches
from module_utils.offline_rebuild.image import HistoryEntry, parse_history
from module_utils.offline_rebuild.stage import dispatch, global_args, scratch_config, start_state
from tests.unit.depot import PLATFORM, build_input, image_of, made_config, timeline_of
from tests.unit.recorded import DATA, RECORDED, Recorded, plain

BUILDKIT = "buildkit.dockerfile.v0"
NOP = "/bin/sh -c #(nop) "
#: Instruction, created_by, comment, has a layer, whether it is a match.
FORMS = (
    # BuildKit
    ("RUN a  b", "RUN /bin/sh -c a  b # buildkit", BUILDKIT, True, True),
    ("RUN a  b", "RUN /bin/sh -c a b # buildkit", BUILDKIT, True, False),
    ("RUN a", "RUN /bin/sh -c a # buildkit", BUILDKIT, False, False),
    ("RUN a", "RUN |1 A=1 /bin/sh -c a # buildkit", BUILDKIT, True, False),
    ("RUN a", "RUN a", BUILDKIT, True, False),
    ('RUN ["a", "b"]', "RUN a b # buildkit", BUILDKIT, True, True),
    ("COPY a b /c/", "COPY a b /c/ # buildkit", BUILDKIT, True, True),
    ("COPY --chown=1 a /c", "COPY --chown=1 a /c # buildkit", BUILDKIT, True, True),
    ("COPY --chown=1 a /c", "COPY a /c # buildkit", BUILDKIT, True, True),
    ("COPY a /c", "COPY --chown=1 a /c # buildkit", BUILDKIT, True, False),
    ("COPY --link a /c", "COPY a /c # buildkit", BUILDKIT, True, True),
    ("ADD a /c", "COPY a /c # buildkit", BUILDKIT, True, False),
    ("COPY a /c", "COPY a /c # buildkit", BUILDKIT, False, False),
    ("ENV A=1 B='x y'", "ENV A=1 B=x y", BUILDKIT, False, True),
    ("ENV A 1 2", "ENV A=1 2", BUILDKIT, False, True),
    ("ENV A=1", "ENV A=2", BUILDKIT, False, False),
    ("WORKDIR /a/../b/", "WORKDIR /a/../b/", BUILDKIT, True, True),
    ("WORKDIR /b", "WORKDIR /b", BUILDKIT, False, True),
    ("WORKDIR /", "WORKDIR /", BUILDKIT, False, True),
    ("CMD a", 'CMD ["/bin/sh" "-c" "a"]', BUILDKIT, False, True),
    ('CMD ["a"]', 'CMD ["/bin/sh" "-c" "a"]', BUILDKIT, False, False),
    ("EXPOSE 80 53/udp", "EXPOSE map[53/udp:{} 80/tcp:{}]", BUILDKIT, False, True),
    ("EXPOSE 80 53/udp", "EXPOSE [53/udp 80/tcp]", BUILDKIT, False, True),
    ("EXPOSE 81", "EXPOSE [80/tcp]", BUILDKIT, False, False),
    ("HEALTHCHECK NONE", 'HEALTHCHECK &{["NONE"] "0s" "0s" "0s" \'\\x00\'}', BUILDKIT, False, True),
    (
        "HEALTHCHECK --retries=10 CMD a",
        'HEALTHCHECK &{["CMD-SHELL" "a"] "0s" "0s" "0s" "0s" \'\\n\'}',
        BUILDKIT,
        False,
        True,
    ),
    ("LABEL a=b", "LABEL a=b", BUILDKIT, False, True),
    ("USER 1:2", "USER 1:2", BUILDKIT, False, True),
    ('SHELL ["a", "b"]', "SHELL [a b]", BUILDKIT, False, True),
    ("VOLUME /a /b", "VOLUME [/a /b]", BUILDKIT, False, True),
    ("STOPSIGNAL 9", "STOPSIGNAL 9", BUILDKIT, False, True),
    # the classic builder
    ("RUN a", "/bin/sh -c a", "", True, True),
    ("RUN a", "/bin/sh -c a", "", False, True),
    ("RUN a", "/bin/sh -c b", "", True, False),
    ("RUN a", "|1 A=1 /bin/sh -c a", "", True, False),
    ("RUN a", f"{NOP} RUN a", "", True, False),
    ('RUN ["a", "b"]', "a b", "", True, True),
    ("COPY a b /c/", f"{NOP}COPY multi:0123456789abcdef in /c/ ", "", True, True),
    ("COPY a /c", f"{NOP}COPY file:0123456789abcdef in /c ", "", True, True),
    ("COPY a c", f"{NOP}COPY file:0123456789abcdef in /c ", "", True, True),
    ("COPY a /d", f"{NOP}COPY file:0123456789abcdef in /c ", "", True, False),
    ("ADD a /c", f"{NOP}COPY file:0123456789abcdef in /c ", "", True, False),
    ("COPY --chown=1:1 a /c", f"{NOP}COPY --chown=1:1 file:0123456789abcdef in /c ", "", True, True),
    ("COPY --chown=1:1 a /c", f"{NOP}COPY file:0123456789abcdef in /c ", "", True, False),
    ("COPY --from=x:1 a /c", f"{NOP}COPY file:0123456789abcdef in /c ", "", True, True),
    ("ADD https://x/y /c", f"{NOP}ADD 0123456789abcdef in /c ", "", True, False),
    ("ENV A=1", f"{NOP} ENV A=1", "", False, True),
    ("ENV A=1", f"{NOP} ENV A=1", "", True, False),
    ("CMD a", f'{NOP} CMD ["/bin/sh" "-c" "a"]', "", False, True),
    ("EXPOSE 80", f"{NOP} EXPOSE 80", "", False, True),
    ("WORKDIR /a", f"{NOP}WORKDIR /a", "", False, True),
    ("LABEL a=b", f"{NOP} LABEL a=b", "", False, True),
    ("VOLUME /a", f"{NOP} VOLUME [/a]", "", False, True),
    # buildah
    ("RUN a", "/bin/sh -c a", "FROM docker.io/library/x:1", True, True),
    ("ENV A=1", f"{NOP}ENV A=1", "", False, True),
    ("COPY a /c", f"{NOP}COPY file:0123456789abcdef in /c", "", True, True),
    # kaniko, and whoever else writes the instruction as it stands
    ("COPY a   /c", "COPY a /c", "", True, True),
    ("RUN a", "RUN a", "", True, False),
    ("ENV A=1", "ENV A=1", "", False, True),
    # docker commit, docker import, nothing at all
    ("RUN a", "", "", True, False),
    ("COPY a /c", "touch /x", "a note", True, False),
    ("ENV A=1", "", "Imported from -", True, False),
)


@pytest.mark.parametrize(("line", "text", "comment", "layer", "same"), FORMS)
def test_forms(line: str, text: str, comment: str, layer: bool, same: bool) -> None:
    build = build_input(f"FROM scratch\n{line}\n")
    (step,) = timeline_of(build).steps
    outcome = dispatch(start_state(scratch_config(PLATFORM)), step, build, global_args(build))
    assert matches(HistoryEntry(text, comment, 0 if layer else None), outcome, step, "/") == same


@pytest.mark.parametrize("case", [c for c in RECORDED if c.results and c.name != "chain"], ids=str)
def test_the_config_at_every_cut(case: Recorded) -> None:
    """From the finished image alone, held against a real build of each beginning of the file."""
    image = image_of(case.image)
    told = 0
    for prefix in case.results:
        document, unknown = config_at(image, prefix["history"])
        assert len(document["rootfs"]["diff_ids"]) == prefix["layers"]
        assert len(document["history"]) == prefix["history"]
        have, want = plain(document["config"]), plain(prefix["config"])
        have.pop("OnBuild", None), want.pop("OnBuild", None)  # no history tells of them
        for field, key in unknown:
            for config in (have, want):
                if field == "Env":
                    config[field] = [item for item in config[field] if item.partition("=")[0] != key]
                elif key and field in config:
                    config[field] = {k: v for k, v in config[field].items() if k != key}
                else:
                    config.pop(field, None)
        assert have == want, case.dockerfile.splitlines()[prefix["history"] - len(case.base["history"])]
        told += 1 if not unknown else 0
    assert told


def test_what_no_instruction_set_is_unknown() -> None:
    """Bases of Bazel, apko and others have a config that no entry tells of."""
    app = "FROM base\nUSER app\nWORKDIR /app\nENV A=2\nCMD y\n"
    section = {"User": "nonroot", "WorkingDir": "/w", "Env": ["A=1"], "Cmd": ["x"]}
    for created_by, comment, fields in (
        ("bazel build ...", "", {"User", "WorkingDir", "Env", "Cmd"}),
        ("apko", "This is an apko single-layer image", {"User", "WorkingDir", "Env", "Cmd"}),
        ("# debian.sh --arch 'amd64'", "debuerreotype 0.15", {"Cmd"}),
        (f"{NOP}ADD file:0123456789abcdef in / ", "", set()),
        ("", "Imported from -", set()),
    ):
        base = {
            "config": section if fields else {},
            "rootfs": {"diff_ids": ["sha256:1"]},
            "history": [{"created_by": created_by, "comment": comment}],
        }
        document, unknown = config_at(image_of(made_config(app, base=base)), 1)
        assert {field for field, _ in unknown} == fields
        assert not document["config"].get("User") or fields == {"Cmd"}


def test_the_author_is_not_carried_over_a_cut() -> None:
    config = {**made_config("FROM scratch\nCOPY a /a\nMAINTAINER me\n"), "author": "me"}
    assert config_at(image_of(config), 2)[0]["author"] == "me"
    assert "author" not in config_at(image_of(config), 1)[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ENV A=1", [("Env", "A", "1")]),
        ("ENV A=1 B=2", [("Env", "A", UNKNOWN), ("Env", "B", UNKNOWN)]),
        (f"{NOP} ENV A=1 2", [("Env", "A", "1 2")]),
        ("LABEL a.b/c=1", [("Labels", "a.b/c", "1")]),
        ("LABEL a=", [("Labels", "a", "")]),
        ('CMD ["a" "b c"]', [("Cmd", "", ["a", "b c"])]),
        ("CMD [a]", [("Cmd", "", UNKNOWN)]),
        ("CMD []", [("Cmd", "", [])]),
        ("EXPOSE map[80/tcp:{} 53/udp:{}]", [("ExposedPorts", "80/tcp", {}), ("ExposedPorts", "53/udp", {})]),
        ("EXPOSE 80", [("ExposedPorts", "80/tcp", {})]),
        ("VOLUME [/a /b]", [("Volumes", "/a", {}), ("Volumes", "/b", {})]),
        ("WORKDIR /a", [("WorkingDir", "", "/a")]),
        ("USER a", [("User", "", "a")]),
        ("SHELL [a]", [("Shell", "", UNKNOWN)]),
        ("RUN /bin/sh -c ENV A=1 # buildkit", []),
        ("COPY ENV A=1 # buildkit", []),
        ("", []),
        ("ENV", []),
        ("CMD", [("Cmd", "", UNKNOWN)]),
    ],
)
def test_what_an_entry_set(text: str, found: list[Any]) -> None:
    assert touches(HistoryEntry(text, "", None)) == found


def test_an_arg_that_repeats_what_is_in_force() -> None:
    entry = HistoryEntry("ARG A=1", BUILDKIT, None)
    assert is_redundant_arg(entry, [("A", "1")])
    assert not is_redundant_arg(entry, [("A", "2")])
    assert not is_redundant_arg(HistoryEntry("ARG A=1", BUILDKIT, 0), [("A", "1")])
    assert is_redundant_arg(HistoryEntry("ARG A", BUILDKIT, None), [("A", None)])
    assert is_redundant_arg(HistoryEntry("ARG A", BUILDKIT, None), [("A", "1")])  # given again as a build argument
    assert not is_redundant_arg(HistoryEntry("ARG B", BUILDKIT, None), [("A", "1")])


def test_docker_import_has_settings_that_no_entry_tells_of() -> None:
    config = DATA["bookworm"]["bases"]["import"]
    assert config["config"]["User"] == "7"
    assert len(parse_history(config)) == 1


TEXTS = st.text(max_size=30) | st.lists(
    st.sampled_from(
        [
            "RUN ",
            "COPY ",
            "ENV ",
            "A=1",
            " B=2",
            "CMD ",
            "[",
            "]",
            '"',
            "/bin/sh -c ",
            "#(nop) ",
            "|1 ",
            "EXPOSE ",
            "80",
            "/tcp",
            "file:abc in ",
            "LABEL ",
            "VOLUME ",
            "WORKDIR ",
            "SHELL ",
            "ARG ",
            "# buildkit",
            "\n",
            "\\",
            "ENTRYPOINT ",
        ]
    ),
    max_size=6,
).map("".join)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from(["", BUILDKIT, "x"]), st.booleans()), max_size=6), st.integers(0, 7))
def test_any_history_can_be_read(entries: list[tuple[str, str, bool]], cut: int) -> None:
    config = {
        "config": {"Env": ["PATH=/x", "A"], "Labels": {"a": "1"}, "Volumes": None},
        "history": [{"created_by": t, "comment": c, "empty_layer": e} for t, c, e in entries],
        "rootfs": {"diff_ids": [str(n) for n in range(sum(1 for e in entries if not e[2]))]},
    }
    document, unknown = config_at(image_of(config), cut)
    assert len(document["history"]) == min(cut, len(entries))
    assert all(field and isinstance(key, str) for field, key in unknown)


@pytest.mark.parametrize(
    ("value", "final", "given", "certain"),
    [
        ("1", "1", set(), True),
        ("1", "2", set(), False),
        # the build's own label covers it; the text has one reading
        ("1", "2", {"own"}, True),
        ("1", "2", {"other"}, False),
        # the key may have been `own=x`
        ("x=1", "2", {"own"}, False),
    ],
)
def test_a_label_under_one_of_the_build_s_own(value: str, final: str, given: set[str], certain: bool) -> None:
    text = f'FROM base\nLABEL own="{value}"\n'
    config = made_config(text)
    config["config"]["Labels"] = {"own": final}
    build = build_input(text)
    step = timeline_of(build).steps[0]
    outcome = dispatch(start_state(scratch_config(PLATFORM)), step, build, global_args(build))
    image = image_of(config)
    assert is_certain(image, len(image.history) - 1, outcome, frozenset(given)) is certain
