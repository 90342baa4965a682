"""Prints, as JSON, the parameters AWS's own Python client sends for the inputs of tests/ec2.rs. Contacts nobody."""
import base64
import json
import sys
from datetime import datetime, timezone
from urllib.parse import parse_qsl

import boto3
from botocore.config import Config

TAGS = [{"Key": "coalition:bridge", "Value": "b 1"}, {"Key": "Name", "Value": "ü&="}]
FILTERS = [{"Name": "tag:coalition:bridge", "Values": ["b 1"]}]
INSTANCE = "i-0123456789abcdef0"


class Stop(Exception):
    """Ends a call before anything is sent."""


def main() -> None:
    sent = {}

    def keep(request, event_name, **_):
        body = request.body.decode() if isinstance(request.body, bytes) else request.body
        name = event_name.rsplit(".", 1)[-1]
        sent[name] = json.loads(body) if body.startswith("{") else dict(parse_qsl(body, keep_blank_values=True))
        raise Stop

    def client(service):
        made = boto3.client(
            service, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="y",
            endpoint_url="http://127.0.0.1:9", config=Config(retries={"total_max_attempts": 1}),
        )
        made.meta.events.register("before-send", keep)
        return made

    def call(function, **inputs):
        try:
            function(**inputs)
        except Stop:
            pass

    ec2 = client("ec2")
    call(
        ec2.run_instances,
        ImageId="ami-04681a1dbd79675a5", InstanceType="m6a.large", MinCount=1, MaxCount=1, ClientToken="t-0",
        InstanceInitiatedShutdownBehavior="terminate", UserData=b"#cloud-config\n{}",
        MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        NetworkInterfaces=[{
            "DeviceIndex": 0, "SubnetId": "subnet-1", "Groups": ["sg-1", "sg-2"],
            "AssociatePublicIpAddress": True, "DeleteOnTermination": True,
        }],
        BlockDeviceMappings=[{
            "DeviceName": "/dev/xvda",
            "Ebs": {"DeleteOnTermination": True, "Encrypted": True, "VolumeSize": 20, "VolumeType": "gp3"},
        }],
        CpuOptions={"AmdSevSnp": "enabled"},
        TagSpecifications=[
            {"ResourceType": kind, "Tags": TAGS} for kind in ("instance", "volume", "network-interface")
        ],
        DryRun=True,
    )
    call(ec2.describe_instances, Filters=FILTERS, MaxResults=200)
    call(ec2.terminate_instances, InstanceIds=[INSTANCE])
    call(
        ec2.describe_volumes,
        Filters=[*FILTERS, {"Name": "status", "Values": ["available"]}], MaxResults=500,
    )
    call(ec2.delete_volume, VolumeId="vol-0123456789abcdef0")
    call(ec2.get_console_output, InstanceId=INSTANCE)
    call(ec2.describe_instance_types, InstanceTypes=["m6a.large", "t3.micro"])
    call(ec2.describe_images, ImageIds=["ami-04681a1dbd79675a5"])
    call(client("sts").get_caller_identity)
    call(client("service-quotas").get_service_quota, ServiceCode="ec2", QuotaCode="L-1216C47A")
    queries = [
        {
            "Id": name,
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/EC2", "MetricName": metric,
                    "Dimensions": [{"Name": "InstanceId", "Value": INSTANCE}],
                },
                "Period": 300, "Stat": statistic,
            },
        }
        for name, metric, statistic in (
            ("cpu", "CPUUtilization", "Average"), ("received", "NetworkIn", "Sum"), ("sent", "NetworkOut", "Sum"),
        )
    ]
    hour = [datetime(2026, 1, 1, hour, tzinfo=timezone.utc) for hour in (0, 1)]
    call(
        client("cloudwatch").get_metric_data,
        MetricDataQueries=queries, StartTime=hour[0], EndTime=hour[1], ScanBy="TimestampAscending",
    )
    # boto3 encodes user data by itself; say so if that ever changes.
    assert base64.b64decode(sent["RunInstances"]["UserData"]) == b"#cloud-config\n{}"
    json.dump(sent, sys.stdout)


main()
