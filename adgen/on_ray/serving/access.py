"""Who may ask, how much and how often; and what an error looks like to a client.

All of it hangs on this module, of which each process has one. Serve pickles the ingress by value, with its module as it is
at the start: nothing that is set later may be in that one.
"""

import logging
from types import SimpleNamespace
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.exceptions import HTTPException

import adgen
from adgen.creatives.bearer_tokens import Scope, TokenFile
from adgen.errors import RunError
from adgen.on_ray.serving.api import ServiceError
from adgen.on_ray.serving.settings import ServeSettings

log = logging.getLogger("ray.serve.adgen")
_state = SimpleNamespace()


def configure(settings: ServeSettings, no_auth: bool) -> None:
    """What this process's ingress is made with. SettingsError: the file of tokens cannot be used."""
    _state.tokens = None if no_auth else TokenFile(settings.auth.tokens)
    _state.limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
    _state.limit = RateLimitItemPerMinute(settings.auth.per_minute)
    _state.retry_after, _state.max_body_bytes = settings.load.retry_after_seconds, settings.load.max_body_bytes


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": code}}, status, headers)


async def _service_error(request: Request, error: ServiceError) -> JSONResponse:
    again = {"Retry-After": str(_state.retry_after)}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: again, 503: again}.get(error.status)
    return _answer(error.status, error.code, error.message, headers)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
    return _answer(422, "invalid", found.encode("utf-8", "replace").decode())


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "bad_request")
    return _answer(error.status_code, code, str(error.detail), dict(error.headers or {}))


async def _store_away(request: Request, error: RunError) -> JSONResponse:
    log.error("%s", error)
    return _answer(503, "unavailable", "the store cannot be reached now; try again", {"Retry-After": str(_state.retry_after)})


async def _fault(request: Request, error: Exception) -> JSONResponse:
    log.error("a fault of ours", exc_info=error)
    return _answer(500, "internal", "a fault of the service; its log says more")


class _BodyLimit:
    """Refuses a body that is too long: by the length that it names before it is read, and by its bytes where it names none."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, read = _state.max_body_bytes, 0
        length = dict(scope["headers"]).get(b"content-length", b"0")
        message = f"the body has more than {most} bytes"

        async def counted() -> dict:
            nonlocal read
            part = await receive()
            read += len(part.get("body", b""))
            if read > most:
                raise HTTPException(413, message)  # of all errors while it reads a body, FastAPI passes on this kind alone
            return part

        if not length.isdigit() or int(length) > most:
            await _answer(413, "too_large", message)(scope, receive, send)
            return
        await self.app(scope, counted, send)


def bearer(request: Request) -> str:
    """The request's token, "" if it has none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class _Needs:
    """A class, since Serve pickles functions within functions by value, with another `_state`."""

    def __init__(self, scope: Scope):
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        if _state.tokens is None:
            return
        token = _state.tokens.find(bearer(request))
        if token is None or token.is_expired():
            raise ServiceError(401, "unauthorized", "give a valid token: Authorization: Bearer TOKEN")
        if not token.allows(self.scope):
            raise ServiceError(403, "forbidden", f"this token may not {self.scope}")
        limit = RateLimitItemPerMinute(token.per_minute) if token.per_minute else _state.limit
        if not _state.limiter.hit(limit, token.name):
            raise ServiceError(429, "rate_limited", "this token asks too often")


def needs(scope: Scope) -> Any:
    """A dependency: the request's token may do that, and does it no more often than it may."""
    return Depends(_Needs(scope))


def new_app() -> FastAPI:
    """An app whose errors are answers of ours."""
    app = FastAPI(title="adgen", version=adgen.__version__, docs_url=None, redoc_url=None)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(_BodyLimit)
    return app


_HANDLERS = {
    ServiceError: _service_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    RunError: _store_away,
    Exception: _fault,
}
