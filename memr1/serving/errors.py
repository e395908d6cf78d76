"""What a request can be refused for: one exception, one body, in the dialect of the route that was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from memr1.errors import MemR1Error
from memr1.memory.state import reason_code
from memr1.memory.types import OpResult


class ApiError(MemR1Error):
    """A refusal with a status, a stable code, and words that say what to do. Survives the way between processes."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        details: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """status: of HTTP. code: for programs, never changed. param: the field at fault. details: plain JSON."""
        super().__init__(message)
        self.status, self.code, self.param, self.details = status, code, param, details
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.status, self.code, str(self), self.param, self.details, self.headers)


def _rebuild(
    status: int, code: str, message: str, param: str | None, details: Any, headers: dict[str, str]
) -> ApiError:
    return ApiError(status, code, message, param=param, details=details, headers=headers)


def not_found(what: str) -> ApiError:
    """404, in the same words for what is not there and for what belongs to somebody else."""
    return ApiError(404, "not_found", f"{what} is not there, or not yours")


def overloaded(what: str, retry_after_s: float = 1.0) -> ApiError:
    """429 with the time after which trying again makes sense."""
    return ApiError(429, "overloaded", what, headers={"Retry-After": str(max(1, round(retry_after_s)))})


def shutting_down() -> ApiError:
    """503 while the service finishes what is under way."""
    said = "the service stops; ask again in a moment"
    return ApiError(503, "shutting_down", said, headers={"Retry-After": "1"})


def as_api_error(error: MemR1Error) -> ApiError:
    """A library's refusal as one of the service: what a disk or a database did is the server's fault, the rest the
    caller's."""
    if isinstance(error, ApiError):
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SQLAlchemyError | OSError):
            return ApiError(
                503,
                "storage_unavailable",
                "the store cannot do this now; nothing was acknowledged, so try again under the same Idempotency-Key",
                headers={"Retry-After": "5"},
            )
        cause = cause.__cause__
    return ApiError(400, "invalid_request", str(error))


REJECTIONS: dict[str, int] = {
    "missing_id": 422,
    "unknown_id": 404,
    "deleted_id": 404,
    "version_conflict": 412,
    "empty_text": 422,
    "invalid_text": 422,
    "too_long": 413,
    "duplicate_content": 409,
    "unknown_kind": 422,
    "kind_mismatch": 422,
    "bank_full": 413,
    "untrusted_source": 403,
}
"""Status of an operation that the bank rejects, by its reason (`memr1.memory.REASONS`), where a caller asked for it."""


def accepted(results: Sequence[OpResult]) -> None:
    """`ApiError` with the status that fits when the bank rejected what a caller asked for: of a decision that fell as a
    whole, by the operation at fault."""
    refused = [r for r in results if not r.ok]
    if not refused:
        return
    result = next((r for r in refused if reason_code(r.reason or "") != "aborted"), refused[0])
    code = reason_code(result.reason or "")
    if REJECTIONS.get(code) == 404:
        raise not_found("the memory")
    raise ApiError(REJECTIONS.get(code, 409), code, result.detail or code)


STATUSES = (400, 401, 403, 404, 405, 408, 409, 412, 413, 422, 429, 431, 499, 500, 501, 503, 504)
"""Of every refusal there is."""

NATIVE, OPENAI, MEM0 = "native", "openai", "mem0"


def dialect_of(path: str) -> str:
    """Whose way of saying errors a path is answered in."""
    if path.startswith(("/v1/chat", "/v1/embeddings", "/v1/models")):
        return OPENAI
    if path.startswith(("/memories", "/search", "/v3/", "/v1/memories", "/v1/entities", "/v1/ping", "/v2/entities")):
        return MEM0
    return NATIVE


def body_of(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """The JSON body of an error.

    Native and OpenAI routes share one shape, which the `openai` package reads; mem0's clients look for `detail`.
    """
    if dialect_of(path) == MEM0:
        return {"detail": str(error), "code": error.code, "request_id": request_id}
    body: dict[str, Any] = {
        "code": error.code,
        "message": str(error),
        "type": "server_error" if error.status >= 500 else "invalid_request_error",
        "param": error.param,
        "request_id": request_id,
    }
    if error.details is not None:
        body["details"] = error.details
    return {"error": body}
