"""Every manifest in clusters/ against the schemas of what reads it, and the fields that safety rests on."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tokendial.resolve import resolve
from tokendial.train.room import GROWS_TO

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "schemas" / "kuberay"))
KUBERNETES = "1.34"
MANIFESTS = {
    path.relative_to(CLUSTERS).as_posix(): path
    for folder in ("kuberay", "mlflow", "network")
    for path in sorted((CLUSTERS / folder).glob("*.yaml"))
}
DOCUMENTS: Mapping[str, dict[str, Any]] = {name: yaml.safe_load(path.read_text()) for name, path in MANIFESTS.items()}
RAY = {name: document for name, document in DOCUMENTS.items() if document["apiVersion"].startswith("ray.io/")}
OPERATORS = ("monitoring.coreos.com/",)
CORE = {
    name: document
    for name, document in DOCUMENTS.items()
    if name not in RAY and not document["apiVersion"].startswith(OPERATORS)
}


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec below a node of a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


PODS = [(name, pod) for name, document in DOCUMENTS.items() for pod in pods(document)]
CONTAINERS = [(f"{name} {container['name']}", container) for name, pod in PODS for container in pod["containers"]]
every_pod = pytest.mark.parametrize("pod", [pod for _, pod in PODS], ids=[name for name, _ in PODS])
every_container = pytest.mark.parametrize(
    "container", [container for _, container in CONTAINERS], ids=[name for name, _ in CONTAINERS]
)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_file_holds_one_resource_and_says_what_it_is_for(name: str) -> None:
    text = MANIFESTS[name].read_text()
    assert text.startswith("# ")
    assert len(list(yaml.safe_load_all(text))) == 1
    document = DOCUMENTS[name]
    assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "tokendial"


@pytest.mark.parametrize("name", CORE)
def test_core_kinds_are_what_kubernetes_takes(name: str) -> None:
    kubernetes_validate.validate(CORE[name], KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY)
def test_ray_kinds_are_what_kuberay_takes(name: str) -> None:
    document = RAY[name]
    path = CRDS / f"ray.io_{document['kind'].lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's definitions are not at {CRDS}; set KUBERAY_CRDS to a folder that holds a release's")
    # The definitions are a megabyte each, which the loader in C reads ten times as fast.
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    # Checking a megabyte of schema against its own schema would take longer than everything else here.
    error = next(jsonschema.Draft202012Validator(closed(schema)).iter_errors(document), None)
    assert error is None, error and f"{error.json_path}: {error.message}"


def closed(schema: Any) -> Any:
    """A schema that refuses unknown fields, which Kubernetes would drop in silence."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault(
            "additionalProperties", schema.get("type") == "object" and "metadata" in schema.get("title", "")
        )
    return found


