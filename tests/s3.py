"""An S3 server (moto) in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

SECRET = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
BUCKET = "bucket"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def s3_server(port: int, address: str = "127.0.0.1") -> Iterator[str]:
    """Yield the URL of a folder in a new bucket."""
    words = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"{address}:{port}")
        os.environ.update(SECRET)
        where = f"endpoint_override={address}:{port}&scheme=http&region=us-east-1"
        from pyarrow import fs

        files, _ = fs.FileSystem.from_uri(f"s3://{BUCKET}?{where}&allow_bucket_creation=true")
        files.create_dir(BUCKET)
        yield f"s3://{BUCKET}/results?{where}"
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(server: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://{server}/moto-api/", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
