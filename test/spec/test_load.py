from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_lab.lib.errors import LabError
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.variables import substitute

SPEC = {"agent": {}, "env": {}}


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path):
    with pytest.raises(LabError) as error:
        load_file(path)
    return str(error.value)


def test_json_and_yaml_say_the_same(tmp_path):
    specs = {"one": SPEC, "two": {**SPEC, "meta": {"seed": 1, "png": True, "x": [1.5, None]}}}
    as_json = write(tmp_path, "a.json", json.dumps({"$schema": "schema.json", **specs}))
    as_yaml = write(tmp_path, "a.yaml", yaml.safe_dump(specs))
    assert load_file(as_json) == load_file(as_yaml) == specs


@pytest.mark.parametrize(
    ("name", "text", "place", "what"),
    [
        ("a.json", '{"a": {\n  "b": 1\n  "c": 2}}', ":3:3:", "delimiter"),
        ("a.json", '{"a": {\n "b": 1,\n "b": 2}}', ":1:7:", "'b' is given twice"),
        ("a.json", '{"a": {"b": NaN}}', "", "NaN isn't JSON"),
        ("a.yaml", "a:\n  b: [1, 2\n", ":2:11:", "expected"),
        ("a.yaml", "a:\n  b: 1\n  b: 2\n", ":3:3:", "'b' is given twice"),
        ("a.yaml", "a:\n  yes: 1\n", ":2:3:", "isn't text"),
        ("a.yaml", "a: !!python/name:os.system\n", ":1:4:", "constructor"),
        ("a.yaml", "a: &x\n  b: *x\n", "", "levels deep"),
        ("a.yaml", "a: \x00", "", "special characters"),
        ("a.json", "  \n", "", "empty"),
        ("a.json", "[1]", "", "no mapping"),
        ("a.json", "{}", "", "no spec"),
        ("a.json", '{"a": 1}', "", "'a' isn't a mapping"),
        ("a.json", '{"agent": {}, "env": {}}', "", "without its name"),
        ("a.json", b'{"a": "\xff"}', "", "UTF-8"),
        ("a.txt", "{}", "", "ends with .json"),
    ],
)
def test_broken_files_are_shown_where_they_break(tmp_path, name, text, place, what):
    message = refused(write(tmp_path, name, text))
    assert f"{name}{place}" in message and what in message


def test_the_broken_line_is_shown(tmp_path):
    message = refused(write(tmp_path, "a.json", '{"a": {\n  "b": 1\n  "c": 2}}'))
    assert message.splitlines()[1:] == ['     3 |   "c": 2}}', "       |   ^"]


def test_missing_files_and_folders(tmp_path):
    write(tmp_path, "ppo_cartpole.json", "{}")
    assert "Did you mean" in refused(tmp_path / "ppo_cartpol.json")
    assert "ppo_cartpole.json" in refused(tmp_path / "no" / "ppo_cartpole.yaml")
    assert "is a folder" in refused(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=60) | st.text('{}[]:,"&*!?-|> \n\t0a$', max_size=40),
    suffix=st.sampled_from([".json", ".yaml"]),
)
def test_random_text_is_read_or_refused(tmp_path_factory, text, suffix):
    path = tmp_path_factory.getbasetemp() / f"random{suffix}"
    path.write_text(text, encoding="utf-8")
    try:
        load_file(path)
    except LabError as error:
        assert "random" in str(error)


def test_pick():
    specs = {"a": {"x": 1}, "b": {}}
    assert pick(specs, "b", "f.json") == ("b", {})
    assert pick({"a": {}}, None, "f.json") == ("a", {})
    assert pick(specs, None, "dir/a.json") == ("a", {"x": 1})
    with pytest.raises(LabError, match="name one of a, b"):
        pick(specs, None, "f.json")
    with pytest.raises(LabError, match="Did you mean 'ppo'"):
        pick({"ppo": {}}, "pppo", "f.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("2e5", 200000),
        ("-1E-3", -0.001),
        ("[1, 2e3]", [1, 2000]),
        ("{a: b}", {"a": "b"}),
        ("null", None),
        ("Ant-v5", "Ant-v5"),
    ],
)
def test_overrides_read_values_as_typed(text, value):
    raw = {"agent": {"net": None}, "list": [1, {"x": 1}]}
    assert apply_overrides(raw, [f"agent.net.new={text}"])["agent"]["net"] == {"new": value}
    assert apply_overrides(raw, [f"list.1.x={text}"])["list"][1]["x"] == value
    assert raw == {"agent": {"net": None}, "list": [1, {"x": 1}]}


