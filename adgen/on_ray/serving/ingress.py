"""The deployment that clients reach: who may ask, how often and how much; it reads published creatives and hands requests on."""

import asyncio
import base64
import hashlib
import logging
import time
from typing import Annotated

from fastapi import Header, Query, Request
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from adgen.creatives.served import remember_request, request_digest
from adgen.creatives.stores import open_storage
from adgen.errors import StoreError
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.access import bearer, configure, needs, new_app
from adgen.on_ray.serving.api import (
    Campaign,
    CreativeAnswer,
    CreativeRequest,
    CreativesAnswer,
    ErrorAnswer,
    Name,
    ServiceError,
    UserKey,
)
from adgen.on_ray.serving.api import not_found as unknown
from adgen.on_ray.serving.published import Published
from adgen.on_ray.serving.settings import ServeSettings
from adgen.records import bound_key
from adgen.shop.key_files import load_keys

log = logging.getLogger("ray.serve.adgen")
_ERRORS = {status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 413, 422, 429, 500, 503, 504)}
app = new_app()


@serve.ingress(app)
class Ingress:
    """HTTP in, JSON out. It needs no model and no GPU."""

    def __init__(self, settings: ServeSettings, engines: DeploymentHandle, no_auth: bool):
        self.settings, self.engines = settings, engines
        self.storage = open_storage(settings.store, settings.s3)
        keys = load_keys(settings.keys, settings.store)
        self.key = bound_key(keys.campaign_key, settings.campaign)
        self.published = Published(self.storage, keys.user_secret, settings.served.follow_seconds)
        configure(settings, no_auth)

    @app.get("/healthz/live")
    async def live(self) -> dict[str, str]:
        """The process answers. It never looks at the store: an outage of it must not restart replicas."""
        return {"status": "ok"}

    @app.get("/healthz/ready", responses=_ERRORS)
    async def ready(self) -> dict[str, str]:
        """A model is loaded and the store can be reached."""
        try:
            async with asyncio.timeout(5):
                await self.engines.ready.remote()
                await asyncio.to_thread(self.storage.head, "private/probe/ready.txt")
        except (TimeoutError, StoreError, OSError, RayActorError, BackPressureError, DeploymentUnavailableError):
            raise ServiceError(503, "not_ready", "the model or the store is not there") from None
        return {"status": "ok"}

    @app.get("/v1/campaigns/{campaign}/creatives", responses=_ERRORS, dependencies=[needs("read")])
    async def read(
        self,
        campaign: Campaign,
        product_id: Annotated[Name, Query()],
        user_key: Annotated[UserKey | None, Query()] = None,
        variant: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        x_adgen_user: Annotated[str | None, Header(max_length=512)] = None,
    ) -> CreativeAnswer:
        """The published creative of a user and a product. The user is named by user_key, or by id in the header X-Adgen-User."""
        if (user_key is None) == (x_adgen_user is None):
            raise ServiceError(422, "invalid", "name the user by user_key, or by id in the header X-Adgen-User")
        found = await asyncio.to_thread(self.published.find, campaign, product_id, user_key, x_adgen_user, variant)
        return await self._shown(*found, "url")

    @app.post("/v1/creatives", responses=_ERRORS, dependencies=[needs("generate")])
    async def create(
        self,
        asked: CreativeRequest,
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
        x_request_timeout_seconds: Annotated[str | None, Header()] = None,
    ) -> CreativesAnswer:
        """Make creatives of a pair now. The same request twice has the same creatives, which are made once."""
        self._check(asked)
        if idempotency_key is not None:
            await self._remember(idempotency_key, asked, bearer(request))
        rows = await self._made(asked, self._seconds(x_request_timeout_seconds))
        data = [await self._shown(row, None, asked.response_format) for row in rows]
        return CreativesAnswer(created=int(time.time()), data=data)

    def _check(self, asked: CreativeRequest) -> None:
        if asked.campaign not in (None, self.settings.campaign):
            raise unknown()
        if asked.n > self.settings.load.max_creatives:
            raise ServiceError(422, "invalid", f"n: at most {self.settings.load.max_creatives}")

    async def _remember(self, name: str, asked: CreativeRequest, token: str) -> None:
        names = request_digest(self.key, token, name), request_digest(self.key, asked.model_dump_json())
        if not await asyncio.to_thread(remember_request, self.storage, self.settings.campaign, *names):
            raise ServiceError(422, "idempotency_key", "this Idempotency-Key was used with another body")

    def _seconds(self, asked: str | None) -> float:
        """Until the deadline: Serve's own, of the header, comes a little later and would say less."""
        most = self.settings.load.timeout_seconds
        try:
            seconds = float(asked) if asked is not None else most
        except ValueError:
            raise ServiceError(422, "invalid", "x-request-timeout-seconds: is no number") from None
        if not seconds > 0:
            raise ServiceError(422, "invalid", "x-request-timeout-seconds: is above 0")
        seconds = min(seconds, most)
        return max(seconds / 2, seconds - max(0.3, seconds / 20))

    async def _made(self, asked: CreativeRequest, seconds: float) -> list[Row]:
        """The engines' rows. A replica that dies costs a second try of another."""
        ends = time.monotonic() + seconds
        for last in (False, True):
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + ends - time.monotonic() + 1):
                    return await self.engines.make.remote(asked, max(0.001, ends - time.monotonic()))
            except BackPressureError:
                raise ServiceError(429, "busy", "too many requests wait; try again") from None
            except TimeoutError:
                raise ServiceError(504, "deadline", f"not made within {seconds:g} seconds") from None
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, ServiceError) else error from None
            except (RayActorError, DeploymentUnavailableError) as error:
                log.warning("an engine died with a request: %s", type(error).__name__)
                if last:
                    raise ServiceError(503, "engine_lost", "the engine died twice with this request; try again") from None
        raise AssertionError

    async def _shown(self, row: Row, run_id: str | None, form: str) -> CreativeAnswer:
        answer = CreativeAnswer(**{name: row.get(name) for name in CreativeAnswer.model_fields if name in row and name != "gates"})
        answer.gates, answer.run_id = dict(row.get("gates") or {}), run_id
        if row["uri"] is not None and form == "url":
            answer.url = self.storage.url(row["uri"], self.settings.served.url_seconds)
        elif row["uri"] is not None:
            stored = await asyncio.to_thread(self.storage.read, row["uri"])
            data = stored if isinstance(stored, bytes) else bytes(stored)
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise ServiceError(503, "damaged", "the picture in the store is not the one that was made")
            answer.b64_json = base64.b64encode(data).decode()
        return answer
