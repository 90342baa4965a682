"""Microsoft's own client, azure-mgmt-compute, as the judge of the double and of our requests.

    azure_sdk.py models            bodies on stdin, walked through the client's models; what they do not know is told
    azure_sdk.py life ARGUMENTS    drives the double through a machine's life
    azure_sdk.py failures ARGUMENTS

ARGUMENTS: endpoint, file with the root certificate, subscription, resource group, tenant, client, secret. Answers in JSON.
"""

import json
import ssl
import sys
import time
import typing
import urllib.parse
import urllib.request
from enum import Enum

import azure.mgmt.compute.models as models
from azure.core import MatchConditions
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.compute._utils.model_base import Model

# Azure has more sizes than its client knows names of.
OPEN = ("vmSize",)


def is_model(kind):
    return isinstance(kind, type) and issubclass(kind, Model)


def walk(kind, value, path, seen, unknown):
    """Counts the keys of a JSON value that the model of this type knows, and collects the others."""
    origin = typing.get_origin(kind)
    if origin is typing.Union:
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        enums = [one for one in inner if isinstance(one, type) and issubclass(one, Enum)]
        if enums:
            if not path.endswith(OPEN) and value not in [member.value for one in enums for member in one]:
                unknown.append(f"{path} = {value!r}")
            return
        if value is None:
            return
        return walk(inner[0], value, path, seen, unknown)
    if origin is list:
        for i, item in enumerate(value):
            walk(typing.get_args(kind)[0], item, f"{path}[{i}]", seen, unknown)
    elif origin is dict:
        for item in value.values():
            walk(typing.get_args(kind)[1], item, path, seen, unknown)
    elif is_model(kind):
        kind({})  # which works out its fields
        fields = {field._rest_name: name for name, field in kind._attr_to_rest_field.items()}
        hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), {"_models": models})
        for key, item in value.items():
            if key not in fields:
                unknown.append(f"{path}.{key}")
                continue
            seen.append(f"{path}.{key}")
            walk(hints[fields[key]], item, f"{path}.{key}", seen, unknown)
    elif kind in (str, bool, int):
        if type(value) is not kind:
            unknown.append(f"{path} = {value!r}, not {kind.__name__}")


def judged(kind, value):
    seen, unknown = [], []
    walk(kind, value, kind.__name__, seen, unknown)
    return {"known": len(seen), "unknown": unknown}


class Tokens:
    def __init__(self, endpoint, root, tenant, client, secret):
        self.url = f"{endpoint}/{tenant}/oauth2/v2.0/token"
        self.context = ssl.create_default_context(cafile=root)
        self.form = {"client_id": client, "client_secret": secret, "grant_type": "client_credentials"}

    def get_token(self, *scopes, **_):
        form = urllib.parse.urlencode({**self.form, "scope": scopes[0]}).encode()
        with urllib.request.urlopen(self.url, form, context=self.context) as answer:
            said = json.load(answer)
        return AccessToken(said["access_token"], int(time.time()) + said["expires_in"])


def client(endpoint, root, subscription, tenant, application, secret):
    return ComputeManagementClient(
        Tokens(endpoint, root, tenant, application, secret),
        subscription,
        base_url=endpoint,
        credential_scopes=["https://management.azure.com/.default"],
        connection_verify=root,
        polling_interval=0.01,
        retry_total=0,
    )


def refusal(call, *args, **kwargs):
    try:
        poller = call(*args, **kwargs)
        poller.result()
    except HttpResponseError as error:
        return [error.status_code, error.error.code if error.error else None]
    return None


def life(compute, group, name, body, image):
    told = {}
    machines = compute.virtual_machines
    made = machines.begin_create_or_update(group, name, body, match_condition=MatchConditions.IfMissing, etag="*").result()
    told["made"] = [made.name, made.properties.provisioning_state, made.zones, made.tags]
    told["again"] = refusal(
        machines.begin_create_or_update, group, name, body, match_condition=MatchConditions.IfMissing, etag="*"
    )
    moved = refusal(machines.begin_create_or_update, group, name, {**body, "zones": ["2"]})
    told["moved"] = moved
    seen = machines.get(group, name, expand="instanceView")
    told["codes"] = [status.code for status in seen.properties.instance_view.statuses]
    told["judged"] = judged(models.VirtualMachine, seen.as_dict())
    told["listed"] = [machine.name for machine in machines.list(group)]
    disks = list(compute.disks.list_by_resource_group(group))
    told["disks"] = [[disk.properties.disk_state, disk.tags == body["tags"]] for disk in disks]
    told["cores"] = [usage.limit for usage in compute.usage.list(body["location"]) if usage.name.value == "cores"]
    sizes = list(compute.resource_skus.list(filter=f"location eq '{body['location']}'"))
    told["sizes"] = {
        size.name: {one.name: one.value for one in size.capabilities or []}
        for size in sizes
        if size.resource_type == "virtualMachines"
    }
    told["judged sizes"] = [judged(models.ResourceSku, size.as_dict())["unknown"] for size in sizes]
    publisher, offer, sku, version = image.split(":")
    market = compute.virtual_machine_images.get(body["location"], publisher, offer, sku, version)
    told["judged image"] = judged(models.VirtualMachineImage, market.as_dict())["unknown"]
    parts = body["properties"]["storageProfile"]["imageReference"]["id"].split("/")
    gallery = {"resource_group_name": parts[4], "gallery_name": parts[8], "gallery_image_name": parts[10]}
    there = compute.gallery_image_versions.get(**gallery, gallery_image_version_name=parts[12])
    told["judged version"] = judged(models.GalleryImageVersion, there.as_dict())["unknown"]
    image = compute.gallery_images.get(**gallery)
    told["judged definition"] = judged(models.GalleryImage, image.as_dict())["unknown"]
    console = machines.retrieve_boot_diagnostics_data(group, name)
    told["console"] = console.serial_console_log_blob_uri is not None
    machines.begin_delete(group, name, force_deletion=True).result()
    told["gone"] = refusal(lambda: machines.get(group, name))
    machines.begin_delete(group, name, force_deletion=True).result()
    return told


def failures(compute, group, name, body):
    machines = compute.virtual_machines
    told = {
        "refused": refusal(machines.begin_create_or_update, group, name, body),
        "later": refusal(machines.begin_create_or_update, group, name, body),
    }
    failed = machines.get(group, name, expand="instanceView")
    told["state"] = failed.properties.provisioning_state
    told["codes"] = [status.code for status in failed.properties.instance_view.statuses]
    misspelt = json.loads(json.dumps(body))
    misspelt["properties"]["hardwareProfil"] = misspelt["properties"].pop("hardwareProfile")
    told["misspelt"] = refusal(machines.begin_create_or_update, group, name + "x", misspelt)
    return told


def main():
    given = json.load(sys.stdin)
    if sys.argv[1] == "models":
        told = [judged(models.VirtualMachine, body) for body in given]
    else:
        endpoint, root, subscription, group, tenant, application, secret = sys.argv[2:9]
        compute = client(endpoint, root, subscription, tenant, application, secret)
        if sys.argv[1] == "life":
            told = life(compute, group, given["name"], given["body"], given["image"])
        else:
            told = failures(compute, group, given["name"], given["body"])
    json.dump(told, sys.stdout)


main()