@pytest.mark.parametrize("item", ["gamma", "=1", "a..b=1", "a.b=", "a.b=[1", "a.b.c=1", "a.l.7=1", "env=Ant-v5"])
def test_overrides_that_make_no_sense(item):
    with pytest.raises(LabError, match="--set"):
        apply_overrides({"a": {"b": 1, "l": [1]}}, [item])


def test_a_bare_name_fills_in_a_variable():
    raw = apply_overrides({"env": {"name": "${env}"}}, ["env=Ant-v5"])
    assert substitute(raw) == ({"env": {"name": "Ant-v5"}}, [])


def test_variables():
    raw = {
        "env": {"name": "x", "max_frame": 100},
        "meta": {"a": "${env.max_frame}", "b": ["${x}", "${x}-${y}"], "c": "${z}"},
        "vars": {"x": 1.5, "y": "${x}!", "z": {"k": "${y}"}},
    }
    spec, problems = substitute(raw)
    assert not problems and "vars" not in spec
    assert spec["meta"] == {"a": 100, "b": [1.5, "1.5-1.5!"], "c": {"k": "1.5!"}}


@pytest.mark.parametrize(
    ("raw", "path", "what"),
    [
        ({"env": {"name": "${gone}"}}, "env.name", "has no value"),
        ({"env": {"name": ["${lrr}"]}, "vars": {"lr": 1}}, "env.name.0", "Did you mean 'lr'"),
        ({"env": {"name": "${a}"}, "vars": {"a": "${b}", "b": "${a}"}}, "env.name", "refers to itself"),
        ({"env": {"name": "${env}"}}, "env.name", "--set env="),
    ],
)
def test_variables_without_a_value(raw, path, what):
    _, [problem] = substitute(raw)
    assert problem.path == path and what in problem.message


def test_a_part_is_changed_by_its_name_alone(caplog):
    """Keys that the new part doesn't have go, and it is said; those it has stay."""
    core = {"name": "LSTM", "hidden_size": 32, "forget_bias": 2.0}
    raw = {"agent": {"net": {"name": "MLP", "hid_layers": [8], "core": core}}}
    assert apply_overrides(raw, ["agent.net.core.name=none"])["agent"]["net"]["core"] == {"name": "none"}
    assert "agent.net.core is now none, which has no hidden_size, forget_bias: left out" in caplog.text
    swapped = apply_overrides(raw, ["agent.net.core.name=GRU", "agent.net.core.num_layers=2"])
    assert swapped["agent"]["net"]["core"] == {"name": "GRU", "hidden_size": 32, "num_layers": 2}
    assert apply_overrides(raw, ["agent.net.core.name=GRUU"])["agent"]["net"]["core"]["name"] == "GRUU"
    assert raw["agent"]["net"]["core"] == core


def test_an_alias_is_a_copy(tmp_path):
    """What is set in one place stays as it was in the other."""
    specs = load_file(write(tmp_path, "a.yaml", "a:\n  agent: {one: &o {lr: 1}, two: *o}\n  env: {}\n"))
    made = apply_overrides(specs["a"], ["agent.one.lr=2"])
    assert made["agent"] == {"one": {"lr": 2}, "two": {"lr": 1}}


def test_a_merged_mapping_may_itself_have_merged_and_changed_a_key(tmp_path):
    text = "a:\n  agent: {deep: &d {<<: {x: 1}, x: 2}}\n  env:\n    <<: *d\nb:\n  <<: *d\n"
    specs = load_file(write(tmp_path, "a.yaml", text))
    assert specs == {"a": {"agent": {"deep": {"x": 2}}, "env": {"x": 2}}, "b": {"x": 2}}
    text = "top: {<<: &d {<<: {x: 1}, x: 2, x: 3}}\n"
    assert "'x' is given twice" in refused(write(tmp_path, "b.yaml", text))


def test_set_replaces_an_axis_that_is_written_with_dots():
    raw = {**SPEC, "search": {"agent.gamma__choice": [1, 2]}}
    assert apply_overrides(raw, ["search.agent.gamma__choice=[3]"])["search"] == {"agent.gamma__choice": [3]}


def test_set_of_a_variable_that_stands_nowhere_is_refused():
    with pytest.raises(LabError, match=r"the spec has no \$\{typo\}"):
        apply_overrides(SPEC, ["vars.typo=3"])


def test_a_reference_within_a_reference_is_told():
    _, problems = substitute({"vars": {"a": "x", "x": 3}, "agent": {"size": "${${a}}"}})
    assert problems and "write the name itself" in problems[0].message.lower()
