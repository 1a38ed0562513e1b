"""The tool routes in the OpenAPI document. They are plain ASGI, which Litestar cannot describe by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, OpenAPI, SecurityScheme

from agent_rft.contracts.messages import ToolSpec
from serving.tool_calls import ToolAnswer, ToolRequest

BEARER: list[dict[str, list[str]]] = [{"bearer": []}]
COMPONENTS = Components(security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")})
INFRA_ERROR = {
    "type": "object",
    "properties": {"infra_error": {"type": "object", "properties": {"part": {"type": "string"}, "what": {"type": "string"}}}},
}
CHAT: dict[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string", "description": "a service of your tenant: GET /v1/models"},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {"role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]}},
            },
        },
        "stream": {"type": "boolean"},
        "user": {"type": "string", "description": "the session, as x-session-id is"},
        "item": {"type": "object", "description": "what graders see of it and the agent does not"},
    },
}
_REFUSED = {
    "400": "The body is no chat request",
    "403": "The key has not the scope run",
    "404": "There is no such service",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "429": "A quota is spent, or the model has as much to do as it takes: Retry-After",
    "502": "The model failed",
    "503": "The model, or room for the answer's card, is away: Retry-After",
    "504": "The model gave no answer in time",
}


def response(of: type, description: str, media_type: str = "application/json") -> ResponseSpec:
    """Without examples, which Litestar would make up at random, with libraries that take longer to load than the app does to make."""
    return ResponseSpec(of, generate_examples=False, description=description, media_type=media_type)


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


def document_gateway(document: OpenAPI) -> None:
    """As OpenAI's, whose other keys go through as well."""
    told = {
        "200": _json("OpenAI's chat completion; with stream its events", {"type": "object"}),
        **{status: _json(why, {"type": "object"}) for status, why in _REFUSED.items()},
    }
    chat = _operation("Chat", "Have the service's agent answer, as OpenAI's API does", told)
    body = {"required": True, "content": {"application/json": {"schema": CHAT}}}
    listed = _operation("ListModels", "The services of your tenant", {"200": _json("OpenAI's list of models", {"type": "object"})})
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": {**chat, "tags": ["gateway"], "requestBody": body}},
        "/v1/models": {"get": {**listed, "tags": ["gateway"]}},
    }
    document.paths = {**(document.paths or {}), **paths}
