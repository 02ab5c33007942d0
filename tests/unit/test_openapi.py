"""The OpenAPI document tells of every path that the API has, and of no other."""

from __future__ import annotations

import re
from typing import Any

from castling.control.openapi import document
from castling.control.routes import ENDPOINTS, Access


def references(found: Any) -> set[str]:
    if isinstance(found, dict):
        own = {found["$ref"]} if isinstance(found.get("$ref"), str) else set()
        return own.union(*(references(each) for each in found.values()))
    return set().union(*(references(each) for each in found)) if isinstance(found, list) else set()


def test_every_path_of_users_is_told_with_its_names_body_and_access() -> None:
    said = document()
    told = {(method.upper(), path) for path, methods in said["paths"].items() for method in methods}
    assert told == {(each.method, each.path) for each in ENDPOINTS if each.access is not Access.NODE}
    for endpoint in ENDPOINTS:
        if endpoint.access is Access.NODE:
            continue
        operation = said["paths"][endpoint.path][endpoint.method.lower()]
        names = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert names == set(re.findall(r"{(\w+)}", endpoint.path))
        assert bool(operation["security"]) == (endpoint.access is not Access.PUBLIC)
        assert ("requestBody" in operation) == (endpoint.body is not None)


def test_every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() -> None:
    said = document()
    for reference in references(said):
        place: Any = said
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert isinstance(place, dict), reference
    names = [each["operationId"] for methods in said["paths"].values() for each in methods.values()]
    assert len(names) == len(set(names))
    assert "#/components/schemas/UserBody" in references(said), "negative control: there are references"


def test_bodies_forbid_what_the_api_would_refuse() -> None:
    schema = document()["components"]["schemas"]["UserBody"]
    assert set(schema["required"]) == {"name", "role", "password"}
    assert schema["additionalProperties"] is False
