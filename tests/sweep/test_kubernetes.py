"""The files for KubeRay: valid for the operator, and resumed after a lost head."""

from __future__ import annotations

import re

from cluster_files import (
    cluster_of,
    package_parts,
    text_of,
)

# KubeRay's fields that the manifest uses, as in its API reference.
RAYJOB = {
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "submissionMode",
    "entrypoint",
    "rayClusterSpec",
}

RAYCLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}

HEAD_GROUP = {"serviceType", "rayStartParams", "template"}

WORKER_GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
}


def test_rayjob_goes_on_after_a_lost_head():
    manifest = cluster_of("kuberay-rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", manifest["metadata"]["name"])
    job = manifest["spec"]
    assert set(job) == RAYJOB
    assert job["backoffLimit"] >= 1
    assert job["shutdownAfterJobFinishes"] is True
    cluster = job["rayClusterSpec"]
    assert set(cluster) == RAYCLUSTER
    assert cluster["authOptions"] == {"mode": "token"}


def test_rayjob_pods_have_what_they_need():
    cluster = cluster_of("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert (set(head), set(worker)) == (HEAD_GROUP, WORKER_GROUP)
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group, name in ((head, "ray-head"), (worker, "ray-worker")):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == name
        assert container["image"] == "EDIT_IMAGE"
        environment = {given["name"]: given["value"] for given in container["env"]}
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert environment["DISTSYNTH_STORAGE"] == "s3://EDIT_BUCKET"
        assert container["envFrom"] == [{"secretRef": {"name": "distsynth-storage"}}]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
    (container,) = worker["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_image_holds_the_package_where_the_entrypoint_looks():
    dockerfile = text_of("Dockerfile")
    copied = [line.split()[2:-1] for line in dockerfile.splitlines() if line.startswith("COPY")]
    assert {part for parts in copied for part in parts} == {*package_parts(), "jobs"}
    (folder,) = re.findall(r"WORKDIR (\S+)", dockerfile)
    entrypoint = cluster_of("kuberay-rayjob.yaml")["spec"]["entrypoint"]
    assert entrypoint.startswith(f"python {folder}/jobs/tune_gan.py ")
