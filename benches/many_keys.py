"""How a daemon with many keys in one token starts, creates, wraps and lists, beside one
with few. Prints a table; `--json FILE` writes it too.

SoftHSM takes time that grows with the number of objects to make one more, so the keys are
made by several daemons with a token each, copies of one, and their objects and rows are
then put together: the objects of copies of a token are good in all of them.

    .venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd --keys 10000
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/python"))
import client
from grpc_health.v1 import health_pb2, health_pb2_grpc

TABLES = ["keys", "aliases", "key_versions", "wrap_grants"]
AT_ONCE = 1000
CALLS = 3000


class Daemon:
    """A `rootkeyd dev` in a directory, with clients of its admin."""

    def __init__(self, program, directory, modules):
        self.directory = directory
        began = time.monotonic()
        self.process = subprocess.Popen(
            [program, "dev", "--dir", directory, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=open(directory / "log", "ab"),
            text=True,
        )
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            sys.exit(f"many_keys: the daemon did not start: {directory / 'log'}")
        crypto, crypto_grpc, keys, keys_grpc = modules
        channel = client.channel(directory, "admin")
        self.crypto, self.keys = crypto_grpc.CryptoServiceStub(channel), keys_grpc.KeyServiceStub(channel)
        self.pb = (crypto, keys)
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        while health.Check(health_pb2.HealthCheckRequest()).status != serving:
            time.sleep(0.01)
        self.started = time.monotonic() - began

    def create(self, number):
        keys = self.pb[1]
        request = keys.CreateKeyRequest(
            parent="instances/default", key=keys.Key(display_name=f"volume {number}")
        )
        return self.keys.CreateKey(request, timeout=60).name

    def memory_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)


def merge(into, part):
    """Puts the objects and rows of `part` into the directory `into`."""
    token = next(path for path in (into / "tokens").iterdir() if path.is_dir())
    for path in (part / "tokens" / token.name).iterdir():
        if not (token / path.name).exists():
            shutil.move(path, token / path.name)
    store = sqlite3.connect(into / "state/store.sqlite")
    store.execute("ATTACH ? AS part", [str(part / "state/store.sqlite")])
    for table in TABLES:
        store.execute(f"INSERT INTO main.{table} SELECT * FROM part.{table}")
    store.commit()
    store.close()


def measure(daemon, keys):
    """What one daemon takes, with that many keys in it."""
    crypto, messages = daemon.pb
    made = []
    for number in range(20):
        began = time.monotonic()
        name = daemon.create(f"new {number}")
        made.append(time.monotonic() - began)
    names, token, pages = [], "", []
    while True:
        began = time.monotonic()
        page = daemon.keys.ListKeys(
            messages.ListKeysRequest(parent="instances/default", page_size=200, page_token=token)
        )
        pages.append(time.monotonic() - began)
        names += [key.name for key in page.keys]
        token = page.next_page_token
        if not token:
            break
    figures = {
        "keys": keys,
        "start_s": daemon.started,
        "memory_mib": daemon.memory_mib(),
        "create_ms": 1e3 * statistics.median(made),
        "list_page_of_200_ms": 1e3 * statistics.median(pages),
    }
    stride = max(1, len(names) // CALLS)
    chosen = (names[::stride] * CALLS)[:CALLS]
    wrapped = {}
    for call in ("wrap", "unwrap"):
        def one(key, call=call):
            if call == "wrap":
                answer = daemon.crypto.WrapDek(crypto.WrapDekRequest(key=key, dek=b"d" * 32))
                wrapped[key] = answer.wrapped_dek
            else:
                daemon.crypto.UnwrapDek(crypto.UnwrapDekRequest(key=key, wrapped_dek=wrapped[key]))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, chosen[:200]))
            cpu = daemon.cpu_seconds()
            list(pool.map(one, chosen))
        figures[f"{call}_cpu_us"] = 1e6 * (daemon.cpu_seconds() - cpu) / len(chosen)
    return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000])
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "pb").mkdir()
        modules = client.generate(str(folder / "pb"))
        base = folder / "base"
        base.mkdir()
        Daemon(arguments.daemon, base, modules).stop()
        have = 0
        for keys in [10, *sorted(arguments.keys)]:
            while have < keys:
                part = folder / "part"
                shutil.copytree(folder / "base" if have == 0 else folder / "empty", part)
                if have == 0:
                    shutil.copytree(part, folder / "empty")
                daemon = Daemon(arguments.daemon, part, modules)
                many = min(AT_ONCE, keys - have)
                with concurrent.futures.ThreadPoolExecutor(2) as pool:
                    list(pool.map(daemon.create, range(have, have + many)))
                daemon.stop()
                merge(base, part)
                shutil.rmtree(part)
                have += many
                print(f"many_keys: {have} keys are made", file=sys.stderr)
            daemon = Daemon(arguments.daemon, base, modules)
            rows.append(measure(daemon, have))
            have += 20
            daemon.stop()
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{row[name]:.4g}" for name in names) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
