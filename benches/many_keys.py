"""How a daemon with many keys starts, creates, lists, wraps and unwraps, beside one with few.
Prints a table; `--json FILE` writes it too, for `cargo bench --bench growth` to draw.

Five keys are made by CreateKey; their rows are then copied under other ids, and with
`--residency token` so are their objects (softhsm_objects.py): SoftHSM takes time that grows
with the number of objects to make one more. So some keys have the same material, which
neither the daemon nor SoftHSM sees: both know a key by its id. In either case there are five
keys in the token beside them that were made first, and are used by turns with the others.

    .venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd --keys 10 1000 100000
    .venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd --residency wrapped --keys 1000000
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/python"))
import client
import softhsm_objects
from grpc_health.v1 import health_pb2, health_pb2_grpc

FIRST = 5
MODELS = 5
CALLS = 3000
ROUNDS = 5
PAGES = 50


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

    def stop_and_set(self, residency):
        """Stops it, and has it keep keys there from its next start on."""
        self.stop()
        path = self.directory / "rootkeyd.toml"
        lines = [it for it in path.read_text().splitlines() if not it.startswith("residency")]
        lines.insert(lines.index("[hsm]") + 1, f'residency = "{residency}"')
        path.write_text("\n".join(lines) + "\n")

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

    def settle(self):
        """Waits until it does nothing by itself, as comparing what HSM and store have after a start."""
        idle = 0
        while idle < 3:
            cpu = self.cpu_seconds()
            time.sleep(0.5)
            idle = idle + 1 if self.cpu_seconds() - cpu < 0.02 else 0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)


def models_of(store):
    """Keys that are copied: all but the first ones."""
    sql = "SELECT key, object FROM key_versions ORDER BY created, key LIMIT -1 OFFSET ?"
    return store.execute(sql, [FIRST]).fetchall()[:MODELS]


def multiply(directory, residency, keys):
    """Copies keys until there are so many."""
    store = sqlite3.connect(directory / "state/store.sqlite")
    models = models_of(store)
    have = store.execute("SELECT count(*) FROM keys").fetchone()[0]
    new = [
        (*models[n % len(models)], uuid.uuid4().bytes, uuid.uuid4().bytes) for n in range(keys - have)
    ]
    for table, own in (("keys", {"id": "?2"}), ("key_versions", {"key": "?2", "id": "?2", "object": "?3"})):
        columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
        chosen = ", ".join(own.get(column, column) for column in columns)
        of = "id" if table == "keys" else "key"
        store.executemany(
            f"INSERT INTO {table} SELECT {chosen} FROM {table} WHERE {of} = ?1 AND ?3 = ?3",
            [(model, identity, object) for model, _, identity, object in new],
        )
    store.commit()
    store.close()
    if residency == "token" and new:
        folder = next(path for path in (directory / "tokens").iterdir() if path.is_dir())
        token = softhsm_objects.Token(folder, (directory / "pin").read_bytes().strip())
        files = token.models()
        for _, of_model, _, object in new:
            (model,) = files[of_model]
            token.copy(model, of_model, object)


def names_of(directory, order, many, offset=0):
    """Names of some keys, by their UUIDs in that order."""
    store = sqlite3.connect(directory / "state/store.sqlite")
    rows = store.execute(f"SELECT key FROM key_versions ORDER BY {order} LIMIT ? OFFSET ?", [many, offset])
    names = [f"instances/default/keys/{uuid.UUID(bytes=row[0])}" for row in rows]
    store.close()
    return names


def cpu_of(daemon, calls, call):
    """CPU of the daemon for each of `calls`, in microseconds."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        cpu = daemon.cpu_seconds()
        list(pool.map(call, calls))
        return 1e6 * (daemon.cpu_seconds() - cpu) / len(calls)


