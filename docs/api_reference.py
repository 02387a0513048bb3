"""The reference of the HTTP API, from the service's own OpenAPI document, as Markdown.

PYTHONPATH=platform python -m docs.api_reference    # writes the end of docs/serving-api.md; `make docs` does it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from docs.generated import with_end
from sidray.serving.auth import Keys
from sidray.serving.gateway import create_api

PAGE = Path(__file__).parent / "serving-api.md"
Schema = dict[str, Any]


def reference() -> str:
    """Routes, errors, and the fields of every body and answer."""
    document = create_api(Mock(), 1, Keys({}), Mock()).openapi()
    routes = [
        (f"{method.upper()} {path}", route)
        for path, each in document["paths"].items()
        for method, route in each.items()
    ]
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if "Validation" not in name}
    pin = next(each for each in routes[0][1]["parameters"] if each["in"] == "header")
    parts = [f"## Routes\nThe header `X-Sidray-Run` names {pin['description']}.\n"]
    parts += [_route(title, route) for title, route in routes]
    parts += ["## Errors\n", _errors(routes), "## Bodies and answers\n"]
    return "\n".join([*parts, *(_schema(name, schema) for name, schema in sorted(schemas.items()))])


def _route(title: str, route: Schema) -> str:
    lines = [f"### {title}", _line(route["description"]), ""]
    if "requestBody" in route:
        lines.append(f"- body: {_content(route['requestBody'])}")
    for parameter in route.get("parameters", []):
        if parameter["in"] == "header":
            lines.append("- header: `X-Sidray-Run`")
    for status, answer in route["responses"].items():
        if status < "300":
            lines.append(f"- {status}: {_content(answer)}")
    return "\n".join([*lines, ""])


def _content(part: Schema) -> str:
    """Links of what a body or an answer holds, by media type where it is not JSON."""
    found = []
    for media, each in part["content"].items():
        schema = each.get("schema", {})
        if media != "application/json":
            found.append(f"`{media}`")
        elif schema:
            found.append(_type(schema))
    return " or ".join(found)


def _errors(routes: list[tuple[str, Schema]]) -> str:
    """Every error's status and meaning, each once; their body is ErrorBody."""
    told: dict[str, str] = {}
    for _, route in routes:
        told |= {s: a["description"] for s, a in route["responses"].items() if s >= "400" and _content(a) == ERROR}
    rows = [f"| {status} | {text} |" for status, text in sorted(told.items())]
    return "\n".join(
        [f"Each of the routes below /v1/ may answer with {ERROR}:", "", "| status | when |", "|---|---|", *rows, ""]
    )


def _schema(name: str, schema: Schema) -> str:
    required = schema.get("required", [])
    rows = [("field", "type", "default", "meaning")]
    rows += [_field(field, each, field in required) for field, each in schema["properties"].items()]
    if more := schema.get("additionalProperties"):
        rows.append(("any other", _type(more), "", ""))
    filled = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lines = [f"| {' | '.join(row)} |" for row in zip(*filled, strict=True)]
    about = [_line(schema["description"])] if "description" in schema else []
    return "\n".join([f"### {name}", *about, "", lines[0], "|---" * len(filled) + "|", *lines[1:], ""])


def _field(name: str, schema: Schema, required: bool) -> tuple[str, str, str, str]:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "" if required else "absent"
    return f"`{name}`", _type(schema), default, _line(schema.get("description", ""))


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("format") or schema.get("type", "any")
    if kind == "array":
        kind = f"list of {_type(schema['items'])}"
    return " ".join([str(kind), *_limits(schema)])


def _limits(schema: Schema) -> list[str]:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    for kind, unit in (("Length", "characters"), ("Items", "entries")):
        least, most = schema.get(f"min{kind}"), schema.get(f"max{kind}")
        if most is not None:
            limits.append(f"({least or 0} to {most} {unit})")
        elif least is not None:
            limits.append("(not empty)")
    return limits


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


ERROR = _type({"$ref": "#/ErrorBody"})


if __name__ == "__main__":
    PAGE.write_text(with_end(PAGE.read_text(), reference()))
