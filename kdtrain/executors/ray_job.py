"""Runs a sweep as a Ray job on a cluster's head, where it goes on when its reader disconnects.

`python -m kdtrain.executors.ray_job NAME -- python -m kdtrain sweep ...` submits the command, or finds the job that
runs under this name, and prints its output until it ends. Exit code: 0 if the job succeeded, else 1.
"""

import asyncio
import os
import shlex
import sys
import time

from ray.job_submission import JobStatus, JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"


def main(arguments: list[str]) -> int:
    if len(arguments) < 3 or arguments[1] != "--":
        print("usage: python -m kdtrain.executors.ray_job NAME -- COMMAND ...", file=sys.stderr)
        return 2
    name, words = arguments[0], arguments[2:]
    if words[0] == "python":
        words[0] = sys.executable
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    # a job starts in the user's home, with the environment of `ray start`
    command = f"cd {shlex.quote(os.getcwd())} && RAY_AUTH_MODE={shlex.quote(mode)} exec {shlex.join(words)}"
    client = JobSubmissionClient(os.environ.get("RAY_API_SERVER_ADDRESS", DASHBOARD))
    submission_id = _running(client, name)
    if submission_id is None:
        submission_id = client.submit_job(
            entrypoint=command, submission_id=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", entrypoint_num_cpus=0
        )
        print(f"submitted as {submission_id}", flush=True)
    else:
        print(f"{submission_id} is running already; its output from the beginning", flush=True)
    asyncio.run(_follow(client, submission_id))
    status = client.get_job_status(submission_id)
    print(f"{submission_id}: {status.value.lower()}", flush=True)
    return 0 if status == JobStatus.SUCCEEDED else 1


def _running(client: JobSubmissionClient, name: str) -> str | None:
    for job in client.list_jobs():
        if (job.submission_id or "").startswith(f"{name}-2") and not job.status.is_terminal():
            return str(job.submission_id)
    return None


async def _follow(client: JobSubmissionClient, submission_id: str) -> None:
    async for lines in client.tail_job_logs(submission_id):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
