"""Writes the schema of `config` in the chart's values.schema.json from the project's settings.

`make docs` runs it; with --check it says whether that is out of step.

The definitions below `$defs` whose names begin with `config` are made here; everything else in the
file is written by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

from fusewire.contracts import NAME
from fusewire.settings import BASE_URLS, Settings

FILE = Path(__file__).parent / "fusewire" / "values.schema.json"
PREFIX = "config"
BY_CHART = {
    "data_dir": None,
    "database": ("url", "analyst_url"),
    "nats": ("url", "nkey", "js_prefix", "site", "tls_ca"),
    "console": ("api_url",),
    "http": ("port", "operations_port", "tls_cert", "tls_key", "allow_insecure", "pepper_env"),
}
"""Settings that the chart makes itself, or that are secret; `config` may not have them."""
NOISE = ("title", "default", "discriminator", "format")
"""Keywords of pydantic's that say nothing about what is valid."""

Schema = dict[str, Any]


def definitions() -> Schema:
    """The definitions of `config`, by their names in values.schema.json."""
    settings = Settings.model_json_schema()
    models = settings.pop("$defs")
    _leave_to_chart(settings, models)
    _add_shorthand(models)
    models["Model"] = _model_by_kind()
    settings["properties"]["models"]["additionalProperties"] = {"$ref": "#/$defs/Model"}
    for name in ("models", "pools", "tenants"):
        settings["properties"][name]["propertyNames"] = {"pattern": NAME}
    schemas = {PREFIX: settings, **{f"{PREFIX}{name}": schema for name, schema in models.items()}}
    return {name: _simple(schema) for name, schema in schemas.items()}


def _leave_to_chart(settings: Schema, models: Schema) -> None:
    """Remove what the chart sets itself."""
    for section, keys in BY_CHART.items():
        if keys is None:
            del settings["properties"][section]
            continue
        for key in keys:
            models[section.title()]["properties"].pop(key, None)


def _add_shorthand(models: Schema) -> None:
    """Allow what validators of the settings make whole: names of members, known addresses."""
    members = models["Pool"]["properties"]["members"]
    # By type, so that a fault in a table is told, and not that it is no text.
    members["items"] = {
        "type": ["string", "object"],
        "if": {"type": "object"},
        "then": members["items"],
    }
    remote = models["RemoteModel"]
    remote["required"].remove("base_url")
    remote["if"] = {
        "not": {"required": ["provider"], "properties": {"provider": {"enum": [*BASE_URLS]}}}
    }
    remote["then"] = {"required": ["base_url"]}


def _model_by_kind() -> Schema:
    """A model by its kind: unlike `oneOf`, it says which key of that kind is wrong."""
    kinds = {"edge": "EdgeModel", "remote": "RemoteModel"}
    cases = [
        {
            "if": {"required": ["kind"], "properties": {"kind": {"const": kind}}},
            "then": {"$ref": f"#/$defs/{name}"},
        }
        for kind, name in kinds.items()
    ]
    kind = {"type": "string", "enum": [*kinds]}
    return {"type": "object", "required": ["kind"], "properties": {"kind": kind}, "allOf": cases}


def _simple(schema: Any) -> Any:
    """Make a schema short: types in place of unions with null, no titles and defaults.

    Validators say no more of a union than that no part of it fits.
    """
    if isinstance(schema, list):
        return [_simple(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"].replace("#/$defs/", f"#/$defs/{PREFIX}")}
    result = _all_simple({key: value for key, value in schema.items() if key not in NOISE})
    if "properties" in schema:
        # Not as a schema: a setting may have the name of a keyword.
        result["properties"] = _all_simple(schema["properties"])
    if union := result.pop("anyOf", None):
        result |= _nullable(union)
    return result


def _all_simple(schemas: Schema) -> Schema:
    return {name: _simple(schema) for name, schema in schemas.items()}


def _nullable(union: list[Schema]) -> Schema:
    """One schema of a union of one type and null.

    Raises:
        ValueError: it is another union.
    """
    types = [schema for schema in union if schema != {"type": "null"}]
    if len(types) != 1 or len(union) != 2 or "type" not in types[0]:
        raise ValueError(
            f"a union that is not of one type and null: {union}; teach it to _nullable"
        )
    schema = {**types[0], "type": [types[0]["type"], "null"]}
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def text() -> str:
    """What values.schema.json should hold."""
    whole = json.loads(FILE.read_text(encoding="utf-8"))
    by_hand = {
        name: schema for name, schema in whole["$defs"].items() if not name.startswith(PREFIX)
    }
    whole["$defs"] = {**by_hand, **definitions()}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file, or with --check say whether it is out of step."""
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text(), encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != text():
        sys.exit(f"{FILE.name} is out of step with the settings; run make docs")


if __name__ == "__main__":
    main()
