"""Copies objects of a SoftHSM token under other ids, for benchmarks that need more keys than
SoftHSM makes in a day: it looks at every object to make one more.

A copy has the same key as its model, and another CKA_ID and label. What is written here of
SoftHSM 2's files is from its source: OSAttribute.h, ObjectFile.cpp, File.cpp (an object is a
file of attributes: type, kind and value, numbers in 64 bits, big-endian), SecureDataManager.cpp
and RFC4880.cpp (byte strings of private objects are sealed by AES-256-CBC with a key of the
token, which the PIN opens).
"""

import hashlib
import os
import pathlib
import struct
import uuid

from Crypto.Cipher import AES
from Crypto.Util.Padding import pad, unpad

CKA_LABEL = 0x3
CKA_ID = 0x102
CKA_OS_USERPIN = 0x8000534D
BOOLEAN, NUMBER, BYTES, MECHANISMS, NESTED = 1, 2, 3, 5, 4
MAGIC = b"RJR"
FEWEST_HASHES = 1500


class Token:
    """A token that is not in use."""

    def __init__(self, directory: pathlib.Path, pin: bytes):
        self.directory = directory
        sealed = dict(attributes((directory / "token.object").read_bytes()))
        self.key = _key_of(sealed[CKA_OS_USERPIN], pin)

    def models(self):
        """Files of objects by their CKA_ID."""
        found = {}
        for path in self.directory.glob("*.object"):
            if path.name == "token.object":
                continue
            whole = path.read_bytes()
            identity = dict(attributes(whole)).get(CKA_ID)
            if identity is not None:
                found.setdefault(self.open(identity), []).append(whole)
        return found

    def copy(self, model: bytes, old: bytes, new: bytes):
        """Writes a copy of that file, with the CKA_ID `new` in place of `old`."""
        whole = model
        for kind, value in attributes(model):
            if kind == CKA_ID:
                changed = self.seal(new)
            elif kind == CKA_LABEL:
                changed = self.seal(self.open(value).replace(_text(old), _text(new)))
            else:
                continue
            if len(changed) != len(value):
                raise ValueError("a copy is as long as its model")
            whole = whole.replace(value, changed)
        name = uuid.uuid4()
        (self.directory / f"{name}.object").write_bytes(whole)
        (self.directory / f"{name}.lock").touch()

    def seal(self, plain):
        iv = os.urandom(16)
        return iv + AES.new(self.key, AES.MODE_CBC, iv).encrypt(pad(plain, 16))

    def open(self, sealed):
        return _open(self.key, sealed)


def attributes(whole: bytes):
    """Types and values of all byte strings in a file."""
    at, found = 8, []
    while at < len(whole):
        kind, form = struct.unpack_from(">QQ", whole, at)
        at += 16
        if form == BOOLEAN:
            at += 1
        elif form == NUMBER:
            at += 8
        elif form == BYTES:
            (length,) = struct.unpack_from(">Q", whole, at)
            found.append((kind, whole[at + 8 : at + 8 + length]))
            at += 8 + length
        elif form == NESTED:
            at += 8 + struct.unpack_from(">Q", whole, at)[0]
        elif form == MECHANISMS:
            at += 8 + 8 * struct.unpack_from(">Q", whole, at)[0]
        else:
            raise ValueError(f"an attribute of kind {form}")
    return found


def _key_of(sealed, pin):
    """The key of the token, from its copy that is sealed with the user PIN."""
    salt = sealed[:8]
    key = hashlib.sha256(salt + pin).digest()
    for _ in range(FEWEST_HASHES + salt[-1] - 1):
        key = hashlib.sha256(key).digest()
    opened = _open(key, sealed[8:])
    if not opened.startswith(MAGIC):
        raise ValueError("the PIN does not open the key of the token")
    return opened[len(MAGIC) :]


def _open(key, sealed):
    return unpad(AES.new(key, AES.MODE_CBC, sealed[:16]).decrypt(sealed[16:]), 16)


def _text(identity: bytes) -> bytes:
    return str(uuid.UUID(bytes=identity)).encode()
