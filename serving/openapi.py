"""The tool routes in the OpenAPI document. They are plain ASGI, which Litestar cannot describe by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.openapi.spec import Components, OpenAPI, SecurityScheme

from agent_rft.contracts.messages import ToolSpec
from serving.tool_calls import ToolAnswer, ToolRequest

BEARER: list[dict[str, list[str]]] = [{"bearer": []}]
COMPONENTS = Components(security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")})
INFRA_ERROR = {
    "type": "object",
    "properties": {"infra_error": {"type": "object", "properties": {"part": {"type": "string"}, "what": {"type": "string"}}}},
}


def document_tools(document: OpenAPI, specs: Iterable[ToolSpec], short_forms: Iterable[str]) -> None:
    """Written as the JSON it becomes: Litestar passes plain dictionaries through."""
    paths: dict[str, Any] = {
        "/tools": {
            "get": _operation("ListTools", "The tools, as a model is told about them", {"200": _json("OpenAI tool specifications", {})})
        }
    }
    named = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    by_name = _call("CallTool", "Call a tool by its name", {"type": "object", "description": "as the tool's own schema says: GET /tools"})
    paths["/tools/{name}"] = {"post": {**by_name, "parameters": [named]}}
    for spec in specs:
        if f"/{spec.name}" in short_forms:
            paths[f"/{spec.name}"] = {"post": _call(f"Call{spec.name.title()}", spec.description, spec.parameters)}
    document.paths = {**(document.paths or {}), **paths}


def _call(operation_id: str, summary: str, arguments: dict[str, Any]) -> dict[str, Any]:
    request = msgspec.json.schema(ToolRequest)["$defs"]["ToolRequest"]
    request["properties"]["arguments"] = arguments
    answer = msgspec.json.schema(ToolAnswer)["$defs"]["ToolAnswer"]
    responses = {
        "200": _json("What the model is shown; its own mistakes as well, with `error` set", answer),
        "400": {"description": "The body is not such a request: the calling program's mistake"},
        "413": {"description": "The body is too large"},
        "503": _json("Not the model's fault: the tool failed or gave no answer in time, retries included", INFRA_ERROR),
    }
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    return {**_operation(operation_id, summary, responses), "requestBody": body}


def _operation(operation_id: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    refused = {"401": {"description": "Missing or wrong bearer"}}
    return {"tags": ["tools"], "operationId": operation_id, "summary": summary, "security": BEARER, "responses": responses | refused}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
