"""Starts a cluster of a head alone, whose real autoscaler adds a node when trials wait for one; runs a sweep on it.

`python grow.py SWEEP RESULTS`: the nodes that Ray's fake provider starts are real raylets of this host.
"""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
HEAD = {"CPU": 0, "slot": 64}
TYPES = {
    "ray.head.default": {"resources": HEAD, "node_config": {}, "min_workers": 0, "max_workers": 0},
    "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}
FAKE = ("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")
NOTHING = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip
ENVIRONMENT = {
    **os.environ,
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run(*words: str) -> None:
    print("$", *words, flush=True)
    subprocess.run([sys.executable, *words], env=ENVIRONMENT, cwd=ROOT, check=True)


def main(sweep: str, results: str) -> None:
    cluster = {
        "cluster_name": "growing",
        "provider": {"type": "fake_multinode", **dict.fromkeys(FAKE, True)},
        "available_node_types": TYPES,
        "head_node_type": "ray.head.default",
        "max_workers": 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in NOTHING},
    }
    file = Path("~/ray_bootstrap_config.yaml").expanduser()  # where `ray up` leaves it
    file.write_text(yaml.safe_dump(cluster))
    ray = ("-m", "ray.scripts.scripts")
    run(*ray, "get-auth-token", "--generate")
    run(
        *ray, "start", "--head", "--num-cpus=0", '--resources={"slot": 64}', "--object-store-memory=100000000",
        f"--autoscaling-config={file}",
    )  # fmt: skip
    run("-m", "kdtrain", "plan", sweep, "--address", "auto")
    run("-m", "kdtrain", "sweep", sweep, "--address", "auto", "--results", results)
    run(*ray, "status")
    run(*ray, "stop")


if __name__ == "__main__":
    main(*sys.argv[1:])
