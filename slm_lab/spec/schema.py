"""JSON Schema of a spec file, for editors; composed from the models of all parts that import here.

`python -m slm_lab.spec.schema` writes specs/schema.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm_lab.lib.registry import OWN, Registry
from slm_lab.spec.explain import Schema
from slm_lab.spec.lab_spec import ENV, MetaSpec
from slm_lab.spec.parts import AUXILIARY, INNER
from slm_lab.spec.validate import FAMILIES, LEARNERS, summary

PATH = Path(__file__).parents[2] / "specs" / "schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OWN = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": f"^{OWN}$", "description": "module:Class"}},
    "required": ["name"],
    "description": "a part of one's own, of a module in the folder that the lab is started in",
}
_VARIABLE = {"type": "string", "pattern": r"\$\{.+\}", "description": "a ${variable}"}


def build_schema() -> Schema:
    """The schema of a file {spec_name: spec}."""
    defs: dict[str, Schema] = {}
    for registry in (*FAMILIES.values(), *INNER.values(), AUXILIARY):
        _add_family(registry, defs)
    _add_model(MetaSpec, "meta", defs)
    _add_model(ENV.load("EnvSpec"), "env", defs)
    defs["own"] = _OWN
    name = {"type": "string", "description": "what the agent is called"}
    learners = {"enum": list(LEARNERS), "description": "of a world's several agents: one for all, or each its own"}
    keys = {"name": name, "learners": learners} | {family: _ref(family) for family in FAMILIES}
    keys["auxiliary"] = {"type": "array", "items": _ref(AUXILIARY.family), "description": "what is learned beside"}
    defs["agent"] = _mapping(keys, ["algorithm", "memory"])
    sections = {section: _ref(section) for section in ("agent", "env", "meta")} | {
        "search": {"type": "object", "description": "ranges of a search, by path of the key"},
        "vars": {"type": "object", "description": "values of ${name} in this spec"},
    }
    return {
        "$schema": DIALECT,
        "title": "spec file of the lab",
        "description": "a mapping of spec names to specs",
        "type": "object",
        "properties": {"$schema": {"type": "string"}},
        "additionalProperties": _mapping(sections, ["agent", "env"]),
        "$defs": defs,
    }


def _mapping(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": required}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _add_family(registry: Registry, defs: dict[str, Schema]) -> None:
    """One definition for each part, and one for the family: any of them, told apart by `name`."""
    names = {}
    for name, cls in registry.classes().items():
        names[name] = f"{registry.family}.{name}"
        _add_model(cls.Spec, names[name], defs, summary(cls))
        properties = defs[names[name]]["properties"]
        properties["name"] = {**properties["name"], "const": name}
        for key in INNER.keys() & properties:
            default = properties[key]["default"]
            properties[key] = {"anyOf": [_ref(INNER[key].family), _VARIABLE], "default": default}
        # a part is always named, though its model has the name for a default
        defs[names[name]]["required"] = sorted({"name", *defs[names[name]].get("required", [])})
    defs[registry.family] = {"oneOf": [_ref(key) for key in (*names.values(), "own")]}


def _add_model(model: Any, name: str, defs: dict[str, Schema], description: str = "") -> None:
    """The model's schema under `name`, its own definitions beside it under `name.Definition`."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for inner, definition in schema.pop("$defs", {}).items():
        defs[f"{name}.{inner}"] = _with_variables(definition)
    schema["title"] = name
    if description:
        schema["description"] = description
    defs[name] = _with_variables(schema)


def _with_variables(schema: Schema) -> Schema:
    """Any value but a part's name may be a ${variable} in the file."""
    properties = {
        key: value if key == "name" else _or_variable(value) for key, value in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties} if properties else schema


def _or_variable(field: Schema) -> Schema:
    kept: Schema = {key: field[key] for key in ("title", "description", "default") if key in field}
    value = {key: item for key, item in field.items() if key not in kept}
    return {"anyOf": [value, _VARIABLE], **kept}


def render() -> str:
    return json.dumps(build_schema(), indent=1, sort_keys=False) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render(), encoding="utf-8")
