"""The fields of a RayJob as KubeRay publishes them: as much of the tree as our files use, and what lies beside it.

RayJob, RayCluster and groups: KubeRay's generated API reference (docs/reference/api.md of ray-project/kuberay, release
1.7.0, commit 97509c3a7216cf3440af381646560a1885afb53b), which Ray's documentation shows as "KubeRay CRD API reference".
Left out: fields that are newer than 1.6, and those of other features. Pods: Kubernetes API 1.28, PodTemplateSpec v1.
"""

from typing import Any

# A leaf is a type or a set of the allowed strings; `dict` is a map of names to strings; a list holds its items' fields.
_CONTAINER = {
    "name": str,
    "image": str,
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str, "optional": bool}}}],
    "envFrom": [{"prefix": str, "secretRef": {"name": str, "optional": bool}}],
    "ports": [{"containerPort": int, "name": str}],
    "resources": {"limits": dict, "requests": dict},
    "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
}
_POD = {
    "metadata": {"labels": dict, "annotations": dict},
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "imagePullSecrets": [{"name": str}],
        "nodeSelector": dict,
        "restartPolicy": {"Always", "OnFailure", "Never"},
        "securityContext": {"fsGroup": int, "runAsGroup": int, "runAsNonRoot": bool, "runAsUser": int},
        "serviceAccountName": str,
        "terminationGracePeriodSeconds": int,
        "tolerations": [
            {
                "key": str,
                "operator": {"Exists", "Equal"},
                "value": str,
                "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str, "readOnly": bool}, "emptyDir": dict}],
    },
}
_RAY_CLUSTER = {
    "authOptions": {"mode": {"disabled", "token"}, "secretName": str},
    "autoscalerOptions": {
        "resources": {"limits": dict, "requests": dict},
        "idleTimeoutSeconds": int,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "version": {"v1", "v2"},
        "env": _CONTAINER["env"],
    },
    "enableInTreeAutoscaling": bool,
    "headGroupSpec": {
        "template": _POD,
        "resources": dict,
        "labels": dict,
        "rayStartParams": dict,
        "serviceType": str,
        "enableIngress": bool,
    },
    "rayVersion": str,
    "suspend": bool,
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "idleTimeoutSeconds": int,
            "resources": dict,
            "labels": dict,
            "rayStartParams": dict,
            "template": _POD,
            "numOfHosts": int,
        }
    ],
}
POD: dict[str, Any] = {"apiVersion": {"v1"}, "kind": {"Pod"}, "metadata": {"name": str}, "spec": _POD["spec"]}
RAY_JOB: dict[str, Any] = {
    "apiVersion": {"ray.io/v1"},
    "kind": {"RayJob"},
    "metadata": {"name": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "clusterSelector": dict,
        "entrypoint": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "jobId": str,
        "metadata": dict,
        "rayClusterSpec": _RAY_CLUSTER,
        "runtimeEnvYAML": str,
        "shutdownAfterJobFinishes": bool,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "submitterConfig": {"backoffLimit": int},
        "submitterPodTemplate": _POD,
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}


def find_faults(value: Any, fields: Any, path: str = "") -> list[str]:
    """Every place where `value` has a field that is not published, or another type than that field has."""
    if fields is dict:
        strange = not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values())
        return [f"{path} is no map of strings: {value!r}"] if strange else []
    if isinstance(fields, dict):
        if not isinstance(value, dict):
            return [f"{path} is no object: {value!r}"]
        faults = [f"{path}.{name} is no field" for name in value if name not in fields]
        inner = (find_faults(value[name], fields[name], f"{path}.{name}") for name in value if name in fields)
        return faults + [fault for found in inner for fault in found]
    if isinstance(fields, list):
        if not isinstance(value, list):
            return [f"{path} is no list: {value!r}"]
        found = (find_faults(item, fields[0], f"{path}[{at}]") for at, item in enumerate(value))
        return [fault for faults in found for fault in faults]
    if isinstance(fields, set):
        return [] if value in fields else [f"{path} is {value!r}, allowed: {sorted(fields)}"]
    return [] if type(value) is fields else [f"{path} is {value!r}, not {fields.__name__}"]
