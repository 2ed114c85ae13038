"""Everything in cluster/ parses, names only fields that exist, points at files that exist; its arithmetic adds up."""

import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from adgen.errors import SettingsError
from adgen.on_ray.command import parse
from adgen.on_ray.training.settings import PretrainSettings

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
IN_IMAGE = "/opt/adgen/"

# Fields of the CRDs of group ray.io, version v1, read in ray-project/kuberay: ray-operator/apis/ray/v1/raycronjob_types.go
# (1.7.1; `timeZone` came with pull request 4762 and is refused by 1.6, `concurrencyPolicy` is in no merged version),
# rayjob_types.go and raycluster_types.go; authOptions: release notes of 1.5.1, "kind: RayCluster ... authOptions: mode".
CRON_FIELDS = {"schedule", "timeZone", "jobTemplate", "suspend"}
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
CLUSTER_FIELDS = {
    "headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions",
    "headServiceAnnotations", "suspend", "authOptions",
}  # fmt: skip
# rayservice_types.go of 1.7.1.
SERVICE_FIELDS = {
    "serveConfigV2", "rayClusterConfig", "upgradeStrategy", "serveService", "excludeHeadPodFromServeSvc",
    "rayClusterDeletionDelaySeconds", "managedBy", "suspend",
}  # fmt: skip
HEAD_FIELDS = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
WORKER_FIELDS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template", "scaleStrategy",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext", "idleTimeoutSeconds",
    "upscalingMode",
}  # fmt: skip
# Of core/v1 PodSpec and Container (kubernetes.io API reference, "Pod v1 core"): those that are used here.
POD_FIELDS = {
    "affinity", "automountServiceAccountToken", "containers", "nodeSelector", "securityContext", "serviceAccountName",
    "terminationGracePeriodSeconds", "tolerations", "volumes",
}  # fmt: skip
CONTAINER_FIELDS = {"env", "image", "name", "ports", "resources", "securityContext", "volumeMounts"}

# What the cluster's commands may set, the files of the two keys among it (docs/design.md 3.1): what is not here is a slip.
FLAGS = {
    "jobs/refresh.py": {
        "--inputs", "--store", "--campaign", "--model", "--limit", "--pairs-per-shard", "--dry-run", "--publish-partial",
        "--json", "--address", "--device", "--cluster.actors", "--keys.campaign-key", "--keys.user-secret",
    },
    "jobs/pretrain.py": {
        "--stage", "--inputs", "--model", "--dinov2", "--out", "--cache", "--device", "--batch", "--steps", "--trainable.preset",
        "--workers.num", "--workers.micro-batch", "--workers.loaders", "--workers.gradient-checkpointing",
        "--workers.deepspeed",
    },
}  # fmt: skip
SECONDS_A_DAY = 86400


