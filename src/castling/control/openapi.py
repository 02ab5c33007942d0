"""The API as an OpenAPI 3.1 document. Pure: made from the one table of paths, so it tells of no other."""

from __future__ import annotations

import re
from typing import Any

import msgspec

import castling
from castling.control.access import AccessRole
from castling.control.routes import ENDPOINTS, Access, Endpoint

__all__ = ["document"]

Json = dict[str, Any]

_ERROR: Json = {
    "type": "object",
    "required": ["ok", "error"],
    "properties": {
        "ok": {"const": False},
        "error": {
            "type": "object",
            "required": ["code", "message", "hint", "retryable", "exit_code", "context"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "hint": {"type": "string"},
                "retryable": {"type": "boolean"},
                "exit_code": {"type": "integer"},
                "context": {"type": "object"},
            },
        },
    },
}
_DATA: Json = {
    "type": "object",
    "required": ["ok", "data"],
    "properties": {"ok": {"const": True}, "data": {}},
}
#: by path: what may stand in its query
_QUERIES: dict[str, tuple[tuple[str, str], ...]] = {
    "/v1/events": (("limit", "integer"),),
    "/v1/access-log": (("limit", "integer"),),
    "/v1/access-log/verify": (("head", "string"),),
    "/v1/groups/{group}/ready": (("rpo_s", "number"), ("lag_s", "number")),
    "/groups/{group}/ready": (("rpo_s", "number"), ("lag_s", "number")),
    "/v1/groups/{group}/figures": (("backup", "string"), ("hours", "number")),
    "/v1/groups/{group}/foreign-writes": (("since_s", "number"),),
}


def document() -> Json:
    """Paths of users and of anybody; those by which nodes ask one another are left out: they may change."""
    bodies = [each.body for each in ENDPOINTS if each.body is not None]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: Json = {}
    for endpoint in ENDPOINTS:
        if endpoint.access is not Access.NODE:
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Castling",
            "version": castling.__version__,
            "description": "The data of each answer is described in docs/reference/json.md.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Data": _DATA, "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> Json:
    words = re.findall(r"\w+", f"{endpoint.method.lower()} {endpoint.path}")
    found: Json = {
        "operationId": "_".join(words),
        "description": f"Who may: {endpoint.access}, and whoever may more."
        if isinstance(endpoint.access, AccessRole)
        else "Who may: anybody.",
        "security": [{"token": []}] if isinstance(endpoint.access, AccessRole) else [],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", endpoint.path)
        ]
        + [
            {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
            for name, kind in _QUERIES.get(endpoint.path, ())
        ],
        "responses": {
            "200": {"description": "done", "content": _content(endpoint)},
            "default": {
                "description": "it could not be done, or may not",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if endpoint.path.endswith("/ready") and "{group}" in endpoint.path:
        found["responses"]["503"] = {"description": "not ready", "content": _content(endpoint)}
    if endpoint.body is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _content(endpoint: Endpoint) -> Json:
    if endpoint.path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {"$ref": "#/components/schemas/Data"}}}
