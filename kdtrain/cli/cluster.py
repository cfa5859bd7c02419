"""kdtrain cluster CLUSTER FILE: runs a sweep on a cluster that `ray up` has started, and fetches its report.

The command sends the sweep file to the head, runs it there as a Ray job, prints its output and fetches the report.
Ctrl-C, or a laptop that is closed, ends the printing only: the same command prints on, continues a sweep that was cut
off, and fetches the report of one that has ended.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from kdtrain.cli.common import add_address, add_data, add_results, guarded, read_sweep, sweep_parser
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

PROJECT = "kdtrain"
"""The project's folder in the home of every node, as the cluster files mount it."""
ACTIVATE = f"cd ~/{PROJECT} && . ~/venv/bin/activate && export RAY_AUTH_MODE=token"
REPORT = re.compile(r"^(\S+): (\S+)/report\.md")


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0: the report is here; 1: the job ended without one; 2: the user has something to correct; 130:
    interrupted, the sweep goes on."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen, options = _parser().parse_known_args(words)
    try:
        return guarded(lambda: _run(chosen, options))
    except KeyboardInterrupt:
        again = shlex.join(["kdtrain", "cluster", *words])
        print(f"stopped printing; the sweep goes on. To print its output again: {again}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdtrain cluster",
        description="Runs a sweep on a cluster that `ray up` has started and fetches its report.",
        epilog="Every other option is one of kdtrain sweep, such as --results s3://bucket/results --data s3://bucket/data.",
        allow_abbrev=False,
    )
    parser.add_argument("cluster", metavar="CLUSTER", help="the file that `ray up` was given, such as cluster.yaml")
    parser.add_argument("file", metavar="FILE", help="a sweep below this folder, such as sweeps/cub_mgd.yaml")
    parser.add_argument("--into", default="results", metavar="DIR", help="where to put the report (default: results)")
    return parser


def _sweep_options() -> argparse.ArgumentParser:
    """Return the parser of what follows CLUSTER: it refuses here what `kdtrain sweep` would refuse on the head."""
    parser = sweep_parser("cluster CLUSTER", "Runs a sweep on a cluster.")
    add_results(parser)
    add_data(parser)
    add_address(parser)
    return parser


def _run(chosen: argparse.Namespace, options: list[str]) -> int:
    sweep = read_sweep(
        _sweep_options().parse_args([chosen.file, *options])
    )  # a mistake is reported before anything is sent
    _require_cluster_file(chosen.cluster)
    sent = user_path(chosen.file, "FILE")
    if sent.is_absolute() or ".." in sent.parts:
        raise UserError(f"{sent}: must be below this folder, which is the project on the nodes")
    ray = _ray()
    _call([ray, "rsync-up", chosen.cluster, str(sent), f"~/{PROJECT}/{sent}"])
    command = ["python", "-m", "kdtrain", "sweep", str(sent), "--address", "auto", *options]
    job = f"{ACTIVATE} && python -m kdtrain.executors.ray_job {shlex.quote(sweep.name)} -- {shlex.join(command)}"
    folder, code = _follow([ray, "exec", chosen.cluster, job])
    if folder is None:
        return code or 1
    target = user_path(chosen.into, "--into") / sweep.name
    target.mkdir(parents=True, exist_ok=True)
    _call([ray, "rsync-down", chosen.cluster, f"{folder}/", f"{target}/"])
    print(f"{sweep.name}: {target / 'report.md'}")
    return code


def _follow(words: list[str]) -> tuple[str | None, int]:
    """Print the job's output; return (the report's folder on the head, the exit code)."""
    folder = None
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            found = REPORT.match(line.strip())
            folder = found[2] if found else folder
    if folder is not None and not folder.startswith("/"):
        folder = f"~/{PROJECT}/{folder}"
    return folder, process.returncode


def _call(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{shlex.join(words)} failed: {lines[-1] if lines else 'no message'}")


def _require_cluster_file(file: str) -> None:
    try:
        known = yaml.safe_load(user_path(file, "CLUSTER").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not isinstance(known, dict) or "cluster_name" not in known:
        raise UserError(f"{file}: is no cluster file, it has no cluster_name; name the file that `ray up` was given")
    provider = known.get("provider")
    if isinstance(provider, dict) and provider.get("type") == "aws" and find_spec("boto3") is None:
        raise UserError(f"{file}: provider.type: aws needs boto3; install it with: pip install 'kdtrain[aws]'")


def _ray() -> str:
    own = Path(sys.executable).with_name("ray")
    found = str(own) if own.exists() else shutil.which("ray")
    if found is None:
        raise UserError("ray: no such command; install kdtrain as the README describes")
    return found
