"""An S3 server on this machine (moto), for runs and datasets by URI."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from tests.distributed import free_port

BUCKET = "tandem"


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, str]]]:
    """The URI of an empty bucket, and environment variables for other processes that use it."""
    for module in ("moto", "flask", "s3fs"):
        if find_spec(module) is None:
            pytest.skip(f"no {module} here: pip install -r requirements/dev.txt")
    port = free_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= variables
    try:
        yield f"s3://{_make_bucket(server)}", variables
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _make_bucket(server: subprocess.Popen[bytes]) -> str:
    import s3fs

    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the S3 server ended"
        try:
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        except OSError:
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)
        else:
            return BUCKET
