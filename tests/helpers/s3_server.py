"""A real S3 server on loopback (moto's), slow, and unsteady where that is asked for.

    python tests/helpers/s3_server.py PORT BYTES_PER_SECOND REFUSED CUT

Of shards and ranges it sends so many bytes a second to each reader; every REFUSED-th request is
refused by 503, of every CUT-th answer that is a shard or a range half is sent; 0: none. COUNTED is
no object: there the server says what it did.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any
from urllib.request import urlopen

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
COUNTED = "/-counted"
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_REGION": "us-east-1"}


@contextmanager
def bucket(rate: float = 8e6, refused: int = 0, cut: int = 0) -> Generator[str]:
    """Start a server, and give the url of a bucket that this process's environment leads to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    command = [sys.executable, __file__, *map(str, (port, rate, refused, cut))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            _attempt(lambda: urlopen(settings["AWS_ENDPOINT_URL"], timeout=5).close())
            store = import_module("s3fs").S3FileSystem
            store.clear_instance_cache()  # of an earlier server, at another port
            _attempt(lambda: store().mkdir("kept"))
            yield "s3://kept"
        finally:
            server.terminate()
            for key, value in before.items():
                os.environ.pop(key, None)
                if value is not None:
                    os.environ[key] = value


def counted() -> tuple[int, int]:
    """Return how many requests for objects the server answered, and the bytes that it sent."""
    with urlopen(os.environ["AWS_ENDPOINT_URL"] + COUNTED, timeout=60) as answer:
        requests, sent = json.load(answer)
    return requests, sent


def _attempt(work: Any) -> None:
    for _ in range(300):
        try:
            work()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the server does not answer")


def serve(port: int, rate: float, refused: int, cut: int) -> None:
    """Answer until the process is ended."""
    moto, serving = import_module("moto.server"), import_module("werkzeug.serving")
    app = moto.DomainDispatcherApplication(moto.create_backend_app)
    count, sums, alone = itertools.count(1), [0, 0], Lock()

    def answer(environ: Any, start: Any) -> Any:
        if environ["PATH_INFO"] == COUNTED:
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(sums).encode()]
        number = next(count)
        is_slow = environ["PATH_INFO"].endswith(".h5") or "HTTP_RANGE" in environ
        if refused and number % refused == 0:
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        body = app(environ, start)
        whole = b"".join(body)
        with alone:
            sums[:] = sums[0] + 1, sums[1] + len(whole)
        if environ["REQUEST_METHOD"] != "GET" or not is_slow:
            return [whole]
        time.sleep(len(whole) / rate)
        return [whole[: len(whole) // 2]] if cut and number % cut == 0 else [whole]

    serving.run_simple("127.0.0.1", port, answer, threaded=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
