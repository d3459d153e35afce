"""What a million registrations on one key cost: the guard of its deletion, a page of the
list, the counts of an impact. Beside keys with fewer; prints a table.

The rows are put into the store while the daemon is stopped, through the same triggers that
count every registration. `make bench` runs it.

    .venv/bin/python benches/many_registrations.py --daemon target/release/rootkeyd
"""

import argparse
import pathlib
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import many_keys
from many_keys import Daemon, client

KINDS = ["boot-volume", "data-volume", "data-volume", "snapshot", "custom-image", "file-share"]
CALLS = 50


def fill(directory, key, many):
    """Registers so many resources against a key, whose UUID is given."""
    store = sqlite3.connect(directory / "state/store.sqlite")
    (version,) = store.execute(
        "SELECT id FROM key_versions WHERE key = ?", [key.bytes]
    ).fetchone()
    rows = (
        (
            uuid.uuid4().bytes,
            key.bytes,
            f"crn:v1:rootkeyd:public:is:local:a/dev::volume:{number:08}",
            KINDS[number % len(KINDS)],
            f"crn:v1:rootkeyd:public:is:local:a/dev::instance:{number // 3:08}" if number % 2 else None,
            version,
        )
        for number in range(many)
    )
    store.executemany(
        """INSERT INTO registrations (id, instance, key, resource, kind, attached_to, description,
               prevents, version, source, service, created, created_by, generation)
           VALUES (?, 'default', ?, ?, ?, ?, '', 0, ?, NULL, 'block-storage', 0, 'bench', 1)""",
        rows,
    )
    store.commit()
    store.close()


def timed(call):
    times = []
    for _ in range(CALLS):
        began = time.monotonic()
        call()
        times.append(time.monotonic() - began)
    return 1e3 * statistics.median(times)


def measure(daemon, stubs, crypto, name, many):
    registrations, resources, pb = stubs
    keys = daemon.pb[1]

    def refused_delete():
        try:
            daemon.keys.DeleteKey(keys.DeleteKeyRequest(name=name))
        except many_keys.client.grpc.RpcError as error:
            assert "registered" in error.details(), error
        else:
            sys.exit("many_registrations: the key was deleted")

    page = pb["registrations"].ListRegistrationsRequest(parent=name, page_size=200)
    middle = f"crn:v1:rootkeyd:public:is:local:a/dev::volume:{many // 2:08}"[:-2] + "*"
    found = pb["registrations"].ListRegistrationsRequest(parent=name, resource=middle)
    impact = pb["resources"].PreviewKeyImpactRequest(name=name, change=2, page_size=200)
    wrap = crypto.WrapDekRequest(key=name, dek=b"d" * 32)
    unwrap = crypto.UnwrapDekRequest(key=name, wrapped_dek=daemon.crypto.WrapDek(wrap).wrapped_dek)
    calls = [unwrap] * many_keys.CALLS
    daemon.settle()
    return {
        "registrations": many,
        "start_s": daemon.started,
        "memory_mib": daemon.memory_mib(),
        "unwrap_cpu_us": many_keys.cpu_of(daemon, calls, daemon.crypto.UnwrapDek),
        "delete_guard_ms": timed(refused_delete),
        "list_page_of_200_ms": timed(lambda: registrations.ListRegistrations(page)),
        "list_by_prefix_ms": timed(lambda: registrations.ListRegistrations(found)),
        "impact_ms": timed(lambda: resources.PreviewKeyImpact(impact)),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--registrations", type=int, default=1_000_000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "pb").mkdir()
        modules = client.generate(str(folder / "pb"))
        from rootkeyd.v1 import registrations_pb2, registrations_pb2_grpc
        from rootkeyd.v1 import resources_pb2, resources_pb2_grpc

        directory = folder / "dev"
        directory.mkdir()
        for many in (10, 1_000, 100_000, arguments.registrations):
            daemon = Daemon(arguments.daemon, directory, modules)
            name = daemon.create(many)
            daemon.stop()
            fill(directory, uuid.UUID(name.rsplit("/", 1)[1]), many)
            daemon = Daemon(arguments.daemon, directory, modules)
            channel = client.channel(directory, "admin")
            stubs = (
                registrations_pb2_grpc.RegistrationServiceStub(channel),
                resources_pb2_grpc.ResourceServiceStub(channel),
                {"registrations": registrations_pb2, "resources": resources_pb2},
            )
            rows.append(measure(daemon, stubs, modules[0], name, many))
            daemon.stop()
    many_keys.tell(rows, arguments.json)


if __name__ == "__main__":
    main()
