"""The deployment that clients reach: who may ask, how often and how much; it reads published creatives and hands requests on."""

import asyncio
import base64
import hashlib
import logging
import time
from typing import Annotated

from fastapi import Header, Query, Request
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter

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
from adgen.on_ray.serving.shared_work import SharedWork
from adgen.records import bound_key
from adgen.shop.key_files import load_keys

log = logging.getLogger("ray.serve.adgen")
_ERRORS = {status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 413, 422, 429, 500, 503, 504)}
app = new_app()


def _engines_run() -> bool:
    """As the controller knows: to ask an engine would take as long as requests wait for it. Serve pickles the class below by value
    when it is decorated, so this stands above it."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    return application is not None and application.deployments["engine"].replica_states.get("RUNNING", 0) > 0


@serve.ingress(app)
class Ingress:
    """HTTP in, JSON out. It needs no model and no GPU."""

    def __init__(self, settings: ServeSettings, engines: DeploymentHandle, no_auth: bool):
        self.settings, self.engines = settings, engines
        self.storage = open_storage(settings.store, settings.s3)
        keys = load_keys(settings.keys, settings.store)
        self.key = bound_key(keys.campaign_key, settings.campaign)
        self.published = Published(self.storage, keys.user_secret, settings.served.follow_seconds)
        self._shared = SharedWork()
        self._accepted, self._ends = 0, False
        self._failed = Counter("adgen_failed", description="requests that got no creative, by reason", tag_keys=("reason",))
        configure(settings, no_auth)

    @app.get("/healthz/live")
    async def live(self) -> dict[str, str]:
        """The process answers. It never looks at the store: an outage of it must not restart replicas."""
        return {"status": "ok"}

    @app.get("/healthz/ready", responses=_ERRORS)
    async def ready(self) -> dict[str, str]:
        """A model is loaded and the store can be reached."""
        if self._ends:
            raise ServiceError(503, "ending", "the service ends")
        try:
            async with asyncio.timeout(5):
                await asyncio.to_thread(self.storage.head, "private/probe/ready.txt")
                loaded = await asyncio.to_thread(_engines_run)
        except (TimeoutError, StoreError, OSError, RayError):
            loaded = False
        if not loaded:
            raise ServiceError(503, "not_ready", "the model or the store is not there")
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
        asked = campaign, product_id, user_key, x_adgen_user, variant
        found = self.published.find_known(*asked) or await asyncio.to_thread(self.published.find, *asked)
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
        seconds = self._seconds(x_request_timeout_seconds)
        self._accepted += 1
        try:
            if idempotency_key is not None:
                await self._remember(idempotency_key, asked, bearer(request))
            rows = await self._rows(asked, seconds)
            data = [await self._shown(row, None, asked.response_format) for row in rows]
        except ServiceError as error:
            self._failed.inc(tags={"reason": error.code})
            raise
        finally:
            self._accepted -= 1
        return CreativesAnswer(created=int(time.time()), data=data)

    async def accepted(self) -> int:
        """Requests for creatives that were accepted and are not answered yet."""
        return self._accepted

    async def drain(self) -> None:
        """Accept no more requests for creatives; returns when those that were accepted are answered."""
        self._ends = True
        while self._accepted:
            await asyncio.sleep(0.05)

    async def _rows(self, asked: CreativeRequest, seconds: float) -> list[Row]:
        """Rows of the request's creatives. Who asks for the same meanwhile, of whichever engine, shares the work."""
        work = asked.model_dump_json(exclude={"response_format"})
        try:
            async with asyncio.timeout(seconds):
                return await self._shared.do(work, lambda: self._made(asked))
        except TimeoutError:
            raise ServiceError(504, "deadline", f"not made within {seconds:g} seconds") from None

    def _check(self, asked: CreativeRequest) -> None:
        if self._ends:
            raise ServiceError(503, "ending", "the service ends; ask another one")
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

    async def _made(self, asked: CreativeRequest) -> list[Row]:
        """The engines' rows. A replica that dies costs a second try of another."""
        for last in (False, True):
            try:
                found = await self._asked_engine(asked)
                if isinstance(found, ServiceError):
                    raise found
                return found
            except BackPressureError:
                raise ServiceError(429, "busy", "too many requests wait; try again") from None
            except (RayActorError, DeploymentUnavailableError) as error:
                log.warning("an engine died with a request: %s", type(error).__name__)
                if last:
                    raise ServiceError(503, "engine_lost", "the engine died twice with this request; try again") from None
        raise AssertionError

    async def _asked_engine(self, asked: CreativeRequest) -> list[Row] | ServiceError:
        response = self.engines.make.remote(asked, self.settings.load.timeout_seconds)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # its rows leave the queue
            raise

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
