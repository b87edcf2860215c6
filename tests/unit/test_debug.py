"""What is told of a build that failed: the instruction in the derived Dockerfile and in the one that was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from module_utils.offline_rebuild import debug, release
from module_utils.offline_rebuild.debug import Failing, cut, failing, last_failure, line_of
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.release import Journal, Release

DERIVED = """FROM 127.0.0.1:9/offline-rebuild/graft:aa AS builder
ENV A=1
RUN one && \\
    two
FROM 127.0.0.1:9/offline-rebuild/graft:bb AS offline-rebuild-stage-1
ARG X
WORKDIR /app
COPY --from=builder /x /x
USER app
RUN make all
RUN make all
CMD ["x"]
"""
WRITTEN = b"FROM base AS builder\nRUN zero\nENV A=1\nRUN one && \\\n    two\nFROM base\nRUN make all\nRUN make all\n"
#: As BuildKit 0.8 (engine 20.10) and 0.23 end their plain logs.
LOG = """#5 [offline-rebuild-stage-1 4/5] RUN make all
#5 0.231 boom
#5 ERROR: process "/bin/sh -c make all" did not complete successfully: exit code: 2
------
 > [offline-rebuild-stage-1 4/5] RUN make all:
0.231 boom
------
Dockerfile:10
"""


def log(stage: str, number: str) -> str:
    return f"#4 DONE 0.1s\n------\n > [{stage} {number}] RUN x:\n#7 0.2 no\n------\nexecutor failed running [x]\n"


def test_the_instruction_is_the_one_that_the_log_names() -> None:
    assert failing(LOG, DERIVED) == Failing("offline-rebuild-stage-1", 2, 10, "RUN make all", 1)
    assert failing(log("offline-rebuild-stage-1", "5/5"), DERIVED) == Failing(
        "offline-rebuild-stage-1", 3, 11, "RUN make all", 0
    )
    found = failing(log("builder", " 2/12"), DERIVED)
    assert found is not None
    assert (found.place, found.line, found.text) == (0, 3, "RUN one && two")


def test_a_single_stage_has_no_name_in_the_log() -> None:
    single = "FROM x AS offline-rebuild-stage-0\nCOPY . /\nRUN a\n"
    found = failing(log("", "3/3").replace("[ ", "["), single)
    assert found == Failing("offline-rebuild-stage-0", 1, 3, "RUN a")
    assert failing(log("", "3/3").replace("[ ", "["), DERIVED) is None


@pytest.mark.parametrize("said", ["", "no such thing", log("builder", "1/2"), log("builder", "9/9"), log("x", "2/3")])
def test_a_log_that_names_none(said: str) -> None:
    assert failing(said, DERIVED) is None


def test_the_line_is_that_of_the_written_file() -> None:
    written = parse(WRITTEN)
    for number, line in (("4/5", 7), ("5/5", 8)):
        found = failing(log("offline-rebuild-stage-1", number), DERIVED)
        assert found is not None
        assert line_of(found, written) == line
    assert line_of(Failing("x", 0, 1, "RUN one && two"), written) == 4
    assert line_of(Failing("x", 0, 1, "RUN other"), written) is None
    assert line_of(Failing("x", 0, 1, "RUN make all", 2), written) is None


def test_the_derived_file_is_cut_before_it() -> None:
    assert cut(DERIVED, "builder", 0) == "".join(DERIVED.splitlines(keepends=True)[:2])
    text = cut(DERIVED, "offline-rebuild-stage-1", 3)
    assert text.endswith("USER app\nRUN make all\n")
    assert text.count("RUN make all") == 1


def test_the_last_failure_is_found() -> None:
    def failed(number: int, *services: str) -> Release:
        entries = [{"phase": "build", "service": name} for name in services]
        return Release(f"r{number}", "shop", evidence=[{"phase": "swap", "service": "web"}, *entries])

    known = [failed(1, "web"), failed(2, "job"), failed(3)]
    found = {
        (services, of): one[0].id if one else ""
        for services in ((), ("web",), ("db",))
        for of in ("", "r1", "r2")
        for one in [last_failure(known, services, of)]
    }
    assert found == {
        ((), ""): "r2", ((), "r1"): "r1", ((), "r2"): "r2", (("web",), ""): "r1", (("web",), "r1"): "r1",
        (("web",), "r2"): "", (("db",), ""): "", (("db",), "r1"): "", (("db",), "r2"): "",
    }  # fmt: skip


def test_the_log_is_masked_and_bounded_and_goes_with_its_release(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shop", ["hunter22"])
    made = Release("20260101T000000Z-aaaaaa", "shop", state="failed")
    journal.write(made)
    path = journal.write_log(made, "web", "begin hunter22\n" + ("x" * 5000 + "\n") * 600 + "http://u:pw12@h/ end")
    text = Path(path).read_text(encoding="utf-8")
    assert "hunter22" not in text
    assert "pw12" not in text
    assert text.startswith("begin ***\n")
    assert text.endswith(" end")
    assert "bytes are left out ...]" in text
    assert len(text) < release._MOST_LOG + 100
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert journal.ids() == [made.id]
    journal.remove(made.id)
    assert not Path(path).exists()


def test_the_name_of_the_image() -> None:
    assert debug.image_name("Shop", "web") == "shop-web:offline-rebuild-debug"
