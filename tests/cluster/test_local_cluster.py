"""`ray up cluster.local.yaml` on three hosts, a sweep from the laptop, a host that is killed during it, `ray down`.

The hosts are network namespaces of this machine (hosts.py); ssh, Ray, the sweep and the kill are real. `-s` shows the
log.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import NETWORK, Host, lacking, machines
from PIL import Image
from s3 import SECRET, s3_server

from kdtrain.storage.folder import LocalFolder
from kdtrain.storage.mirror import MirrorFolder
from kdtrain.storage.remote import RemoteFiles
from kdtrain.trials.store import Store

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
LAPTOP = "laptop"
NAME = f"kdtrain-test-{os.getpid()}"
SMALL = "--num-cpus={cpus} --object-store-memory=100000000"
SWEEP = """
recipe:
  data: {name: digits, resolution: 16}
  teacher: {model: lenet5_teacher, epochs: 3, optimizer: {name: adam, lr: 0.003}}
  student: {model: lenet5_student}
  method: {name: kd, balance: {alpha_ce: {uniform: [0, 1]}}, temperature: {loguniform: [1, 20]}}
  optimizer: {name: adam, lr: {loguniform: [0.0003, 0.03]}}
  lr_schedule: {name: constant}
  batch_size: 16
  epochs: EPOCHS
study:
  trials: TRIALS
  sampler: {name: tpe, startup_trials: 3}
  select: {candidates: 2}
  confirm: {seeds: 2}
  batch: 4
