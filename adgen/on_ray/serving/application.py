"""The application on Ray Serve: started, replaced replica by replica, ended."""

import logging

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from adgen.errors import RunError
from adgen.on_ray.cluster import cluster_device, quiet_ray, slot_resources
from adgen.on_ray.serving.engine import EngineReplica
from adgen.on_ray.serving.ingress import Ingress
from adgen.on_ray.serving.settings import ServeSettings

log = logging.getLogger(__name__)
NAME = "adgen"
LOGS = LoggingConfig(encoding="JSON")
_TAKEN_PER_SLOT = 2  # requests that a replica takes: one batch runs, the next is made ready


def application(settings: ServeSettings, no_auth: bool = False, replica: type[EngineReplica] = EngineReplica) -> Application:
    """Ingress and engines (`replica`). Engines of a changed model start before those of the old one stop; the ingress stays."""
    load = settings.load
    slots = settings.engine.num_slots or 4
    backpressure = BackpressureConfig(status_code=429, retry_after_s=load.retry_after_seconds)
    device = cluster_device(settings.device)
    resources = slot_resources(device)
    engines = serve.deployment(
        replica,
        name="engine",
        autoscaling_config=AutoscalingConfig(
            min_replicas=load.min_replicas, max_replicas=max(load.min_replicas, load.max_replicas), target_ongoing_requests=slots
        ),
        max_ongoing_requests=_TAKEN_PER_SLOT * slots,
        max_queued_requests=load.max_queued,
        backpressure_config=backpressure,
        ray_actor_options={"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)},
        graceful_shutdown_timeout_s=load.timeout_seconds,
        max_constructor_retry_count=2,
        max_surge_percent=100,
    ).bind(settings.model_copy(update={"device": device}))
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,  # one process counts what each token asks
        max_ongoing_requests=1000,
        max_queued_requests=1000,
        backpressure_config=backpressure,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=load.timeout_seconds,
    )
    shown = settings.model_copy(update={"model": None, "engine": type(settings.engine)()})  # a new model changes no ingress
    return ingress.bind(shown, engines, no_auth)


def build(settings: ServeSettings) -> Application:
    """What Serve's own config names as import_path; its args are the settings. It always asks for tokens."""
    return application(settings.complete())


def start(settings: ServeSettings, no_auth: bool = False, replica: type[EngineReplica] = EngineReplica) -> None:
    """Start the application, or replace what of it changed; returns when it serves. RunError: it could not start."""
    timeout = settings.load.timeout_seconds + 5
    http = HTTPOptions(host=settings.http.host, port=settings.http.port, request_timeout_s=timeout)
    serve.start(http_options=http, logging_config=LOGS)
    quiet_ray()  # serve.start sets its logger up anew
    try:
        serve.run(application(settings, no_auth, replica), name=NAME, route_prefix="/", logging_config=LOGS)
    except RuntimeError as error:
        raise RunError(f"the service could not start: {_why(error)}") from None


def stop(seconds: float = 120.0) -> None:
    """End the application: requests that were accepted are answered first, within so many seconds."""
    try:
        serve.get_deployment_handle("ingress", NAME).drain.remote().result(timeout_s=seconds)
    except (TimeoutError, RayError, RayServeException) as error:
        log.warning("not all accepted requests were answered: %s", error)
    serve.delete(NAME)
    serve.shutdown()


def _why(error: RuntimeError) -> str:
    """What a replica's constructor raised, as Serve's status repeats it."""
    application = serve.status().applications.get(NAME)
    said = [each.message for each in application.deployments.values()] if application else []
    lines = [line.strip() for line in "\n".join([*said, str(error)]).splitlines()]
    named = [line for line in lines if line.startswith("adgen.errors.") or "Error:" in line]
    return named[-1] if named else lines[-1]
