"""From the laptop: a sweep on a cluster that `ray up` has started, followed, and its report brought back.

`python -m kdtrain.cluster cluster.yaml sweeps/cub_mgd.yaml --results s3://bucket/results` sends the sweep file to the
head, runs it there as a Ray job, shows its progress and fetches the report. A laptop that is closed, or Ctrl-C, ends
the watching alone: the same command watches on, continues a sweep that was cut off, and fetches the report of one that
has ended.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import yaml

from kdtrain.errors import UserError

PROJECT = "kdtrain"
"""The project's folder in the home of every node, as the cluster files mount it."""
ACTIVATE = f"cd ~/{PROJECT} && . ~/venv/bin/activate && export RAY_AUTH_MODE=token"
REPORT = re.compile(r"^(\S+): (\S+)/report\.md")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: the report is here; 1: the job ended without one; 2: something to mend; 130: no longer watching."""
    chosen, options = _parser().parse_known_args(arguments)
    try:
        return _run(chosen, options)
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("no longer watching; the sweep goes on. The same command watches it again", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kdtrain.cluster",
        description="Runs a sweep on a cluster that `ray up` has started and brings its report back.",
        epilog="Every other option is run_sweep.py's own, such as --results s3://bucket/results --data s3://bucket/data.",
        allow_abbrev=False,
    )
    parser.add_argument("cluster", metavar="CLUSTER", help="the file that `ray up` was given, such as cluster.yaml")
    parser.add_argument("file", metavar="FILE", help="a sweep below this folder, such as sweeps/cub_mgd.yaml")
    parser.add_argument("--into", default="results", metavar="DIR", help="where the report comes to (default: results)")
    return parser


def _run(chosen: argparse.Namespace, options: list[str]) -> int:
    from kdtrain.config.sweep import load_sweep

    overrides = [value for option, value in pairwise(options) if option == "--set"]
    sweep = load_sweep(chosen.file, overrides)  # a mistake is said before anything is sent
    _require_cluster_file(chosen.cluster)
    sent = Path(chosen.file)
    if sent.is_absolute() or ".." in sent.parts:
        raise UserError(f"{sent}: must lie below this folder, which is the project that the nodes have")
    ray = _ray()
    _call([ray, "rsync-up", chosen.cluster, str(sent), f"~/{PROJECT}/{sent}"])
    command = ["python", "run_sweep.py", str(sent), "--address", "auto", *options]
    job = f"{ACTIVATE} && python -m kdtrain.executors.ray_job {shlex.quote(sweep.name)} -- {shlex.join(command)}"
    folder, code = _watch([ray, "exec", chosen.cluster, job])
    if folder is None:
        return code or 1
    target = Path(chosen.into) / sweep.name
    target.mkdir(parents=True, exist_ok=True)
    _call([ray, "rsync-down", chosen.cluster, f"{folder}/", f"{target}/"])
    print(f"{sweep.name}: {target / 'report.md'}")
    return code


def _watch(words: list[str]) -> tuple[str | None, int]:
    """Shows what the job says; (the report's folder on the head, exit code)."""
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
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{shlex.join(words)} failed: {said[-1] if said else 'without a word'}")


def _require_cluster_file(file: str) -> None:
    try:
        known = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not isinstance(known, dict) or "cluster_name" not in known:
        raise UserError(f"{file}: is no cluster file, it has no cluster_name; give what `ray up` was given")


def _ray() -> str:
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise UserError("ray: no such command; install kdtrain as README says")
    return found
