"""cluster.yaml through Ray's own launcher, against a stand-in of EC2 and IAM (moto): what would be started, and what is
open."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3 import SECRET, free_port, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    port = free_port()
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key pair there
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    with s3_server(port):
        yield


def documented_roles() -> dict[str, list[dict[str, Any]]]:
    """Make the roles by the shell lines of docs/cluster.md; return what each is allowed."""
    import boto3

    text = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    loop = re.search(r"for name in (.*?); do(.*?)\ndone\n(.*?)```", text, re.DOTALL)
    assert loop is not None
    lines = [line.replace("$name", name) for name in loop[1].split() for line in loop[2].strip().splitlines()]
    lines += loop[3].strip().splitlines()
    iam = boto3.client("iam")
    allowed: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        _, service, verb, *options = shlex.split(line)
        assert service == "iam"
        given = {
            "".join(part.title() for part in option.lstrip("-").split("-")): value
            for option, value in zip(options[::2], options[1::2], strict=True)
        }
        getattr(iam, verb.replace("-", "_"))(**given)
        if "PolicyDocument" in given:
            allowed.setdefault(given["RoleName"], []).extend(json.loads(given["PolicyDocument"])["Statement"])
    return allowed


@pytest.mark.usefixtures("cloud")
def test_rays_launcher_starts_what_the_file_names_and_opens_ssh_alone() -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    documented_roles()
    cluster = bootstrap_aws(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))
    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    for name, kind in cluster["available_node_types"].items():
        provider.create_node(kind["node_config"], {"ray-node-type": name}, 1)
    ec2 = boto3.client("ec2")
    started = [each for reservation in ec2.describe_instances()["Reservations"] for each in reservation["Instances"]]
    profiles = {each["InstanceType"]: each["IamInstanceProfile"]["Arn"].rpartition("/")[2] for each in started}
    assert profiles == {"m7i.large": "kdtrain-head", "g6.2xlarge": "kdtrain-worker"}
    assert {each["InstanceType"] for each in started if each.get("InstanceLifecycle") == "spot"} == {"g6.2xlarge"}
    assert {group["GroupName"] for each in started for group in each["SecurityGroups"]} == {"kdtrain"}
    group = next(each for each in ec2.describe_security_groups()["SecurityGroups"] if each["GroupName"] == "kdtrain")
    from_outside = [rule for rule in group["IpPermissions"] if not rule["UserIdGroupPairs"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
    inside = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert inside == [group["GroupId"]]


@pytest.mark.usefixtures("cloud")
def test_the_documented_roles_reach_one_bucket_and_the_head_may_pass_on_the_workers_alone() -> None:
    allowed = documented_roles()
    buckets = {
        resource for rows in allowed.values() for row in rows for resource in row["Resource"] if "s3" in resource
    }
    assert buckets == {"arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"}
    assert [row["Action"] for row in allowed["kdtrain-worker"]] == [
        ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    ]
    passed = [row["Resource"] for row in allowed["kdtrain-head"] if row["Action"] == "iam:PassRole"]
    assert passed == ["arn:aws:iam::*:role/kdtrain-worker"]
