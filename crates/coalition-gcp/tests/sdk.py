"""Google's own Python client against the double, with the same questions as coalition-gcp's.

Reads from standard input what to ask, asks, and writes what was answered. Anything that this client cannot read, or that
it would not write like that, ends it with an error. The double has written down what came over the wire.
"""

import json
import sys
import time

from google.api_core import exceptions
from google.cloud import compute_v1
from google.oauth2 import service_account
from google.protobuf import json_format

asked = json.load(sys.stdin)
PROJECT, ZONE, NAME = asked["project"], asked["zone"], asked["name"]
CREDENTIALS = service_account.Credentials.from_service_account_info(
    json.loads(asked["key"]), scopes=["https://www.googleapis.com/auth/compute"]
)
HOST = asked["endpoint"].removeprefix("http://")
MARKS = ("bridge", "offer", "instance", "coalition", "grant", "until")


def client(of):
    transport = of.get_transport_class("rest")(host=HOST, url_scheme="http", credentials=CREDENTIALS)
    return of(transport=transport)


def fails(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        return [one["reason"] for one in error.errors]
    raise AssertionError(f"{kind} was expected")


def wanted(marks):
    """The host of the same marks in this client's own types."""
    labels = {key: marks[key][:60] for key in ("coalition-bridge", "coalition-offer", "coalition-instance")}
    description = " ".join(f"{key}={marks[key]}" for key in labels)
    items = {
        "user-data": asked["user_data"],
        "block-project-ssh-keys": "TRUE",
        "enable-oslogin": "FALSE",
        "serial-port-enable": "FALSE",
        **{f"coalition-{key}": marks[f"coalition-{key}"] for key in MARKS},
    }
    return compute_v1.Instance(
        name=NAME,
        machine_type=f"zones/{ZONE}/machineTypes/n2d-standard-2",
        min_cpu_platform="AMD Milan",
        labels=labels,
        metadata=compute_v1.Metadata(
            items=[compute_v1.Items(key=key, value=value) for key, value in items.items()]
        ),
        disks=[
            compute_v1.AttachedDisk(
                boot=True,
                auto_delete=True,
                type_="PERSISTENT",
                initialize_params=compute_v1.AttachedDiskInitializeParams(
                    disk_name=NAME,
                    source_image=asked["image"],
                    disk_size_gb=20,
                    disk_type=f"zones/{ZONE}/diskTypes/pd-balanced",
                    labels=labels,
                    description=description,
                ),
            )
        ],
        network_interfaces=[
            compute_v1.NetworkInterface(
                subnetwork=asked["subnetwork"],
                access_configs=[compute_v1.AccessConfig(type_="ONE_TO_ONE_NAT", name="External NAT")],
            )
        ],
        tags=compute_v1.Tags(items=["coalition"]),
        scheduling=compute_v1.Scheduling(
            on_host_maintenance="TERMINATE",
            automatic_restart=False,
            provisioning_model="STANDARD",
            max_run_duration=compute_v1.Duration(seconds=900),
            instance_termination_action="DELETE",
        ),
        shielded_instance_config=compute_v1.ShieldedInstanceConfig(
            enable_secure_boot=False, enable_vtpm=True, enable_integrity_monitoring=True
        ),
        confidential_instance_config=compute_v1.ConfidentialInstanceConfig(confidential_instance_type="SEV_SNP"),
    )


def done(operations, operation):
    """Waits for an operation, by its name."""
    until = time.monotonic() + 20
    while operation.status != compute_v1.Operation.Status.DONE:
        assert time.monotonic() < until, "the operation does not end"
        operation = operations.get(project=PROJECT, zone=ZONE, operation=operation.name)
    return operation


def paged(lister, of):
    request = of(project=PROJECT, filter=asked["filter"], max_results=200)
    return [scope for _, scope in lister.aggregated_list(request=request)]


def main():
    # What coalition-gcp sent has no field that this client does not know, and nothing of it is lost in this client's types.
    theirs = compute_v1.Instance.from_json(asked["body"], ignore_unknown_fields=False)
    try:
        compute_v1.Instance.from_json(asked["body"].replace("maxRunDuration", "maxRunDurations"))
        raise AssertionError("a field that does not exist is not noticed")
    except json_format.ParseError:
        pass
    own = wanted(asked["marks"])
    assert theirs == own, f"{theirs}\n--- is not ---\n{own}"

    instances, operations = client(compute_v1.InstancesClient), client(compute_v1.ZoneOperationsClient)
    disks, images = client(compute_v1.DisksClient), client(compute_v1.ImagesClient)
    at = {"project": PROJECT, "zone": ZONE}
    insert = compute_v1.InsertInstanceRequest(**at, instance_resource=own, request_id=asked["request_id"])
    first = instances.insert_unary(request=insert)
    assert instances.insert_unary(request=insert).name == first.name, "one id, one operation"
    assert not done(operations, first).error.errors
    one = instances.get(**at, instance=NAME)
    assert one.status == "RUNNING" and one.network_interfaces[0].access_configs[0].nat_i_p.startswith("127."), one
    assert one.scheduling.max_run_duration.seconds == 900
    listed = [found for scope in paged(instances, compute_v1.AggregatedListInstancesRequest) for found in scope.instances]
    assert [found.name for found in listed] == [NAME], listed
    console = instances.get_serial_port_output(
        request=compute_v1.GetSerialPortOutputInstanceRequest(**at, instance=NAME, port=1)
    )
    region = client(compute_v1.RegionsClient).get(project=PROJECT, region=asked["region"])
    size = client(compute_v1.MachineTypesClient).get(**at, machine_type="n2d-standard-2")
    image = images.get(project="double-images", image="host-v1")
    family = images.get_from_family(project="double-images", family="host")

    again = compute_v1.InsertInstanceRequest(**at, instance_resource=own, request_id=asked["other_request_id"])
    reasons = {
        "missing": fails(exceptions.NotFound, instances.get, **at, instance="c-missing"),
        "exists": fails(exceptions.Conflict, instances.insert_unary, request=again),
        "zone": fails(exceptions.BadRequest, instances.insert_unary, project=PROJECT, zone="mars-a", instance_resource=own),
        "busy": fails(exceptions.BadRequest, disks.delete_unary, **at, disk=NAME),
    }
    assert not done(operations, instances.delete_unary(**at, instance=NAME)).error.errors
    target = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances/{NAME}"
    about = compute_v1.ListZoneOperationsRequest(**at, filter=f'targetLink = "{target}"', max_results=10)
    verbs = {operation.operation_type for operation in operations.list(request=about)}
    assert verbs == {"insert", "delete"}, verbs
    left = [disk for scope in paged(disks, compute_v1.AggregatedListDisksRequest) for disk in scope.disks]
    assert [disk.name for disk in left] == [NAME] and not left[0].users, left
    assert left[0].description.startswith("coalition-bridge=")
    assert not done(operations, disks.delete_unary(**at, disk=NAME)).error.errors
    # One that the double is told to fail.
    spare = compute_v1.InsertInstanceRequest(**at, instance_resource=own, request_id=asked["other_request_id"])
    failed = done(operations, instances.insert_unary(request=spare))
    json.dump(
        {
            "console": console.contents,
            "quota": {quota.metric: quota.limit for quota in region.quotas},
            "size": [size.guest_cpus, size.memory_mb],
            "image": [image.status, image.disk_size_gb, family.name],
            "features": sorted(feature.type_ for feature in image.guest_os_features),
            "reasons": reasons,
            "failed": [failed.error.errors[0].code, failed.http_error_status_code],
        },
        sys.stdout,
    )


main()