def documents(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def rayjob_spec(name):
    spec = documents(name)[0]["spec"]
    return spec.get("jobTemplate", spec)


def cluster_of(spec):
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pods(spec):
    cluster = cluster_of(spec)
    return [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


def commands():
    """Every `python .../jobs/x.py ...` in the manifests and the README, continued lines joined, as lists of words."""
    texts = [rayjob_spec(name)["entrypoint"] for name in RAYJOBS]
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    texts += re.findall(r"python \S*jobs/\w+\.py[^\n`|]*", readme)
    return [shlex.split(text, comments=True) for text in texts]


RAYJOBS = ["refresh-nightly.yaml", "refresh-once.yaml", "pretrain.yaml"]
SERVICE = "serve.yaml"


def within(found, known, where):
    assert set(found) <= known, f"{where}: {sorted(set(found) - known)} is in no CRD that was read"


def test_manifests_name_only_fields_of_the_crds():
    nightly = documents("refresh-nightly.yaml")[0]
    assert (nightly["apiVersion"], nightly["kind"]) == ("ray.io/v1", "RayCronJob")
    within(nightly["spec"], CRON_FIELDS, "RayCronJob.spec")
    ZoneInfo(nightly["spec"]["timeZone"])
    for name in [*RAYJOBS, SERVICE]:
        assert documents(name)[0]["apiVersion"] == "ray.io/v1"
        spec = rayjob_spec(name)
        cluster = cluster_of(spec)
        within(spec, SERVICE_FIELDS if name == SERVICE else JOB_FIELDS, name)
        within(cluster, CLUSTER_FIELDS, name)
        within(cluster["headGroupSpec"], HEAD_FIELDS, name)
        within(cluster.get("autoscalerOptions", {}), AUTOSCALER_FIELDS, name)
        for group in cluster["workerGroupSpecs"]:
            within(group, WORKER_FIELDS, name)
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for pod in pods(spec):
            within(pod, POD_FIELDS, name)
            for container in pod["containers"]:
                within(container, CONTAINER_FIELDS, name)


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_cluster_goes_when_its_job_ends_and_no_work_lands_on_the_head(name):
    spec = rayjob_spec(name)
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert pods(spec)[0]["nodeSelector"]["karpenter.sh/capacity-type"] == "on-demand"


def test_two_nights_never_overlap():
    spec = rayjob_spec("refresh-nightly.yaml")
    longest = (spec["backoffLimit"] + 1) * spec["activeDeadlineSeconds"] + spec["ttlSecondsAfterFinished"]
    assert longest < SECONDS_A_DAY
    minute, hour, *rest = documents("refresh-nightly.yaml")[0]["spec"]["schedule"].split()
    assert (minute + hour).isdigit()
    assert rest == ["*", "*", "*"]


@pytest.mark.parametrize("name", [*RAYJOBS, SERVICE])
def test_pods_are_unprivileged_sized_and_complete(name):
    accounts = {d["metadata"]["name"] for d in documents("access.yaml") if d["kind"] == "ServiceAccount"}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in pods(rayjob_spec(name)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] in accounts
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] == f"adgen:{version}"
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]) <= set(resources["limits"])
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
            gpus = resources["limits"].get("nvidia.com/gpu")
            assert bool(gpus) == any(t["key"] == "nvidia.com/gpu" for t in pod.get("tolerations", []))


def test_keys_are_mounted_as_files_where_a_refresh_reads_them():
    for name in RAYJOBS[:2]:
        words = shlex.split(rayjob_spec(name)["entrypoint"])
        for flag in ("--keys.campaign-key", "--keys.user-secret"):
            path = Path(words[words.index(flag) + 1])
            for pod in pods(rayjob_spec(name)):
                volumes = {volume["name"]: volume for volume in pod["volumes"]}
                mounts = {m["mountPath"]: volumes[m["name"]] for m in pod["containers"][0]["volumeMounts"]}
                assert mounts[str(path.parent)]["secret"]["defaultMode"] == 0o440
                assert all("secret" not in str(entry).lower() for entry in pod["containers"][0].get("env", []))
    assert not any("keys" in str(pod["volumes"]) for pod in pods(rayjob_spec("pretrain.yaml")))


def test_commands_name_files_and_flags_that_exist():
    seen = set()
    for words in commands():
        script = words[1].removeprefix(IN_IMAGE)
        assert script in FLAGS, words
        seen.add(script)
        assert words[2].removeprefix(IN_IMAGE) == script.replace(".py", ".toml")
        flags = {word for word in words[3:] if word.startswith("--")}
        assert flags <= FLAGS[script], f"{script} has no {sorted(flags - FLAGS[script])}"
        if script == "jobs/refresh.py":
            assert {"--inputs", "--store", "--campaign"} <= flags
    assert seen == set(FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(FLAGS))