resources: {workers: WORKERS}
"""
QUICK = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Laptop:
    """The user's machine: a copy of the project, a home, the cluster file, a clock."""

    def __init__(self, base: Path, hosts: list[Host], s3: str) -> None:
        self.base, self.hosts, self.s3 = base, hosts, s3
        self.home, self.project = base / LAPTOP, base / LAPTOP / "kdtrain"
        self.started = time.monotonic()
        self.project.parent.mkdir()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.project)], check=True)
        changed = ["--exclude=.git", "--filter=:- .gitignore", f"{ROOT}/", f"{self.project}/"]
        subprocess.run(["rsync", "-a", *changed], check=True)
        # the bridge reaches no package index: install the versions of this machine
        there = sorted({f"{package.name}=={package.version}" for package in metadata.distributions()})
        (self.project / "constraints.txt").write_text("\n".join(there) + "\n")
        self.environment = {**os.environ, **QUICK, "HOME": str(self.home), "PYTHONPATH": str(self.project)}
        self.file = self.project / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(self._cluster(), sort_keys=False))

    def _cluster(self) -> dict[str, Any]:
        """cluster.local.yaml with these hosts' addresses and key, and Rays small enough for three on one machine."""
        cluster: dict[str, Any] = yaml.safe_load((ROOT / "cluster.local.yaml").read_text())
        head, *workers = self.hosts
        cluster["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
        cluster["cluster_name"] = NAME
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.base / "key")}
        cluster["file_mounts"]["~/.ray/auth_token"] = f"{self.home}/.ray/auth_token"
        # what an instance's role is in the cloud
        quick = " ".join(f"{name}={value}" for name, value in {**QUICK, **SECRET}.items())
        for place, cpus in (("head_start_ray_commands", 0), ("worker_start_ray_commands", 2)):
            stop, start = cluster[place]
            cluster[place] = [stop, f"{quick} {start} {SMALL.format(cpus=cpus)}"]
        return cluster

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def run(self, *words: str, quietly: bool = False) -> str:
        if not quietly:
            self.say("$ " + " ".join([Path(words[0]).name, *words[1:]]))
        done = subprocess.run(
            words, cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def ray(self, *words: str, quietly: bool = False) -> str:
        return self.run(str(Path(sys.executable).with_name("ray")), *words, quietly=quietly)

    def await_nodes(self, count: int, seconds: float) -> None:
        """Wait until `ray status` lists this many nodes, and print its output."""
        command = ". ~/venv/bin/activate && RAY_AUTH_MODE=token ray status"
        text = ""

        def there() -> bool:
            nonlocal text
            text = self.ray("exec", str(self.file), command, quietly=True)
            return alive(text) == count

        wait_for(there, f"{count} nodes", seconds)
        self.say("$ ray status\n" + text[text.find("Node status") :])

    def submit(self, sweep: Path, results: str, *options: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "kdtrain.cluster", "cluster.yaml", str(sweep.relative_to(self.project))]
        self.say("$ python -m kdtrain.cluster " + " ".join(words[3:]) + f" --results {results}")
        process = subprocess.Popen(
            [*words, "--results", results, *options],
            cwd=self.project, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.said: list[str] = []
        threading.Thread(target=self._listen, args=(process, self.said), daemon=True).start()
        return process

    def _listen(self, process: "subprocess.Popen[str]", said: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said.append(line)
                self.say("  " + line.rstrip())


@pytest.fixture
def laptop() -> Iterator[Laptop]:
    reason = lacking()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        base, hosts = stack.enter_context(machines())
        (base / "shared").mkdir()
        server = stack.enter_context(s3_server(9000, f"{NETWORK}.1"))
        laptop = Laptop(base, hosts, server)
        laptop.ray("get-auth-token", "--generate")
        laptop.ray("up", "-y", "cluster.yaml")
        yield laptop
        laptop.ray("down", "-y", "cluster.yaml")
        for machine in hosts[:1]:
            left = subprocess.run(
                ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", str(base / "key"),
                 f"root@{machine.address}", "pgrep -c raylet || true"], capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert left.stdout.strip() == "0", "ray down left a raylet"
        for kept in Path("/tmp/ray").glob(f"cluster-{NAME}.*"):  # what the local provider remembers of a cluster
            kept.unlink()


def alive(status: str) -> int:
    """Of the lines ` 2 local.cluster.node` below Active and Idle."""
    there = status.partition("Active:")[2].partition("Pending:")[0]
    return sum(int(count) for count in re.findall(r"^ (\d+) \S+$", there, re.MULTILINE))


def wait_for(condition: Any, what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.3)


def busy_hosts(laptop: Laptop) -> list[Host]:
    """The workers' hosts on which something trains."""
    busy = []
    for host in laptop.hosts[1:]:
        words = ["ip", "netns", "pids", host.name]
        pids = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        titles = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if Path(f"/proc/{pid}").exists()]
        if any(b"ImplicitFunc.train" in title or b"RayTrainWorker" in title for title in titles):
            busy.append(host)
    return busy


def small_sweep(laptop: Laptop, name: str, workers: int = 1, epochs: int = 2, trials: int = 2) -> Path:
    file = laptop.project / f"{name}.yaml"
    for word, number in (("WORKERS", workers), ("EPOCHS", epochs), ("TRIALS", trials)):
        text = file.read_text() if file.exists() else SWEEP
        file.write_text(text.replace(word, str(number)))
    return file


def test_what_a_node_lacks_is_said_with_its_name_before_anything_is_trained(laptop: Laptop) -> None:
    laptop.await_nodes(3, 120)
    a_folder_that_only_the_head_has(laptop)
    data_that_one_node_has_not(laptop)


def a_folder_that_only_the_head_has(laptop: Laptop) -> None:
    process = laptop.submit(small_sweep(laptop, "unshared"), "/tmp/results")
    assert process.wait(timeout=300) == 1
    said = "".join(laptop.said)
    for worker in laptop.hosts[1:]:
        assert (
            f"--results: /tmp/results on node {worker.address} ({worker.name}) is not the folder that the driver"
            in said
        )
    assert "Traceback" not in said


def data_that_one_node_has_not(laptop: Laptop) -> None:
    for machine in laptop.hosts[:2]:
        for split, name in itertools.product(("train", "test"), "ab"):
            folder = machine.folder / "tmp" / "data" / "birds" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / f"{number}.png")
    sweep = small_sweep(laptop, "birds")
    text = sweep.read_text().replace("name: digits", "name: image_folder, folder: birds")
    sweep.write_text(text)
    results = str(laptop.base / "shared" / "results-birds")
    process = laptop.submit(sweep, results, "--data", "/tmp/data")
    assert process.wait(timeout=300) == 1
    said = "".join(laptop.said)
    lacks = laptop.hosts[2]
    assert re.search(rf"node {re.escape(lacks.address)} \({lacks.name}\): .*birds", said), said[-3000:]
    assert f"node {laptop.hosts[1].address}" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_survives_the_death_of_a_host(laptop: Laptop, workers: int) -> None:
    """With trials of one worker and results on a shared mount; with trials of two workers on different hosts and
    results on an S3 server."""
    laptop.await_nodes(3, 120)
    epochs, trials = (40, 8) if workers == 1 else (12, 4)
    sweep = small_sweep(laptop, f"digits_{workers}", workers, epochs, trials)
    written = str(laptop.base / "shared" / "results") if workers == 1 else laptop.s3
    remote = RemoteFiles(written, "--results") if workers > 1 else None
    seen = MirrorFolder(laptop.base / "seen", remote) if remote else LocalFolder(Path(written))
    results, store = seen.path, Store(seen.path)
    process = laptop.submit(sweep, written)

    def in_the_middle() -> bool:
        assert process.poll() is None, "".join(laptop.said)[-4000:]
        seen.fetch_all("*.json", "*.jsonl")
        ended = sum(folder.outcome() is not None for folder in store.trials())
        running = [folder for folder in store.trials() if folder.outcome() is None and len(folder.epochs()) >= 2]
        return ended >= 4 and bool(running)

    wait_for(in_the_middle, "the middle of the sweep", 600)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    laptop.say("### the laptop is closed; the same command again")
    process = laptop.submit(sweep, written)
    wait_for(lambda: any("is running already" in line for line in laptop.said), "the job to be found", 60)
    wait_for(lambda: busy_hosts(laptop), "a host on which something trains", 60)
    victim = busy_hosts(laptop)[0]
    kept = {f.trial_id: json.dumps(f.epochs()) for f in store.trials() if f.outcome() is not None}
    victim.kill()
    laptop.say(f"### {victim.name} ({victim.address}) is dead; {len(kept)} trainings had ended")
    laptop.await_nodes(2, 120)
    assert process.wait(timeout=900) == 0, "".join(laptop.said)[-4000:]
    report = laptop.project / "results" / sweep.stem / "report.md"
    assert report.exists(), "the report has come back"
    laptop.say(f"### the report is here: {report.read_text().splitlines()[2][:200]}")

    seen.fetch_all("*")
    for trial_id, rows in kept.items():
        assert json.dumps(store.trial(trial_id).epochs()) == rows, "what had ended is not trained again"
    for folder in store.trials():
        outcome = folder.outcome()
        assert outcome is not None
        assert outcome["state"] == "complete"
        numbers = [row["epoch"] for row in folder.epochs()]
        assert numbers == list(range(1, len(numbers) + 1)), "no epoch is missing, none is counted twice"
    record = [json.loads(line) for line in (results / sweep.stem / "record.jsonl").read_text().splitlines()]
    ends = [row for row in record if row["event"] == "ended" and row["stage"] == "search"]
    assert [row["number"] for row in sorted(ends, key=lambda row: row["number"])] == list(range(trials))
    assert record[-1]["event"] == "finished"
