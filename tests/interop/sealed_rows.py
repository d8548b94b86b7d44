"""What somebody with the disk and the row keys reads of a notifier. Shares no code with it: sqlite3, hashlib and libsodium.

In: the key file, the folder of the databases. Out: one line of JSON: counts by kind and key, and what the rows say. The formats are those
that the sources of the notifier describe: docs of keyring.rs, subscription/row.rs, seal/row.rs, store/sqlite/sealed.rs,
outbox/sqlite/sealed.rs.
"""

import collections
import ctypes
import ctypes.util
import hashlib
import json
import os
import sqlite3
import struct
import sys

SODIUM = ctypes.CDLL(ctypes.util.find_library("sodium") or "libsodium.so.23")
NONCE, TAG = 24, 16


def keyed(key, *parts):
    text = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return hashlib.blake2b(text, key=key, digest_size=32).digest()


def keys_of(path):
    text = open(path, "rb").read()
    if len(text) == 32:
        return [text]
    return [bytes.fromhex(line.strip()) for line in text.decode().splitlines() if line.strip()]


class Ring:
    """All keys of the file, for one purpose."""

    def __init__(self, keys, purpose):
        self.keys = {}
        for key in keys:
            identity = max(int.from_bytes(keyed(key, b"id of a row key")[:4], "big"), 1)
            self.keys[identity] = keyed(key, b"sealed rows", purpose)

    def open(self, identity, place, sealed):
        """The content, or None."""
        key = self.keys.get(identity)
        if key is None or len(sealed) < NONCE + 4 + TAG:
            return None
        nonce, text = sealed[:NONCE], sealed[NONCE:]
        context = place + struct.pack(">I", identity)
        plain = ctypes.create_string_buffer(len(text))
        length = ctypes.c_ulonglong()
        failed = SODIUM.crypto_aead_xchacha20poly1305_ietf_decrypt(
            plain, ctypes.byref(length), None, text, ctypes.c_ulonglong(len(text)),
            context, ctypes.c_ulonglong(len(context)), nonce, key)
        if failed:
            return None
        plain = plain.raw[: length.value]
        size = struct.unpack(">I", plain[:4])[0]
        return plain[4 : 4 + size] if size <= len(plain) - 4 else None


class Reader:
    def __init__(self, data):
        self.rest = data

    def take(self, count):
        if len(self.rest) < count:
            raise ValueError("cut off")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]


def target(reader):
    service = reader.number(">B")
    return service, reader.take(reader.number(">H"))


def subscription(content):
    """Account, token and wakeup key; None if it is no subscription."""
    try:
        reader = Reader(content)
        if reader.number(">B") != 1:
            return None
        flags = reader.number(">B")
        account = reader.take(33)
        _, token = target(reader)
        reader.take(32 if flags & FLAG_SESSION else 0)
        reader.take(100 if flags & FLAG_SUBACCOUNT else 0)
        reader.take(8 + 64)
        key = reader.take(32)
        reader.take(2 * reader.number(">H"))
        return None if reader.rest else (account, token, key)
    except (ValueError, struct.error):
        return None


FLAG_SESSION, FLAG_SUBACCOUNT = 1, 2


def wakeup_token(content):
    try:
        reader = Reader(content)
        if reader.number(">B") != 1:
            return None
        reader.take(2 + 8)
        return target(reader)[1]
    except (ValueError, struct.error):
        return None


def rows(path, query):
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def store(path, keys):
    ring, found = Ring(keys, b"subscriptions"), []
    kinds = collections.Counter()
    for lookup, day, identity, row in rows(path, "SELECT lookup, expires_day, key_id, row FROM subscription"):
        content = ring.open(identity, struct.pack(">qq", lookup, day), row)
        one = subscription(content[32:]) if content else None
        if subscription(row):
            kinds["plain"] += 1
        elif one:
            kinds[f"Subscriptions under {identity:08x}"] += 1
            found.append([part.hex() for part in one])
        elif content and content[32:] == b"\x02":
            kinds[f"Marks of accounts that bind under {identity:08x}"] += 1
        else:
            kinds["unopened"] += 1
    return kinds, found


def outbox(path, keys):
    ring, tokens = Ring(keys, b"outbox"), []
    kinds = collections.Counter()
    for number, day, identity, row in rows(path, "SELECT id, expires_day, key_id, row FROM entry"):
        content = ring.open(identity, b"r" + struct.pack(">qq", number, day), row)
        token = wakeup_token(content) if content else None
        kinds["unopened" if token is None else f"Wakeups on their way under {identity:08x}"] += 1
        if token is not None:
            tokens.append(token.hex())
    for day, identity, marks in rows(path, "SELECT expires_day, key_id, marks FROM marks"):
        content = ring.open(identity, b"m" + struct.pack(">q", day), marks)
        is_known = content and len(content) % 16 == 8
        kinds[f"Marks of messages under {identity:08x}" if is_known else "unopened"] += 1
    return kinds, tokens


def free_pages(path):
    """How many, and how many of them hold anything. Only of a file that nobody writes."""
    data = open(path, "rb").read()
    size = struct.unpack(">H", data[16:18])[0]
    size = 65536 if size == 1 else size
    page = lambda number: data[(number - 1) * size : number * size]
    count, holding = 0, 0
    trunk = struct.unpack(">I", data[32:36])[0]
    while trunk:
        words = struct.unpack(f">{size // 4}I", page(trunk))
        holding += any(word > len(data) // size for word in words[2:])
        holding += sum(any(page(leaf)) for leaf in words[2 : 2 + words[1]])
        count += 1 + words[1]
        trunk = words[0]
    return count, holding


def main(key_file, folder):
    keys = keys_of(key_file)
    subscriptions, outbox_file = (os.path.join(folder, name) for name in ("subscriptions.db", "outbox.db"))
    kinds, people = store(subscriptions, keys)
    waiting, tokens = outbox(outbox_file, keys)
    free = [free_pages(path) for path in (subscriptions, outbox_file)]
    logs = [path + "-wal" for path in (subscriptions, outbox_file)]
    nodes = open(os.path.join(folder, "nodes.json"), "rb").read()
    nodes_key = int.from_bytes(nodes[1:5], "big")
    print(json.dumps({
        "store": kinds,
        "people": sorted(people),
        "outbox": waiting,
        "waiting": sorted(tokens),
        "free_pages": sum(count for count, _ in free),
        "free_pages_holding": sum(holding for _, holding in free),
        "log_bytes": sum(os.path.getsize(log) for log in logs if os.path.exists(log)),
        "node_list": f"{nodes_key:08x}" if Ring(keys, b"node list").open(nodes_key, b"node list", nodes[5:]) else None,
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
