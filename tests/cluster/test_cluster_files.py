"""The cluster files are what Ray takes, and keep what docs/cluster.md promises of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster.local.yaml")


def read(name: str) -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return cluster


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FILES)
def test_rays_own_validation_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    validate_config(prepared)
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepared | {"max_worker": 3})


@pytest.mark.parametrize("name", FILES)
def test_it_is_closed_to_the_outside_and_has_no_secret(name: str) -> None:
    cluster = read(name)
    for place in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, start = cluster[place]
        assert stop.endswith("ray stop")
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][1]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    text = (ROOT / name).read_text().lower()
    assert not any(word in text for word in ("aws_access_key", "aws_secret", "password"))


def test_the_cloud_begins_without_a_gpu() -> None:
    types = read("cluster.yaml")["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert "GPU" not in types["head"]["resources"]
