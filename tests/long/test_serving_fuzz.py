"""The service's OpenAPI document is true: whatever schemathesis sends by it, or against it, gets an answer that it names."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from support.refreshes import run, settings
from support.serving import free_port

from adgen.on_ray.serving.settings import ServeSettings

# No schema says that a text is a picture, or that a user stands either in a header or in the query.
UNSAYABLE = [CHECKS.get_one("positive_data_acceptance")]


@pytest.fixture(scope="module")
def document(ray_cluster, shop, model, tmp_path_factory) -> Iterator[schemathesis.BaseSchema]:
    """What a service of a published campaign says of itself."""
    from adgen.on_ray.serving.application import start, stop

    night = settings(shop, str(tmp_path_factory.mktemp("serving") / "store"), model)
    run(night)
    names = ("inputs", "store", "campaign", "model", "sampling", "engine", "finish", "keys")
    port = free_port()
    start(ServeSettings.model_validate({name: getattr(night, name) for name in names} | {"http": {"port": port}}), no_auth=True)
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    stop()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", ["/v1/creatives", "/v1/campaigns/{campaign}/creatives"])
def test_every_answer_is_one_that_the_document_names(document, path, mode):
    [operation] = [each.ok() for each in document.get_all_operations() if each.ok().path == path]

    @hypothesis_settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=UNSAYABLE)

    ask()
