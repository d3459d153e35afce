"""An independent client: generated from proto/ by grpcio-tools, over mutual TLS.

It asks a `rootkeyd dev` what the documents promise and checks each answer. Run by
tests/demo.rs: client.py --dir DIR --test-clock FILE
"""

import argparse
import os
import pathlib
import sys
import tempfile
import tomllib

import grpc
from google.protobuf import field_mask_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
AAD = [b"crn:v1:rootkeyd:public:is:local:a/python::volume:1"]


class Checks:
    """Counts what holds, and ends at the first that does not."""

    def __init__(self):
        self.passed = 0

    def __call__(self, sentence, holds):
        if not holds:
            sys.exit(f"client: check {self.passed + 1} failed: {sentence}")
        self.passed += 1
        print(f"{self.passed:3} {sentence}")


class Refusal:
    """What a refused call says."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        self.info = error_details_pb2.ErrorInfo()
        self.retry = None
        for detail in rpc_status.from_call(error).details:
            if detail.Is(self.info.DESCRIPTOR):
                detail.Unpack(self.info)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                self.retry = error_details_pb2.RetryInfo()
                detail.Unpack(self.retry)

    def says(self, code, reason, **metadata):
        return (
            self.code == code
            and self.info.reason == reason
            and self.info.domain == "rootkeyd.v1"
            and all(self.info.metadata.get(name) == value for name, value in metadata.items())
        )


def refused(call, request):
    try:
        call(request, timeout=20)
    except grpc.RpcError as error:
        return Refusal(error)
    sys.exit(f"client: {request} was not refused")


def generate(out):
    """Compiles proto/ into `out`; returns the modules."""
    files = [str(path) for path in sorted((ROOT / "proto/rootkeyd/v1").glob("*.proto"))]
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    arguments += [f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(arguments) != 0:
        sys.exit("client: proto/ could not be compiled")
    sys.path.insert(0, out)
    from rootkeyd.v1 import crypto_pb2, crypto_pb2_grpc, keys_pb2, keys_pb2_grpc

    return crypto_pb2, crypto_pb2_grpc, keys_pb2, keys_pb2_grpc


def channel(directory, name, secure=grpc.secure_channel):
    """A channel as `admin`, `block-storage`, …; without a certificate for None."""
    config = tomllib.loads((directory / "client.toml").read_text())
    read = lambda file: (directory / "tls" / file).read_bytes()
    credentials = grpc.ssl_channel_credentials(
        read("ca.pem"),
        read(f"{name}.key") if name else None,
        read(f"{name}.pem") if name else None,
    )
    return secure(config["endpoint"].removeprefix("https://"), credentials)


def set_clock(path, text):
    new = path.with_suffix(".new")
    new.write_text(text + "\n")
    os.replace(new, path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--test-clock", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        modules = generate(out)
        story(arguments.dir, arguments.test_clock, *modules)


def story(directory, clock, crypto_pb2, crypto_pb2_grpc, keys_pb2, keys_pb2_grpc):
    check = Checks()
    admin = channel(directory, "admin")
    health = health_pb2_grpc.HealthStub(admin).Check(health_pb2.HealthCheckRequest(), timeout=20)
    check("health is SERVING", health.status == health_pb2.HealthCheckResponse.SERVING)
    listed = services(admin)
    for name in ["CryptoService", "KeyService", "AuditService", "AdminService"]:
        check(f"reflection lists {name}", f"rootkeyd.v1.{name}" in listed)

    keys = keys_pb2_grpc.KeyServiceStub(admin)
    crypto = crypto_pb2_grpc.CryptoServiceStub(channel(directory, "block-storage"))
    key = keys.CreateKey(
        keys_pb2.CreateKeyRequest(
            parent="instances/default", key=keys_pb2.Key(display_name="python", tags=["test"])
        ),
        timeout=20,
    )
    check("a key is created, active", key.state == keys_pb2.Key.STATE_ACTIVE)

    dek = bytes(range(256))
    wrapped = crypto.WrapDek(
        crypto_pb2.WrapDekRequest(key=key.name, dek=dek, aad=AAD), timeout=20
    )
    check("a DEK is wrapped by its first version", wrapped.key_version == key.primary_version)

    def unwrap_request(aad=AAD, wrapped_dek=wrapped.wrapped_dek):
        return crypto_pb2.UnwrapDekRequest(key=key.name, wrapped_dek=wrapped_dek, aad=aad)

    def unwrapped():
        return crypto.UnwrapDek(unwrap_request(), timeout=20)

    check("it unwraps to the same bytes", unwrapped().dek == dek)
    refusal = refused(crypto.UnwrapDek, unwrap_request(aad=[b"other"]))
    check(
        "with other AAD it is refused",
        refusal.says(grpc.StatusCode.INVALID_ARGUMENT, "CIPHERTEXT_UNVERIFIED"),
    )

    by_service = keys_pb2_grpc.KeyServiceStub(channel(directory, "block-storage"))
    refusal = refused(by_service.DisableKey, keys_pb2.DisableKeyRequest(name=key.name))
    check(
        "a service may not disable it",
        refusal.says(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    )
    disabled = keys.DisableKey(keys_pb2.DisableKeyRequest(name=key.name), timeout=20)
    check("the admin disables it", disabled.state == keys_pb2.Key.STATE_SUSPENDED)
    refusal = refused(crypto.UnwrapDek, unwrap_request())
    check(
        "its DEK is refused as the seed says",
        refusal.says(
            grpc.StatusCode.FAILED_PRECONDITION,
            "KEY_SUSPENDED",
            status_reason="encryption_key_disabled",
            key_protect_code="KEY_ACTION_INVALID_STATE_ERR",
        ),
    )
    refusal = refused(keys.EnableKey, keys_pb2.EnableKeyRequest(name=key.name))
    check(
        "to enable it at once is too early, and it says when",
        refusal.says(grpc.StatusCode.FAILED_PRECONDITION, "TOO_EARLY")
        and 0 < refusal.retry.retry_delay.seconds + 1 <= 31,
    )
    set_clock(clock, "+31s")
    enabled = keys.EnableKey(keys_pb2.EnableKeyRequest(name=key.name), timeout=20)
    check("31 seconds later it is enabled", enabled.state == keys_pb2.Key.STATE_ACTIVE)
    check("and unwraps again", unwrapped().dek == dek)

    many(check, crypto, crypto_pb2, unwrap_request, dek)

    rotated = keys.RotateKey(keys_pb2.RotateKeyRequest(name=key.name), timeout=20)
    check("it is rotated", rotated.primary_version != key.primary_version)
    answer = unwrapped()
    check(
        "the old wrapped DEK unwraps, and comes back rewrapped",
        answer.dek == dek and answer.rewrapped_key_version == rotated.primary_version,
    )
    again = crypto.UnwrapDek(unwrap_request(wrapped_dek=answer.rewrapped_dek), timeout=20)
    check("the rewrapped one unwraps", again.dek == dek and not again.rewrapped_dek)
    generated = crypto.GenerateDek(
        crypto_pb2.GenerateDekRequest(key=key.name, size_bytes=64, aad=AAD), timeout=20
    )
    check("a DEK of 64 bytes is generated", len(generated.dek) == 64)

    renamed = keys.UpdateKey(
        keys_pb2.UpdateKeyRequest(
            key=keys_pb2.Key(name=key.name, display_name="renamed", etag=rotated.etag),
            update_mask=field_mask_pb2.FieldMask(paths=["display_name"]),
        ),
        timeout=20,
    )
    check("it is renamed", renamed.display_name == "renamed")
    refusal = refused(
        keys.DeleteKey, keys_pb2.DeleteKeyRequest(name=key.name, etag=rotated.etag)
    )
    check("a stale etag aborts", refusal.says(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"))
    deleted = keys.DeleteKey(keys_pb2.DeleteKeyRequest(name=key.name), timeout=20)
    check("it is deleted", deleted.state == keys_pb2.Key.STATE_DESTROYED)
    refusal = refused(crypto.UnwrapDek, unwrap_request())
    check(
        "its DEK is refused as the seed says",
        refusal.says(
            grpc.StatusCode.FAILED_PRECONDITION,
            "KEY_DESTROYED",
            status_reason="encryption_key_deleted",
            key_protect_code="KEY_DELETED_ERR",
        ),
    )

    nobody = keys_pb2_grpc.KeyServiceStub(channel(directory, None))
    try:
        nobody.GetKey(keys_pb2.GetKeyRequest(name=key.name), timeout=20)
        answered = True
    except grpc.RpcError as error:
        answered = error.code() != grpc.StatusCode.UNAVAILABLE
    check("without a client certificate there is no connection", not answered)
    print(f"client: all {check.passed} checks passed")


def many(check, crypto, crypto_pb2, unwrap_request, dek):
    """Batch and stream: each item succeeds or fails alone."""
    requests = [unwrap_request(), unwrap_request(aad=[]), unwrap_request()]
    results = crypto.BatchUnwrapDeks(
        crypto_pb2.BatchUnwrapDeksRequest(requests=requests), timeout=20
    ).results
    check(
        "of a batch the good ones unwrap and the bad one is refused",
        [result.WhichOneof("outcome") for result in results]
        == ["response", "refusal", "response"]
        and results[0].response.dek == dek
        and results[1].refusal.reason == "CIPHERTEXT_UNVERIFIED",
    )
    stream = (
        crypto_pb2.StreamUnwrapDeksRequest(id=number, request=requests[number % 3])
        for number in range(300)
    )
    answers = {answer.id: answer.result for answer in crypto.StreamUnwrapDeks(stream, timeout=60)}
    check(
        "a stream answers each of 300 by its id",
        sorted(answers) == list(range(300))
        and all(
            answer.response.dek == dek
            if number % 3 != 1
            else answer.refusal.reason == "CIPHERTEXT_UNVERIFIED"
            for number, answer in answers.items()
        ),
    )


def services(over):
    """Names of the services that reflection lists."""
    stub = reflection_pb2_grpc.ServerReflectionStub(over)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = stub.ServerReflectionInfo(iter([request]), timeout=20)
    return {service.name for answer in answers for service in answer.list_services_response.service}


if __name__ == "__main__":
    main()