def test_the_flags_are_those_that_the_job_prints(script):
    command = [sys.executable, script, script.replace(".py", ".toml"), "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    used = {word for words in commands() if words[1].endswith(script) for word in words if word.startswith("--")}
    assert used
    assert {flag for flag in used if flag not in text.replace("_", "-")} == set()


def test_the_training_job_is_one_that_the_settings_take(monkeypatch):
    """The manifest's command through the job's own parser: batch, micro-batch and workers fit, and the files are there."""
    words = shlex.split(rayjob_spec("pretrain.yaml")["entrypoint"].replace(IN_IMAGE, f"{ROOT}/"))
    spec = importlib.util.spec_from_file_location("pretrain_job", words[1])
    job = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pretrain_job", job)  # tyro reads the docstrings of its classes
    spec.loader.exec_module(job)
    settings = parse(job.Command, PretrainSettings, words[2:]).settings
    settings.require()
    gpus = sum(group["replicas"] * 8 for group in rayjob_spec("pretrain.yaml")["rayClusterSpec"]["workerGroupSpecs"])
    assert settings.workers.num == gpus
    assert settings.share.accumulation == 8
    assert settings.engine == "deepspeed"
    assert settings.workers.deepspeed.is_file()


def test_the_service_is_one_that_serve_and_the_settings_take():
    """Serve's own schema reads the config, its import_path is a builder, and the builder's settings take the args."""
    from ray.serve._private.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    from adgen.on_ray.serving.settings import ServeSettings

    spec = rayjob_spec(SERVICE)
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    [application] = config.applications
    builder = import_attr(application.import_path)
    [parameter] = inspect.signature(builder).parameters.values()
    assert parameter.annotation is ServeSettings
    made = builder(ServeSettings.model_validate(application.args))
    assert made._bound_deployment.name == "ingress"
    settings = ServeSettings.model_validate(application.args).complete()
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (settings.load.min_replicas, settings.load.max_replicas)
    assert config.http_options.request_timeout_s > settings.load.timeout_seconds
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > settings.load.timeout_seconds
    for pod in pods(spec):
        places = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert {str(settings.auth.tokens.parent), str(settings.keys.campaign_key.parent), str(settings.model.parent)} <= places
    with pytest.raises(SettingsError, match="tokens"):
        builder(ServeSettings.model_validate(application.args | {"auth": {}}))
    with pytest.raises(ValidationError, match="no_such"):
        ServeSettings.model_validate(application.args | {"no_such": 1})


def test_the_service_makes_what_the_night_makes():
    """Settings that decide a creative stand in jobs/serve.toml and in the manifest alike."""
    served = tomllib.loads((ROOT / "jobs/serve.toml").read_text())
    args = yaml.safe_load(rayjob_spec(SERVICE)["serveConfigV2"])["applications"][0]["args"]
    assert {name: args[name] for name in ("sampling", "finish")} == {name: served[name] for name in ("sampling", "finish")}


def test_launcher_yaml_passes_rays_own_schema():
    autoscaler = pytest.importorskip("ray.autoscaler")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = documents("aws.yaml")[0]
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_worker": 1}, schema)
    # Left out, ray fills these with its defaults, which install a nightly build of ray over the image's.
    assert all(config[key] == [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert types["gpu"]["max_workers"] <= config["max_workers"]


def statements(policy):
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert {"Sid", "Effect", "Action", "Resource"} <= set(statement)
        yield statement


def test_policies_have_no_wildcard_action_and_keep_private_private():
    roles = json.loads((CLUSTER / "iam-policy.json").read_text())
    bucket = json.loads((CLUSTER / "bucket-policy.json").read_text())
    for policy in [*roles.values(), bucket]:
        assert all("*" not in action for s in statements(policy) for action in s["Action"])

    def allowed(role, action):
        granted = [s for s in statements(roles[role]) if s["Effect"] == "Allow" and action in s["Action"]]
        return [resource for s in granted for resource in s["Resource"]]

    assert all("/store/private/probe/" in resource for resource in allowed("job", "s3:DeleteObject"))
    assert any("/store/objects/" in resource for resource in allowed("cleanup", "s3:DeleteObject"))
    # It sees how old an object is, marks a run before it removes it, and notes what nothing names for the next clean-up.
    assert any("/store/objects/" in resource for resource in allowed("cleanup", "s3:GetObject"))
    writes = {resource.partition("/store/")[2] for resource in allowed("cleanup", "s3:PutObject")}
    assert writes == {"campaigns/*/runs/*/run.json", "private/clean-up/*"}
    removes = {resource.partition("/store/")[2] for resource in allowed("cleanup", "s3:DeleteObject")}
    assert {"private/clean-up/*", "private/probe/*"} <= removes
    reads = {resource.partition("/store/")[2] for resource in allowed("consumer", "s3:GetObject")}
    assert reads == {"objects/*", "campaigns/*"}
    assert {action for s in statements(roles["consumer"]) for action in s["Action"]} == {"s3:GetObject"}
    assert not any("private" in resource for resource in allowed("training", "s3:GetObject"))


def test_no_role_lists_more_than_its_own_folders_and_no_container_gains_rights():
    for role, policy in json.loads((CLUSTER / "iam-policy.json").read_text()).items():
        for statement in statements(policy):
            if {"s3:ListBucket", "s3:ListBucketVersions"} & set(statement["Action"]):
                # IfExists: to ask for a missing key is a question about a list as well, and names no prefix.
                prefixes = statement["Condition"]["StringLikeIfExists"]["s3:prefix"]
                assert prefixes, role
                assert all(prefix.endswith("/*") and len(prefix) > 2 for prefix in prefixes)
                assert role != "training" or not any(prefix.startswith("store/") for prefix in prefixes)
    for name in [*RAYJOBS, SERVICE]:
        for pod in pods(rayjob_spec(name)):
            for container in pod["containers"]:
                assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_bucket_policy_refuses_commits_without_a_condition_and_nothing_else():
    by_sid = {s["Sid"]: s for s in statements(json.loads((CLUSTER / "bucket-policy.json").read_text()))}
    commits = by_sid["CommitsMustBeConditional"]
    assert commits["Effect"] == "Deny"
    assert commits["Condition"]["Null"] == {"s3:if-none-match": "true", "s3:if-match": "true"}
    # An old object is written again without a condition (adgen/creatives/objects.py); its content is its name.
    assert not any("/objects/" in resource for resource in commits["Resource"])
    assert any(resource.endswith("/store/campaigns/*") for resource in commits["Resource"])
    private = by_sid["PrivateIsForItsRolesOnly"]
    assert private["Effect"] == "Deny"
    assert private["Resource"] == ["arn:aws:s3:::amzn-s3-demo-bucket/store/private/*"]
    # Whoever runs a refresh must pass: the service account of the pods, the instance profiles of the launcher.
    types = documents("aws.yaml")[0]["available_node_types"].values()
    runners = {"adgen-job"} | {node["node_config"]["IamInstanceProfile"]["Name"] for node in types}
    admitted = {arn.rpartition("/")[2] for arn in private["Condition"]["ArnNotEquals"]["aws:PrincipalArn"]}
    assert runners <= admitted
    assert not {"adgen-training", "adgen-consumer"} & admitted


def test_dockerfile_copies_what_exists_and_runs_without_root():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    sources = [source for words in lines if words[0] == "COPY" for source in words[1:-1]]
    assert sources
    assert [s for s in sources if not (ROOT / s).exists()] == []
    kept = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert set(sources) == kept
    assert [words[1] for words in lines if words[0] == "USER"] == ["ray"]
    assert lines[0][1].startswith("nvidia/cuda:")
    assert not re.search(r"^(ARG|ENV)\b.*(secret|token|key|password)", text, re.IGNORECASE | re.MULTILINE)


def test_ray_version_is_the_pinned_one():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for name in [*RAYJOBS, SERVICE]:
        assert cluster_of(rayjob_spec(name))["rayVersion"] == pins["ray"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_accepts_the_training_file(stage):
    config_class = pytest.importorskip("deepspeed.runtime.config").DeepSpeedConfig
    values = json.loads((CLUSTER / f"deepspeed/zero{stage}.json").read_text())
    config = config_class(values)
    assert config.zero_config.stage == stage
    assert config.train_batch_size == values["train_micro_batch_size_per_gpu"] * values["gradient_accumulation_steps"]
    with pytest.raises(ValueError, match="no_such_field"):
        config_class(values | {"zero_optimization": {"stage": stage, "no_such_field": 1}})


@pytest.mark.slow
def test_a_job_s_s3_settings_hold_in_all_processes_of_ray():
    """Readers of inputs take no S3Access; they find endpoint and region in the environment of their worker."""
    script = """if True:
        import os, ray
        from adgen.creatives.storage import S3Access
        from adgen.on_ray.cluster import connected
        from adgen.on_ray.cluster_settings import ClusterSettings

        def seen():
            from adgen.creatives.s3 import s3_client
            client = s3_client(S3Access())
            return client.meta.endpoint_url, client.meta.region_name

        with connected(ClusterSettings(), S3Access(endpoint_url="http://127.0.0.1:9", region="eu-west-3")):
            assert ray.get(ray.remote(num_cpus=0.1)(seen).remote()) == seen() == ("http://127.0.0.1:9", "eu-west-3")
        assert "AWS_ENDPOINT_URL_S3" not in os.environ
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
