"""The role's specification, its defaults, the module that it calls, the README's tables and the errors' page agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Set, Tuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "offline_rebuild"
PREFIX = "offline_rebuild_"
READMES = ("README.md", "README.zh-CN.md")
#: Variables of the role that are no option of the module: it never sees the control node's tree.
PUSH = {"project_push", "project_push_keep", "project_push_delete"}
#: Those that only the control node looks at.
CONTROL = {"report_dir", "require_change_id", "window"}
#: Options that the role fills by itself.
FILLED = {"action", "run_time", "project_pushed", "sent", "make_services"}
PYTHON_TYPES = {"path": str, "str": str, "bool": bool, "int": int, "list": list, "dict": dict}


def load(path: Path) -> Any:
    """:returns: the one YAML document of a file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def spec() -> Dict[str, Dict[str, Any]]:
    """The options of the role's main entry point."""
    options: Dict[str, Dict[str, Any]] = load(ROLE / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    return options


@pytest.fixture(scope="module")
def module_spec() -> Dict[str, Dict[str, Any]]:
    """The options of compose_rebuild, as its documentation has them."""
    tree = ast.parse((ROOT / "library" / "compose_rebuild.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
            options: Dict[str, Dict[str, Any]] = yaml.safe_load(ast.literal_eval(node.value))["options"]
            return options
    raise AssertionError("compose_rebuild has no DOCUMENTATION")


def kind(option: Mapping[str, Any]) -> str:
    """:returns: an option's type as the tables write it, e.g. ``list of str``."""
    return f"list of {option['elements']}" if option["type"] == "list" else str(option["type"])


def table(readme: str, heading: str) -> Dict[str, Tuple[str, str]]:
    """:returns: name to (type, default as written) of the table under the marker ``<!-- heading -->``."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    part = text.split(f"<!-- {heading} -->", 1)[1]
    rows: List[List[str]] = []
    for line in part.strip().splitlines():
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    found = {row[0].strip("`"): (row[1], row[2].strip("`")) for row in rows[2:]}
    assert len(found) == len(rows) - 2, f"{readme}: a variable is twice in the table"
    return found


def written(option: Mapping[str, Any], required: str) -> str:
    """:returns: an option's default as the tables write it."""
    if option.get("required"):
        return required
    default = option["default"]
    if isinstance(default, bool):
        return "true" if default else "false"
    return '""' if default == "" else str(default)


def test_specification_equals_defaults(spec: Dict[str, Dict[str, Any]]) -> None:
    defaults = load(ROLE / "defaults" / "main.yml")
    assert {name: o["default"] for name, o in spec.items() if not o.get("required")} == defaults
    assert all("default" not in o for o in spec.values() if o.get("required"))


def test_defaults_have_the_type_they_claim(spec: Dict[str, Dict[str, Any]]) -> None:
    for name, option in spec.items():
        if "default" in option:
            assert type(option["default"]) is PYTHON_TYPES[option["type"]], name
        if "choices" in option:
            assert option["default"] in option["choices"], name
        assert option["description"], name
        assert ("elements" in option) == (option["type"] == "list"), name


@pytest.mark.parametrize("readme", READMES)
def test_readme_equals_specification(spec: Dict[str, Dict[str, Any]], readme: str) -> None:
    required = "required" if readme == "README.md" else "必填"
    assert table(readme, "role variables") == {name: (kind(o), written(o, required)) for name, o in spec.items()}


@pytest.mark.parametrize("readme", READMES)
def test_readme_equals_playbook(readme: str) -> None:
    files = [ROOT / "playbooks" / "rebuild.yml", ROOT / "playbooks" / "vars" / "rollout.yml"]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    given = re.findall(r"\b(offline_rebuild_\w+) \| default\('?([^',]*)'?, true\)", text)
    found = {name: default for name, default in given if name != PREFIX + "strategy"}  # that one is the role's
    assert len(set(given)) == len(found) + 1, "the plays have other defaults"
    names = ("serial", "max_fail_percentage", "confirm", "builder", "canary", "pause", "revert_scope")
    assert set(found) == {PREFIX + name for name in names}
    assert {name: default.strip('"') for name, (_, default) in table(readme, "playbook variables").items()} == found


@pytest.mark.parametrize("readme", READMES)
def test_readme_equals_status_playbooks(readme: str) -> None:
    found: Dict[str, str] = {}
    for name in ("status.yml", "logs.yml"):
        text = (ROOT / "playbooks" / name).read_text(encoding="utf-8")
        found.update(re.findall(r"\b(offline_rebuild_\w+) \| default\(([^,]+), true\)", text))
    assert {name: d.replace('"', "'") for name, (_, d) in table(readme, "status variables").items()} == found


@pytest.mark.parametrize("readme", READMES)
def test_readme_equals_operations_playbooks(readme: str) -> None:
    found: Dict[str, str] = {}
    for name in ("prune.yml", "debug.yml"):
        text = (ROOT / "playbooks" / name).read_text(encoding="utf-8")
        found.update(re.findall(r"\b(offline_rebuild_\w+) \| default\(([^,)]+)\)", text))
    assert {name: d.replace('"', "'") for name, (_, d) in table(readme, "operations variables").items()} == found


@pytest.mark.parametrize("kind", ["status", "prune", "debug"])
def test_a_host_is_asked_with_the_roles_variables(spec: Dict[str, Dict[str, Any]], kind: str) -> None:
    """The same project, whatever is asked; and every option of the module is given."""
    module = f"rebuild_{kind}"
    (call,) = [t[module] for t in load(ROLE / "tasks" / f"{kind}.yml") if module in t]
    tree = ast.parse((ROOT / "library" / f"{module}.py").read_text(encoding="utf-8"))
    (source,) = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "DOCUMENTATION"
    ]
    options = yaml.safe_load(ast.literal_eval(source))["options"]
    assert set(call) == set(options)
    (given,) = [
        n.value for n in tree.body if isinstance(n, ast.AnnAssign) and getattr(n.target, "id", "") == "ARGUMENT_SPEC"
    ]
    documented = {k: {x: y for x, y in v.items() if x != "description"} for k, v in options.items()}
    assert ast.literal_eval(given) == documented
    for name in set(call) & {key[len(PREFIX) :] for key in spec} - {"operator"}:
        assert re.match(rf"\{{\{{ {PREFIX}{name}( \||\s*\}}\}})", call[name]), name


def test_role_equals_module(spec: Dict[str, Dict[str, Any]], module_spec: Dict[str, Dict[str, Any]]) -> None:
    names = {name[len(PREFIX) :] for name in spec}
    assert names - PUSH - CONTROL == set(module_spec) - FILLED
    for name in names - PUSH - CONTROL:
        ours, theirs = spec[PREFIX + name], module_spec[name]
        for key in ("type", "elements", "choices", "required"):
            assert ours.get(key) == theirs.get(key), f"{name}: {key}"
        assert (ours.get("default") or None) == (theirs.get("default") or None), name


def test_role_hands_every_variable_to_the_module(module_spec: Dict[str, Dict[str, Any]]) -> None:
    tasks = load(ROLE / "tasks" / "main.yml")
    (call,) = [task["compose_rebuild"] for task in tasks if "compose_rebuild" in task]
    filled = {"run_time"}  # by the action plugin
    assert set(call) == set(module_spec) - filled | {"control"}
    for name, value in call.items():
        if name not in FILLED | {"operator", "control"}:
            assert re.match(rf"\{{\{{ {PREFIX}{name}( \||\s*\}}\}})", value), f"{name} is given {value}"


def test_variables_in_use_are_public_or_private(spec: Dict[str, Dict[str, Any]]) -> None:
    for path in sorted(ROLE.glob("*/*.yml")):
        used = set(re.findall(r"\b_*offline_rebuild_\w+", path.read_text(encoding="utf-8")))
        strangers = {name for name in used if not name.startswith("__")} - set(spec)
        assert not strangers, f"{path.name} uses variables that are not specified"


def test_example_inventory_uses_known_variables(spec: Dict[str, Dict[str, Any]]) -> None:
    for path in sorted((ROOT / "inventory").rglob("*.yml")):
        for name in re.findall(r"\boffline_rebuild_\w+", path.read_text(encoding="utf-8")):
            assert name in spec, f"{path.name}: {name}"


def codes_raised(tree: ast.Module) -> Iterator[str]:
    """The error codes of one file of the core: first arguments of the error, and what reaches a ``code`` parameter."""
    takes: Dict[str, int] = {"OfflineRebuildError": 0}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args]
            if "code" in names:
                takes[node.name] = names.index("code")
                defaults = dict(zip(reversed(names), reversed(node.args.defaults)))
                yield from texts(defaults.get("code"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in takes and len(node.args) > takes[name]:
                yield from texts(node.args[takes[name]])
            if name in takes or name == "CommandFailed":
                yield from (text for word in node.keywords if word.arg == "code" for text in texts(word.value))


def texts(node: Any) -> Iterator[str]:
    """The text constants of an expression that is one, or a choice of them."""
    for part in (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def test_every_error_is_on_the_page() -> None:
    raised: Set[str] = set()
    files = [*(ROOT / "module_utils" / "offline_rebuild").glob("*.py"), *(ROOT / "control_node").glob("*.py")]
    files.append(ROOT / "scripts" / "setup-from-bundle")
    for path in sorted(files):
        raised.update(codes_raised(ast.parse(path.read_text(encoding="utf-8"))))
    assert "locked" in raised
    plugins = (ROOT / "action_plugins").glob("*.py")
    for path in sorted([*ROLE.glob("*/*.yml"), ROOT / "playbooks" / "rebuild.yml", *plugins]):
        raised.update(re.findall(r"\[([a-z]+(?:-[a-z]+)+)\]", path.read_text(encoding="utf-8")))
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    assert len(documented) == len(set(documented)), "a code is twice on the page"
    assert set(documented) == raised
