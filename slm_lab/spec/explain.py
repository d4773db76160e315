"""What a part's model expects, in words, and what is wrong with a value that it refuses.

Both are read from the model's JSON Schema, so errors, docs and editors say the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from slm_lab.lib.errors import Problem, did_you_mean

Schema = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)

_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_IS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def check(model: type[Model], raw: Any, path: str) -> tuple[Model | None, list[Problem]]:
    """The validated model, or what is wrong with `raw`, told in the user's paths."""
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        schema = model.model_json_schema()
        found: dict[str, Problem] = {}
        for detail in error.errors(include_url=False):
            problem = _problem(detail, raw, path, schema)
            found.setdefault(problem.path, problem)  # the branches of a union complain one by one
        inner = [path for path in found if not any(other.startswith(f"{path}.") for other in found)]
        return None, [found[path] for path in inner]  # the one that came furthest is the one that was meant


# --- what is expected ---


def describe(schema: Schema, root: Schema, brief: bool = False) -> str:
    """A schema in words: 'whole number >= 1', "'relu' | 'tanh'", 'list of number > 0'; brief: a model by its name."""
    schema = _resolve(schema, root)
    if "const" in schema:
        return show(schema["const"])
    if "enum" in schema:
        return " | ".join(show(option) for option in schema["enum"])
    if "anyOf" in schema or "oneOf" in schema:
        branches = [describe(branch, root, brief) for branch in schema.get("anyOf") or schema["oneOf"]]
        return " | ".join(dict.fromkeys(branches))
    kind = schema.get("type")
    if kind == "array":
        return _describe_list(schema, root)
    if kind == "object":
        if brief and "properties" in schema:
            return str(schema["title"])
        keys = ", ".join(schema.get("properties", {}))
        return f"mapping with {keys}" if keys else "mapping"
    bounds = _bounds(schema)
    return f"{_KINDS.get(str(kind), 'anything')}{' ' if bounds else ''}{bounds}"


def _describe_list(schema: Schema, root: Schema) -> str:
    low, high = schema.get("minItems"), schema.get("maxItems")
    count = (
        f" of {low}"
        if low and low == high
        else f" of {low or 0} to {high}"
        if high
        else f" of {low} or more"
        if low
        else ""
    )
    if "prefixItems" in schema:
        return f"list [{', '.join(describe(item, root) for item in schema['prefixItems'])}]"
    items = describe(schema.get("items", {}), root)
    return f"list{count}{':' if count else ' of'} {items}"


def _bounds(schema: Schema) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f"from {schema['minimum']:g} to {schema['maximum']:g}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)


def _resolve(schema: Schema, root: Schema) -> Schema:
    """The schema with its $ref followed; what stands beside the $ref (description, default) wins."""
    while "$ref" in schema:
        target = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _branches(schema: Schema, root: Schema) -> Iterator[Schema]:
    schema = _resolve(schema, root)
    options = schema.get("anyOf", schema.get("oneOf"))
    if options is None:
        yield schema
    for option in options or ():
        yield from _branches(option, root)


def _descend(schema: Schema, keys: list[str | int], root: Schema) -> Schema:
    """The schema of the value at `keys`; {} where the schema doesn't say."""
    for key in keys:
        for branch in _branches(schema, root):
            child = branch.get("properties", {}).get(key) if isinstance(key, str) else branch.get("items")
            if isinstance(child, dict):
                schema = child
                break
        else:
            return {}
    return _resolve(schema, root)


# --- what is wrong ---


def _problem(detail: Mapping[str, Any], raw: Any, path: str, schema: Schema) -> Problem:
    keys = _user_keys(detail, raw)
    where = ".".join([path, *map(str, keys)])
    field = _descend(schema, keys, schema)
    meaning = f"; {field['description']}" if keys and "description" in field else ""
    expected = f"(expected: {describe(field, schema)}{meaning})"
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        owners = _branches(_descend(schema, keys[:-1], schema), schema)
        options = {key for owner in owners for key in owner.get("properties", ())}
        return Problem(where, f"unknown key.{did_you_mean(str(keys[-1]), options)}")
    if kind == "missing":
        return Problem(where, f"missing {expected}")
    if kind == "value_error":
        return Problem(where, str(context["error"]))
    if kind == "literal_error" and isinstance(value, str):
        return Problem(where, f"{show(value)} is no option.{did_you_mean(value, _options(field, schema))}")
    if isinstance(value, str) and "number" in expected and _number(value) is not None:
        return Problem(where, f"{show(value)} is text. {number_hint(value)}")
    wrong = "is no number" if isinstance(value, bool) and "number" in expected else _wrong(kind, value, context)
    return Problem(where, f"{show(value)} {wrong} {expected}")


def _user_keys(detail: Mapping[str, Any], raw: Any) -> list[str | int]:
    """The location in what the user wrote: pydantic's names of union branches and validators are left out."""
    keys: list[str | int] = []
    for key in detail["loc"]:
        inside = key in raw if isinstance(raw, dict) else isinstance(raw, list) and isinstance(key, int)
        if inside:
            keys.append(key)
            raw = raw[key]
    if detail["type"] == "missing":
        keys.append(detail["loc"][-1])
    return keys


_WRONG = {
    "less_than": "isn't below {lt:g}",
    "less_than_equal": "is above {le:g}",
    "greater_than": "isn't above {gt:g}",
    "greater_than_equal": "is below {ge:g}",
    "too_short": "has {actual_length} items",
    "too_long": "has {actual_length} items",
    "int_from_float": "isn't a whole number",
    "finite_number": "isn't finite",
    "literal_error": "is no option",
}


def _wrong(kind: str, value: Any, context: Mapping[str, Any]) -> str:
    if kind in _WRONG:
        return _WRONG[kind].format(**context)
    if kind == "int_type" and isinstance(value, float):
        return "isn't a whole number"
    if value is None:
        return "is no value"
    return f"is {_IS.get(type(value), type(value).__name__)}"


def _options(field: Schema, root: Schema) -> list[str]:
    found = [option for branch in _branches(field, root) for option in branch.get("enum", [branch.get("const")])]
    return [str(option) for option in found if option is not None]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def number_hint(text: str) -> str:
    """How to write as a number what was read as text; YAML 1.1 wants a dot and a sign in 2.0e+5."""
    value = float(text)
    plain = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if "e" not in text.lower():
        return f"Write it without quotes: {plain}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"YAML reads {text} as text: write {plain} or {float(mantissa)}e{int(exponent):+d}"


def changes(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two specs, a line a key."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        below = (f"{path}.{key}" if path else str(key) for key in keys)
        return [
            line
            for key, where in zip(keys, below, strict=True)
            for line in changes(old.get(key, ...), new.get(key, ...), where)
        ]
    if old == new:
        return []
    if old is ...:
        return [f"{path}: {show(new)} is new"]
    return [f"{path}: it was {show(old)}, and is {'gone' if new is ... else show(new)}"]


def show(value: Any) -> str:
    """A value as the user would write it, cut at 60 letters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
