"""Holds the Kubernetes manifests against the official schemas, unknown fields refused, for each of the versions.

usage: kubernetes_manifests.py VERSION[,VERSION...] FILE...

Prints a JSON list of the containers that the manifests would run.
"""

import json
import sys

import kubernetes_validate
import yaml

versions = sys.argv[1].split(",")
containers = []
for path in sys.argv[2:]:
    with open(path, encoding="utf-8") as file:
        documents = list(yaml.safe_load_all(file))
    assert documents, f"{path} is empty"
    for document in documents:
        for version in versions:
            kubernetes_validate.validate(document, version, strict=True)
        if document["kind"] != "Job":
            continue
        spec = document["spec"]
        pod = spec["template"]["spec"]
        mounts = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == mounts, "a volume of no use"
            containers.append(
                {
                    "job": document["metadata"]["name"],
                    "mode": spec.get("completionMode", "NonIndexed"),
                    "completions": spec.get("completions", 1),
                    "command": container["command"] + container["args"],
                    "env": {variable["name"]: variable["value"] for variable in container["env"]},
                }
            )
print(json.dumps(containers))
