"""The schema and the reference page: right for small parts, and fresh for the real ones."""

from __future__ import annotations

import json

import pytest
from small_specs import raw_spec

from slm_lab.spec import parts, reference, schema


def test_the_schema_knows_each_part(fakes):
    built = schema.build_schema()
    defs = built["$defs"]
    assert defs["memory"]["oneOf"] == [
        {"$ref": "#/$defs/memory.OnPolicyBatchReplay"},
        {"$ref": "#/$defs/memory.Replay"},
        {"$ref": "#/$defs/own"},
    ]
    assert defs["memory.Replay"]["required"] == ["name"]
    assert defs["memory.Replay"]["properties"]["name"]["const"] == "Replay"
    assert defs["memory.Replay"]["description"] == "Fake off-policy memory."
    assert defs["net.MLP"]["properties"]["core"]["anyOf"][0] == {"$ref": "#/$defs/core"}
    assert defs["env"]["additionalProperties"] is True and defs["env"]["required"] == ["name", "max_frame"]


def test_a_part_inside_a_part_is_one_of_its_family():
    defs = schema.build_schema()["$defs"]
    for part, key in (("net.MLP", "core"), ("memory.StrategicMemory", "entry")):
        assert defs[part]["properties"][key]["anyOf"][0] == {"$ref": f"#/$defs/{key}"}
        assert defs[key]["oneOf"] == [
            {"$ref": f"#/$defs/{name}"} for name in [*(f"{key}.{name}" for name in parts.INNER[key]), "own"]
        ]
    page = reference.render()
    assert "| `entry` | MLP \\| Transformer |" in page and "## agent.memory.entry" in page


def test_a_part_of_ones_own_is_right_in_an_editor():
    jsonschema = pytest.importorskip("jsonschema")
    raw = {"$schema": "x", "mine": raw_spec(agent__memory={"name": "recent:RecentReplay", "tries": 3})}
    jsonschema.validate(raw, schema.build_schema())
    raw["mine"]["agent"]["memory"]["name"] = "RecentReplay"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema.build_schema())


def test_every_reference_of_the_schema_leads_somewhere(fakes):
    built = schema.build_schema()

    def references(value):
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            yield from references(child)

    assert all(reference.removeprefix("#/$defs/") in built["$defs"] for reference in references(built))


def test_the_reference_has_a_row_for_each_key(fakes):
    page = reference.render()
    assert "| `gamma` | number from 0 to 1 | `0.99` | discount factor |" in page
    assert "| `max_frame` | whole number >= 1 |  | frames of a session |" in page
    assert "### ScheduleSpec" in page and "### GRU" in page


def test_the_files_are_fresh():
    for module in (schema, reference):
        assert module.PATH.read_text(encoding="utf-8") == module.render(), f"run: python -m {module.__name__}"
    assert json.loads(schema.PATH.read_text(encoding="utf-8"))["$schema"] == schema.DIALECT
