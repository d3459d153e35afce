"""How a daemon with many keys in one token starts, creates, wraps and lists, beside one
with few. Prints a table; `--json FILE` writes it too.

SoftHSM takes time that grows with the number of objects to make one more, so the keys are
made by several daemons with a token each, copies of one, and their objects and rows are
then put together: the objects of copies of a token are good in all of them.

With `--residency wrapped` the keys are in the store. A thousand are made, and their rows are
then copied under other ids: so a blob is there for many keys, which the daemon does not see,
since it knows a key by its id. Beside them are 20 keys in the token, used by turns with them.

    .venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd --keys 10000
    .venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd --residency wrapped --keys 1000000
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
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/python"))
import client
from grpc_health.v1 import health_pb2, health_pb2_grpc

TABLES = ["keys", "aliases", "key_versions", "wrap_grants"]
AT_ONCE = 1000
CALLS = 3000
ROUNDS = 5


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


def multiply(directory, keys):
    """Copies rows of keys that are kept wrapped until there are so many keys."""
    store = sqlite3.connect(directory / "state/store.sqlite")
    wrapped = "SELECT key FROM key_versions WHERE wrapped IS NOT NULL"
    models = [row[0] for row in store.execute(wrapped)]
    have = store.execute("SELECT count(*) FROM keys").fetchone()[0]
    new = [(models[n % len(models)], uuid.uuid4().bytes, uuid.uuid4().bytes) for n in range(keys - have)]
    for table, own in (("keys", {"id": "?2"}), ("key_versions", {"key": "?2", "id": "?2", "object": "?3"})):
        columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
        chosen = ", ".join(own.get(column, column) for column in columns)
        of = "id" if table == "keys" else "key"
        store.executemany(f"INSERT INTO {table} SELECT {chosen} FROM {table} WHERE {of} = ?1 AND ?3 = ?3", new)
    store.commit()
    store.close()


def cpu_of(daemon, calls, call):
    """CPU of the daemon for each of `calls`, in microseconds."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        cpu = daemon.cpu_seconds()
        list(pool.map(call, calls))
        return 1e6 * (daemon.cpu_seconds() - cpu) / len(calls)


def measure_wrapped(program, base, modules, keys):
    """What one daemon takes, with so many keys of which nearly all are kept wrapped."""
    crypto, messages = modules[0], modules[2]
    daemon = Daemon(program, base, modules)
    token, pages = "", []
    for _ in range(50):
        began = time.monotonic()
        page = daemon.keys.ListKeys(
            messages.ListKeysRequest(parent="instances/default", page_size=200, page_token=token)
        )
        pages.append(time.monotonic() - began)
        token = page.next_page_token
        if not token:
            break
    store = sqlite3.connect(base / "state/store.sqlite")
    kinds = {}
    for kind, where in (("wrapped", "NOT NULL"), ("token", "NULL")):
        sql = f"SELECT DISTINCT key FROM key_versions WHERE wrapped IS {where} ORDER BY random() LIMIT ?"
        ids = store.execute(sql, [CALLS]).fetchall()
        kinds[kind] = [f"instances/default/keys/{uuid.UUID(bytes=row[0])}" for row in ids]
    store.close()
    deks = {}

    def wrap(key):
        deks[key] = daemon.crypto.WrapDek(crypto.WrapDekRequest(key=key, dek=b"d" * 32)).wrapped_dek

    def unwrap(key):
        daemon.crypto.UnwrapDek(crypto.UnwrapDekRequest(key=key, wrapped_dek=deks[key]))

    for names in kinds.values():
        cpu_of(daemon, names, wrap)
    daemon.stop()
    # None is in the HSM's sessions now.
    daemon = Daemon(program, base, modules)
    figures = {"keys": keys, "start_s": daemon.started, "memory_mib": daemon.memory_mib()}
    figures["list_page_of_200_ms"] = 1e3 * statistics.median(pages)
    cold = cpu_of(daemon, kinds["wrapped"], unwrap)
    few = {"wrapped": kinds["wrapped"][:20], "token": kinds["token"][:20]}
    warm = {"wrapped": [], "token": []}
    for _ in range(ROUNDS):
        for kind, names in few.items():
            calls = (names * CALLS)[: CALLS // 2]
            cpu_of(daemon, names * 3, unwrap)
            warm[kind].append(cpu_of(daemon, calls, unwrap))
    figures["cold_unwrap_cpu_us"] = cold
    for kind, cpus in warm.items():
        figures[f"unwrap_{kind}_cpu_us"] = statistics.median(cpus)
    figures["memory_after_mib"] = daemon.memory_mib()
    daemon.stop()
    return figures


def wrapped_rows(program, base, modules, many):
    """A row of figures for each number of keys."""
    daemon = Daemon(program, base, modules)
    for number in range(20):
        daemon.create(number)
    daemon.stop_and_set("wrapped")
    daemon = Daemon(program, base, modules)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(daemon.create, range(AT_ONCE)))
    print(f"many_keys: {AT_ONCE / (time.monotonic() - began):.0f} keys made a second", file=sys.stderr)
    daemon.stop()
    rows = []
    for keys in many:
        multiply(base, keys)
        print(f"many_keys: {keys} keys are in the store", file=sys.stderr)
        rows.append(measure_wrapped(program, base, modules, keys))
    return rows


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
    parser.add_argument("--residency", choices=["token", "wrapped"], default="token")
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
        if arguments.residency == "wrapped":
            rows = wrapped_rows(arguments.daemon, base, modules, sorted(arguments.keys))
            steps = []
        else:
            steps = [10, *sorted(arguments.keys)]
        for keys in steps:
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
