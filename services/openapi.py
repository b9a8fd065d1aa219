"""How the OpenAPI description tells of bodies that the routes read themselves; see services.bodies for why they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def body_of(model: type[BaseModel], *, required: bool = True, binary: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that takes this model as JSON; binary: or JSON and tensors after it."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    return {"requestBody": {"required": required, "content": content | (BINARY if binary else {})}}


def describe_bodies(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Adds the models that `body_of` refers to to the description."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        described = generate()
        _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
        described["components"]["schemas"].update(definitions["$defs"])
        return described

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way