def test_a_misspelt_field_of_a_ray_kind_is_refused() -> None:
    schema = closed({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {}}}}})
    jsonschema.validate({"spec": {"a": 1}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="'b' was unexpected"):
        jsonschema.validate({"spec": {"b": 1}}, schema)


@every_pod
def test_pods_run_as_an_ordinary_user_with_the_default_seccomp_profile(pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@every_container
def test_containers_have_limits_drop_privileges_and_name_a_release_of_their_image(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys()
    assert {"cpu", "memory"} <= resources["limits"].keys()
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    _, colon, tag = container["image"].rpartition(":")
    assert colon
    assert tag != "latest"


@every_container
def test_secrets_come_by_reference_only(container: dict[str, Any]) -> None:
    for variable in container.get("env", []):
        own = variable["name"].removeprefix("TOKENDIAL_")
        if any(word in own for word in ("PASSWORD", "TOKEN", "SECRET", "ACCESS_KEY")):
            assert "value" not in variable
            assert variable["valueFrom"]["secretKeyRef"]


def test_no_manifest_holds_a_secret() -> None:
    assert [name for name, document in DOCUMENTS.items() if document["kind"] == "Secret"] == []
    settings = DOCUMENTS["kuberay/environment.yaml"]["data"]
    assert not any(name.endswith(("PASSWORD", "_TOKEN", "SECRET", "_KEY")) for name in settings)


def test_pods_have_the_environment_of_an_endpoint_s_own_cluster() -> None:
    from tokendial.serve.application import CLUSTER_ENVIRONMENT

    settings = DOCUMENTS["kuberay/environment.yaml"]["data"]
    assert settings == settings | CLUSTER_ENVIRONMENT


def test_own_servers_are_probed_and_ray_leaves_that_to_kuberay() -> None:
    for name in ("mlflow/deployment.yaml", "mlflow/postgres.yaml"):
        for pod in pods(DOCUMENTS[name]):
            assert all({"readinessProbe", "livenessProbe"} <= container.keys() for container in pod["containers"])


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("name", RAY)
def test_ray_clusters_ask_for_a_token_and_keep_work_off_the_head(name: str) -> None:
    spec = cluster_spec(RAY[name])
    assert spec["authOptions"] == {"mode": "token", "secretName": "tokendial-ray-token"}
    assert spec["rayVersion"] == pinned("ray")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    standing = RAY[name]["kind"] in ("RayCluster", "RayService")
    assert (spec.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb") is standing


def pinned(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def test_each_head_has_a_service_of_its_own_and_the_guide_forwards_the_research_clusters() -> None:
    """KubeRay calls a head's service NAME-head-svc, after a RayCluster and a RayService alike."""
    names = [document["metadata"]["name"] for document in RAY.values()]
    assert len(set(names)) == len(names)
    guide = (ROOT / "docs" / "operating.md").read_text("utf-8")
    research = RAY["kuberay/cluster.yaml"]["metadata"]["name"]
    assert set(re.findall(r"svc/(\S+)-head-svc", guide)) == {research}


@pytest.mark.parametrize("name", [name for name, document in RAY.items() if document["kind"] == "RayJob"])
def test_jobs_are_queued_continued_and_cleared_away(name: str) -> None:
    document = RAY[name]
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    spec = document["spec"]
    assert spec["backoffLimit"] > 0
    assert "--name" in shlex.split(spec["entrypoint"])
    assert spec["shutdownAfterJobFinishes"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]


@pytest.mark.parametrize("name", RAY)
def test_what_kueue_admits_does_not_change_its_size(name: str) -> None:
    """Kueue's webhook refuses in-tree autoscaling, elastic jobs behind a feature gate excepted."""
    labels, spec = RAY[name]["metadata"].get("labels", {}), cluster_spec(RAY[name])
    if "kueue.x-k8s.io/queue-name" in labels:
        assert not spec.get("enableInTreeAutoscaling")
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_training_jobs_command_is_one_that_this_tokendial_takes() -> None:
    words = shlex.split(RAY["kuberay/job-train.yaml"]["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "tokendial", "train"]
    experiment, *rest = words[4:]
    config = resolve(experiment, rest[: rest.index("--name")], machine_cpus=None)
    spec = cluster_spec(RAY["kuberay/job-train.yaml"])
    assert config.workers == sum(group["replicas"] for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize("name", ["kuberay/job-train.yaml", "kuberay/job-search.yaml"])
def test_jobs_on_gpus_wait_for_them(name: str) -> None:
    assert "device=gpu" in shlex.split(RAY[name]["spec"]["entrypoint"])
    for group in cluster_spec(RAY[name])["workerGroupSpecs"]:
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_clusters_that_grow_tell_drivers_how_far() -> None:
    groups = cluster_spec(RAY["kuberay/cluster.yaml"])["workerGroupSpecs"]
    limits = [(g["maxReplicas"], g["template"]["spec"]["containers"][0]["resources"]["limits"]) for g in groups]
    cpus, gpus = (sum(most * int(own.get(kind, 0)) for most, own in limits) for kind in ("cpu", "nvidia.com/gpu"))
    head = cluster_spec(RAY["kuberay/cluster.yaml"])["headGroupSpec"]["template"]["spec"]["containers"][0]
    told = {variable["name"]: variable.get("value") for variable in head["env"]}
    assert told[GROWS_TO] == f"CPU={cpus},GPU={gpus}"

    config = yaml.safe_load((CLUSTERS / "aws" / "gpu.yaml").read_text())
    node = config["available_node_types"]["gpu"]
    cpus, gpus = (node["max_workers"] * node["resources"][kind] for kind in ("CPU", "GPU"))
    assert f"--env={GROWS_TO}=CPU={cpus},GPU={gpus}" in config["docker"]["head_run_options"]


def test_policies_close_the_namespace_and_open_it_pair_by_pair() -> None:
    policies = {name: doc["spec"] for name, doc in DOCUMENTS.items() if doc["kind"] == "NetworkPolicy"}
    assert policies["network/default.yaml"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule["from"], name
            own = any("podSelector" in source for source in rule["from"]) and name == "network/ray.yaml"
            assert own or rule["ports"], name


@pytest.mark.parametrize("name", [name for name, document in RAY.items() if document["kind"] == "RayJob"])
def test_a_jobs_submitter_reaches_the_head(name: str) -> None:
    """KubeRay adds no label of its own to the submitter's pod."""
    labels = RAY[name]["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    rules = DOCUMENTS["network/ray.yaml"]["spec"]["ingress"]
    passed = [rule["ports"] for rule in rules for source in rule["from"] if selects(source, labels)]
    assert passed == [[{"port": 8265}]]


def selects(source: dict[str, Any], labels: dict[str, str]) -> bool:
    return "podSelector" in source and source["podSelector"]["matchLabels"].items() <= labels.items()


def test_runtime_environments_are_what_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    plain = yaml.safe_load((CLUSTERS / "runtime-env.yaml").read_text())
    assert plain["env_vars"]["PYTHONPATH"] == "platform:workloads:kernels"
    # A job's own variables win over those of the pods, which know how long they take to start.
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S" not in plain["env_vars"]
    assert DOCUMENTS["kuberay/environment.yaml"]["data"]["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "900"
    RuntimeEnv(**plain)
    for name, document in RAY.items():
        if document["kind"] == "RayJob":
            assert RuntimeEnv(**yaml.safe_load(document["spec"]["runtimeEnvYAML"])), name


def test_the_gpu_cluster_is_what_rays_launcher_takes() -> None:
    import json

    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((CLUSTERS / "aws" / "gpu.yaml").read_text())
    jsonschema.validate(config, schema)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in starts[1]
    assert config["provider"]["cache_stopped_nodes"] is False
    # Whoever gives workers a profile needs a right that Ray's default profile of a head lacks.
    assert all("IamInstanceProfile" in node["node_config"] for node in config["available_node_types"].values())


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_containers_of_the_launcher_get_each_option_once_and_the_head_no_gpu(kind: str) -> None:
    """Ray's DockerCommandRunner adds `head_run_options` or `worker_run_options` to `run_options`."""
    docker = yaml.safe_load((CLUSTERS / "aws" / "gpu.yaml").read_text())["docker"]
    options = docker["run_options"] + docker[f"{kind}_run_options"]
    targets = [option.rpartition(":")[2] if option.startswith("--volume") else option for option in options]
    names = [option.rpartition("=")[0] for option in options]
    assert len(set(targets)) == len(targets)
    assert names.count("--shm-size") == 1
    assert ("--gpus" in names) is (kind == "worker")


def test_images_are_pinned_and_run_as_an_ordinary_user() -> None:
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM ")]
    assert {stage[-1] for stage in stages} == {"base", "cpu", "cuda", "mlflow"}
    assert all(":" in stage[1] and ":latest" not in stage[1] for stage in stages if stage[1] != "base")
    installs = [line for line in lines if "pip install" in line]
    assert all("-c constraints.txt" in line for line in installs)
    user = next(number for number, line in enumerate(lines) if line.startswith("USER 1000"))
    assert user < next(number for number, line in enumerate(lines) if "pip install" in line)
    assert not any(line.startswith(("USER root", "USER 0")) for line in lines)
    torch = next(line for line in installs if "torch==" in line)
    assert f"torch=={pinned('torch')}" in torch
    assert "--no-deps" in torch, "its index has no releases of what constraints.txt pins"


def test_the_image_of_the_launchers_head_has_what_rays_autoscaler_imports() -> None:
    image = yaml.safe_load((CLUSTERS / "aws" / "gpu.yaml").read_text())["docker"]["head_image"]
    _, _, rest = (CLUSTERS / "Dockerfile").read_text().partition(f"AS {image.rpartition('-')[2]}\n")
    pins = (CLUSTERS / "mlflow" / "requirements.txt").read_text().splitlines()
    assert next(pin for pin in pins if pin.startswith("boto3==")) in rest.partition("\nFROM ")[0].split()


def test_copied_files_exist_and_are_let_into_the_build() -> None:
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[2:-1]]
    allowed = (CLUSTERS / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((ROOT / word).exists() for word in copied)
    assert all(f"!{word}" in allowed for word in copied)


def test_the_services_configuration_is_what_serve_and_the_endpoint_take(ray_cluster: str) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.schema import ServeDeploySchema
    from tokendial.serve import declared
    from tokendial.serve.options import serve_settings

    config = ServeDeploySchema.model_validate(yaml.safe_load(RAY["kuberay/service.yaml"]["spec"]["serveConfigV2"]))
    application = config.applications[0]
    module, _, name = application.import_path.partition(":")
    assert module == declared.__name__
    built = call_user_app_builder_with_args_if_necessary(getattr(declared, name), application.args)
    assert built._bound_deployment.init_args == (declared.Declared.model_validate(application.args),)
    settings = serve_settings(application.args["settings"])
    assert settings.replicas.most > settings.replicas.least > 1
    ingress = DOCUMENTS["kuberay/ingress.yaml"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert ingress["name"] == RAY["kuberay/service.yaml"]["spec"]["serveService"]["metadata"]["name"]
    assert ingress["port"]["number"] == config.http_options.port


def test_the_ingress_passes_on_whatever_body_the_endpoint_takes() -> None:
    """A body over the endpoint's cap must reach it, which says why it is refused."""
    from tokendial.serve.options import serve_settings

    annotations = DOCUMENTS["kuberay/ingress.yaml"]["metadata"]["annotations"]
    passed_mib = int(annotations["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m"))
    args = yaml.safe_load(RAY["kuberay/service.yaml"]["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert passed_mib > serve_settings(args["settings"]).max_body_mib


def test_the_disruption_budget_covers_the_pods_that_serve() -> None:
    spec = DOCUMENTS["kuberay/disruption-budget.yaml"]["spec"]
    wanted = spec["selector"]["matchLabels"]
    serving = cluster_spec(RAY["kuberay/service.yaml"])
    for group in serving["workerGroupSpecs"]:
        assert wanted.items() <= group["template"]["metadata"]["labels"].items()
        assert 0 < spec["minAvailable"] < group["minReplicas"]
    assert not wanted.items() <= serving["headGroupSpec"]["template"]["metadata"]["labels"].items()


def test_budgets_count_pods_as_kubernetes_can_those_of_a_kind_without_a_scale() -> None:
    """Else it allows no eviction at all; for other owners than its own kinds it asks for the scale subresource."""
    for document in DOCUMENTS.values():
        if document["kind"] == "PodDisruptionBudget":
            assert isinstance(document["spec"].get("minAvailable"), int)
