"""A cluster that begins without a worker: it is planned as it may grow, and grows when trials wait."""

import subprocess
from pathlib import Path

import pytest
from hosts import Host, lacking, machines
from test_local_cluster import SWEEP

pytestmark = pytest.mark.cluster
GROW = Path(__file__).with_name("grow.py")


def test_a_cluster_without_a_worker_grows_when_trials_wait(capfd: pytest.CaptureFixture[str]) -> None:
    reason = lacking()
    if reason is not None:
        pytest.skip(reason)
    with machines(1) as (base, (host,)):
        sweep = base / "growing.yaml"
        sweep.write_text(SWEEP.replace("WORKERS", "1").replace("EPOCHS", "2").replace("TRIALS", "2"))
        said = over_ssh(base, host, f"~/venv/bin/python {GROW} {sweep} {base}/results")
        print(said)
        assert "trials: 0 at once on the 1 nodes that are there, 2 on the 2 that there may be" in said
        assert f"growing: {base}/results/growing/report.md" in said
        assert " 1 worker\n" in said.rpartition("Node status")[2], "a node has come"
        assert (base / "results" / "growing" / "report.md").exists()


def over_ssh(base: Path, host: Host, command: str) -> str:
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    words = ["ssh", *(word for option in options for word in ("-o", option)), "-i", str(base / "key")]
    done = subprocess.run(
        [*words, f"root@{host.address}", command], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
