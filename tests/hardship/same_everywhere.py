"""Builds the demo's three phases by every way there is, and compares what comes of it.

`PYTHONPATH=tests python tests/hardship/same_everywhere.py DIR [--whole] [--way WAY ...]`: one
worker and two; three ranks that share a folder, each with a host name and a temporary folder of its
own, one of which is killed and started again; Ray, where it is installed (`make ray`'s
environment), of two nodes with five killed workers, then one node lost; raw files in an S3 server
and the build into it, back and verified, where s3fs and moto are (`make objects`'); three ranks
with a disk of their own each that share only that server, one of which is lost with its disk and
begun again. Prints the digest of all shards of all phases of each; exits with 1 where two differ.
--whole: the demo's own size, not the small one. WAY: of those alone, as `2 workers`. `--recipe
RECIPE --data RAW --tokenizer FILE`: that recipe in place of the demo's.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import crystalmix as cm
from crystalmix.prep.engines.engine import EngineSettings
from crystalmix.prep.runtime import receipts
from crystalmix.train.demo import demo
from helpers import apart, s3_server
from helpers.ray_trouble import KILLS, Trouble

RANK = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from crystalmix.cli import main
main(sys.argv[2:])
"""
WAIT_SECONDS = 1800


def digest(build: Path) -> str:
    """Return a digest over phases, parts and shards: their rows and the digests of their arrays."""
    opened = cm.open(build)
    assert isinstance(opened, cm.Build)
    return receipts.digest(
        [
            (name, part.name, shard.rows, shard.digest, shard.first, shard.last)
            for name, phase in opened.phases.items()
            for part in phase.manifest.parts
            for shard in part.shards
        ]
    )


def ranks(recipe: Path, raw: Path, out: Path) -> None:
    """Build by three ranks; the last is killed at its first item and started again."""

    def rank(number: int) -> "subprocess.Popen[bytes]":
        own = out.with_name(f"tmp-{number}")
        own.mkdir(exist_ok=True)
        words = ["build", recipe, "--data", raw, "--out", out, "--workers", 1]
        words += ["--rank", number, "--ranks", 3]
        command = [sys.executable, "-c", RANK, f"host-{number}", *map(str, words)]
        return subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(own)}, stdout=subprocess.DEVNULL
        )

    everyone = [rank(number) for number in range(3)]
    until = time.monotonic() + WAIT_SECONDS
    while not any((out / ".ranks").glob("tries/*")) and time.monotonic() < until:
        time.sleep(0.005)
    everyone[2].kill()
    everyone[2].wait()
    everyone[2] = rank(2)
    if any(process.wait(WAIT_SECONDS) for process in everyone):
        raise SystemExit("a rank failed")


@contextmanager
def in_bucket(recipe: Path, raw: Path, out: Path) -> Generator[tuple[Path, str]]:
    """Give a recipe whose raw files lie in a bucket, and a url there; then bring the build back."""
    import s3fs

    os.environ["CRYSTALMIX_CACHE"] = str(out.with_name("cache"))
    with s3_server.bucket(refused=50, cut=40) as url:
        system = s3fs.S3FileSystem()
        for path in sorted(path for path in raw.rglob("*") if path.is_file()):
            system.put_file(path, f"{url}/raw/{path.relative_to(raw)}")
        there = out.with_name("there.yaml")
        text = recipe.read_text("utf-8")
        files = r"files: \[(?=slimpajama|starcoderdata)"
        there.write_text(re.sub(files, f"files: [{url}/raw/", text), "utf-8")
        yield there, f"{url}/build"
        cm.copy(f"{url}/build", out)
        if faults := cm.verify(out).lines()[1:]:
            raise SystemExit("\n".join(faults))


def objects(recipe: Path, raw: Path, out: Path) -> None:
    """Build from raw files in a bucket into it, and bring the build back."""
    with in_bucket(recipe, raw, out) as (there, url):
        cm.build(there, url, workers=2)


def ranks_apart(recipe: Path, raw: Path, out: Path) -> None:
    """Build by three ranks that share only a bucket; one is killed and begins on a new disk."""
    (hosts := out.with_name("hosts")).mkdir()
    with in_bucket(recipe, raw, out) as (there, url):
        words = "build", there, "--out", url, "--workers", 1
        with apart.hosts(hosts, 3, *words) as given:
            told = apart.build_with_a_lost_host(given, WAIT_SECONDS)
    sys.stdout.write("".join(re.findall(r"ranks: .*\n", told[0][1])))
    if any(code for code, _ in told):
        raise SystemExit("\n".join(text for _, text in told))


def ray_cluster(recipe: Path, raw: Path, out: Path) -> None:
    """Build on two nodes; workers are killed and one node is lost on the way."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_memory_monitor_refresh_ms="0")  # others may need the memory
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    trouble = Trouble(cluster, cluster.add_node(num_cpus=1))
    trouble.start()
    cm.build(recipe, out, data=raw, workers=EngineSettings(kind="ray"))
    trouble.over.set()
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.write(f"Ray: {trouble.kills} workers killed, node lost: {trouble.gone}\n")
    if (trouble.kills, trouble.gone) != (KILLS, True):
        raise SystemExit("the build was over before all of them")


WAYS: dict[str, Callable[[Path, Path, Path], object]] = {
    "1 worker": lambda recipe, raw, out: cm.build(recipe, out, data=raw),
    "2 workers": lambda recipe, raw, out: cm.build(recipe, out, data=raw, workers=2),
    "3 ranks, one killed": ranks,
    "Ray": ray_cluster,
    "from S3, to S3 and back": objects,
    "3 ranks over S3, one lost": ranks_apart,
}
STORE = ("s3fs", "moto")
NEEDS = {"Ray": ("ray",), "from S3, to S3 and back": STORE, "3 ranks over S3, one lost": STORE}


def prepared(given: argparse.Namespace) -> tuple[Path, Path]:
    """Return the recipe and the folder of raw files to build."""
    if given.recipe:
        text = given.recipe.read_text("utf-8")
        (given.place / "recipe.yaml").write_text(
            re.sub("(?m)^tokenizer:.*$", f"tokenizer: {{path: {given.tokenizer}}}", text), "utf-8"
        )
        return given.place / "recipe.yaml", given.data
    size = demo.FULL if given.whole else demo.TINY
    raw = demo._gather(given.place, not given.whole, lambda _: None)
    return demo._write_settings(given.place, size, raw)[0], raw


def main() -> None:
    """Build by each way, print digests, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=lambda text: Path(text).resolve())
    parser.add_argument("--whole", action="store_true")
    for name in ("recipe", "data", "tokenizer"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve())
    parser.add_argument("--way", nargs="+", choices=[*WAYS], default=[*WAYS])
    given = parser.parse_args()
    given.place.mkdir(parents=True, exist_ok=True)
    recipe, raw = prepared(given)
    found: set[str] = set()
    for name, way in ((name, WAYS[name]) for name in given.way):
        if any(find_spec(module) is None for module in NEEDS.get(name, ())):
            sys.stdout.write(f"{name:26} not installed here\n")
            continue
        out, began = given.place / name.replace(" ", "-").replace(",", ""), time.perf_counter()
        way(recipe, raw, out)
        found.add(own := digest(out))
        sys.stdout.write(f"{name:26} {own[:32]} {time.perf_counter() - began:6.1f} s\n")
        sys.stdout.flush()
    sys.exit(len(found) != 1)


if __name__ == "__main__":
    main()
