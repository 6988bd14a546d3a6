"""The endpoint's OpenAPI document: FastAPI's own, with the chat request, whose body the endpoint parses itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tokendial.serve.schema import ChatRequest, ErrorAnswer

REF = "#/components/schemas/{model}"
MEANINGS = {
    400: "a field is wrong, and `param` names it",
    401: "a valid key is needed",
    404: "no such model",
    408: "the body was too slow",
    413: "the body is too large",
    429: "busy, or over the key's rate; see Retry-After",
    431: "the headers are too large",
    499: "the client left",
    503: "no engine answers",
}
CHAT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": REF.format(model="ChatRequest")}}},
    }
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"description": meaning, "model": ErrorAnswer} for code, meaning in MEANINGS.items()
}
READ_RESPONSES: dict[int | str, dict[str, Any]] = {code: RESPONSES[code] for code in (401, 404, 429, 431, 503)}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema = ChatRequest.model_json_schema(ref_template=REF)
        # Absent means something else than any count that could be given.
        del schema["properties"]["visual_tokens"]["default"]
        made["components"]["schemas"] |= {**schema.pop("$defs"), "ChatRequest": schema}
        app.openapi_schema = made
    return app.openapi_schema