def pages_of(daemon, messages):
    """What pages of 200 take, in milliseconds: the median of the first ones."""
    token, took = "", []
    while len(took) < PAGES:
        began = time.monotonic()
        page = daemon.keys.ListKeys(
            messages.ListKeysRequest(parent="instances/default", page_size=200, page_token=token)
        )
        took.append(time.monotonic() - began)
        token = page.next_page_token
        if not token:
            break
    return 1e3 * statistics.median(took)


def creates_of(daemon):
    """What it takes to create a key, in milliseconds; None if it took longer than may be."""
    took = []
    for number in range(5):
        began = time.monotonic()
        try:
            daemon.create(f"new {number}")
        except client.grpc.RpcError as error:
            print(f"many_keys: no key was made: {error.details()}", file=sys.stderr)
            return None
        took.append(time.monotonic() - began)
    return 1e3 * statistics.median(took)


def measure(program, base, modules, residency, keys):
    """What one daemon takes, with so many keys."""
    crypto, messages = modules[0], modules[2]
    daemon = Daemon(program, base, modules)
    page = pages_of(daemon, messages)
    first = names_of(base, "created, key", FIRST)
    few = names_of(base, "created, key", FIRST, FIRST)
    many = (names_of(base, "random()", CALLS) * CALLS)[:CALLS]
    deks = {}

    def wrap(key):
        deks[key] = daemon.crypto.WrapDek(crypto.WrapDekRequest(key=key, dek=b"d" * 32)).wrapped_dek

    def unwrap(key):
        daemon.crypto.UnwrapDek(crypto.UnwrapDekRequest(key=key, wrapped_dek=deks[key]))

    daemon.settle()
    for names in (first, few):
        cpu_of(daemon, names, wrap)
    wrapped = cpu_of(daemon, many, wrap)
    daemon.stop()
    # No key is in the HSM's sessions now.
    daemon = Daemon(program, base, modules)
    figures = {"residency": residency, "keys": keys, "start_s": daemon.started}
    figures |= {"memory_mib": daemon.memory_mib(), "list_page_of_200_ms": page, "wrap_cpu_us": wrapped}
    daemon.settle()
    figures["unwrap_once_cpu_us"] = cpu_of(daemon, many, unwrap)
    warm = {"unwrap_warm_cpu_us": few, "unwrap_first_cpu_us": first}
    taken = {name: [] for name in warm}
    for _ in range(ROUNDS):
        for name, keys_used in warm.items():
            cpu_of(daemon, keys_used * 3, unwrap)
            taken[name].append(cpu_of(daemon, (keys_used * CALLS)[: CALLS // 2], unwrap))
    figures |= {name: statistics.median(cpus) for name, cpus in taken.items()}
    figures["memory_after_mib"] = daemon.memory_mib()
    figures["create_ms"] = creates_of(daemon)
    daemon.stop()
    return figures


def rows_of(program, base, modules, residency, many):
    """A row of figures for each number of keys."""
    daemon = Daemon(program, base, modules)
    for number in range(FIRST):
        daemon.create(number)
    daemon.stop_and_set(residency)
    daemon = Daemon(program, base, modules)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(daemon.create, range(MODELS)))
    print(f"many_keys: {MODELS / (time.monotonic() - began):.0f} keys made a second", file=sys.stderr)
    daemon.stop()
    rows = []
    for keys in many:
        multiply(base, residency, keys)
        print(f"many_keys: {keys} keys, {residency}", file=sys.stderr)
        rows.append(measure(program, base, modules, residency, keys))
    return rows


def tell(rows, path):
    """Prints rows of figures as a table; writes them to `path` too, if there is one."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(told(row[name]) for name in names) + " |")
    if path:
        path.write_text(json.dumps(rows, indent=1) + "\n")


def told(value):
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000])
    parser.add_argument("--residency", choices=["token", "wrapped"], default="token")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "pb").mkdir()
        modules = client.generate(str(folder / "pb"))
        base = folder / "base"
        base.mkdir()
        rows = rows_of(arguments.daemon, base, modules, arguments.residency, sorted(arguments.keys))
    tell(rows, arguments.json)


if __name__ == "__main__":
    main()
