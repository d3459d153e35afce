"""What a principal that asks for ten times its share costs another one, and DisableKey.

One principal unwraps at an even pace, first alone and then beside another one that asks for
ten times the rate that `[limits]` gives it; meanwhile keys are disabled. The noisy client is a
process of its own, on the same machine: what it takes of the cores is in the figures too.
`make bench` runs it.

    .venv/bin/python benches/noisy_neighbour.py --daemon target/release/rootkeyd
"""

import argparse
import asyncio
import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from many_keys import Daemon, client

RATE = 300
PACE = 100
SECONDS = 10
DISABLED = 20
AT_ONCE = 64


def percentile(times, part):
    return 1e3 * sorted(times)[min(len(times) - 1, int(part * len(times)))]


def paced(stub, request):
    """Latencies at an even pace, each from when it was due: no omission is hidden."""
    times, due = [], time.monotonic()
    for _ in range(PACE * SECONDS):
        due += 1 / PACE
        time.sleep(max(0, due - time.monotonic()))
        stub.UnwrapDek(request)
        times.append(time.monotonic() - due)
    return times


async def flood(directory, request, stub_of, grpc):
    """Ten times the rate, until the process is ended; prints what became of it."""
    counts = {"answered": 0, "refused": 0}
    stub = stub_of(client.channel(directory, "block-storage", grpc.aio.secure_channel))
    began, sent = time.monotonic(), 0

    async def one():
        try:
            await stub.UnwrapDek(request)
            counts["answered"] += 1
        except grpc.aio.AioRpcError:
            counts["refused"] += 1

    waiting = set()
    while time.monotonic() - began < 2 * SECONDS:
        while sent < 10 * RATE * (time.monotonic() - began) and len(waiting) < AT_ONCE:
            task = asyncio.create_task(one())
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.gather(*waiting)
    print(json.dumps({**counts, "per_second": sent / (2 * SECONDS)}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemon")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--noisy", nargs=2, metavar=("DIR", "REQUEST_FILE"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "pb").mkdir()
        modules = client.generate(str(folder / "pb"))
        from rootkeyd.v1 import crypto_pb2, crypto_pb2_grpc

        if arguments.noisy:
            directory, file = arguments.noisy
            request = crypto_pb2.UnwrapDekRequest.FromString(pathlib.Path(file).read_bytes())
            stub_of = crypto_pb2_grpc.CryptoServiceStub
            asyncio.run(flood(pathlib.Path(directory), request, stub_of, client.grpc))
            return
        measure(arguments, folder, modules, crypto_pb2, crypto_pb2_grpc)


def measure(arguments, folder, modules, pb, pb_grpc):
    directory = folder / "dev"
    directory.mkdir()
    Daemon(arguments.daemon, directory, modules).stop()
    config = directory / "rootkeyd.toml"
    limits = f"[limits]\ndata_per_second = {RATE}\n\n[listen]"
    config.write_text(config.read_text().replace("[listen]", limits, 1))
    daemon = Daemon(arguments.daemon, directory, modules)
    names = [daemon.create(number) for number in range(DISABLED + 1)]
    stub = pb_grpc.CryptoServiceStub(client.channel(directory, "file-storage"))
    wrapped = stub.WrapDek(pb.WrapDekRequest(key=names[0], dek=bytes(32))).wrapped_dek
    request = pb.UnwrapDekRequest(key=names[0], wrapped_dek=wrapped)
    file = folder / "request"
    file.write_bytes(request.SerializeToString())

    alone = paced(stub, request)
    noisy = subprocess.Popen(
        [sys.executable, __file__, "--noisy", str(directory), str(file)], stdout=subprocess.PIPE
    )
    time.sleep(SECONDS / 2)  # it makes its stubs first
    beside = paced(stub, request)
    disabled = []
    for name in names[1:]:
        began = time.monotonic()
        daemon.keys.DisableKey(daemon.pb[1].DisableKeyRequest(name=name))
        disabled.append(time.monotonic() - began)
    flooded = json.loads(noisy.communicate(timeout=60)[0])
    daemon.stop()
    row = {
        "quiet_p50_ms_alone": percentile(alone, 0.5),
        "quiet_p99_ms_alone": percentile(alone, 0.99),
        "quiet_p50_ms_beside": percentile(beside, 0.5),
        "quiet_p99_ms_beside": percentile(beside, 0.99),
        "p99_ratio": percentile(beside, 0.99) / percentile(alone, 0.99),
        "disable_max_ms": 1e3 * max(disabled),
        "noisy_asked_per_s": flooded["per_second"],
        "noisy_answered": flooded["answered"],
        "noisy_refused": flooded["refused"],
    }
    for name, value in row.items():
        print(f"{name:22} {value:10.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
