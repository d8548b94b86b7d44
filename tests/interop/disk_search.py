"""Searches disks, dumps, logs and scrapes for values that must not be there. Standard library only; shares no code with what it judges.

    disk_search.py make COUNT           values for COUNT people and clients, as JSON: whoever drives the system uses these
    disk_search.py forms                the names of all forms in which a value may be written
    disk_search.py write FORM HEX       a value in this form, to standard output: to plant a leak
    disk_search.py dump DATABASE        all of a database as SQL
    disk_search.py search VALUES FILE…  VALUES: {"name": "hex", …}. Out: one line of JSON: bytes, values, patterns, and each hit

A value counts as found where twelve bytes of one of its forms stand, from its beginning or from its end.
"""

import base64
import ipaddress
import json
import os
import sqlite3
import sys

PIECE = 12
BLOCK = 4096


def moved(value, places):
    """Base64 of the value where `places` bytes stand before it: only the characters that are the value's alone."""
    text = base64.b64encode(bytes(places) + value)
    return text[(places * 8 + 5) // 6 : (places + len(value)) * 8 // 6]


def wide(text, order):
    return text.decode("latin-1").encode("utf-16-" + order)


def bencoded(value):
    return str(len(value)).encode() + b":" + value


FORMS = {
    "raw": lambda value: value,
    "reversed": lambda value: value[::-1],
    "hex": lambda value: value.hex().encode(),
    "HEX": lambda value: value.hex().upper().encode(),
    "hex of reversed": lambda value: value[::-1].hex().encode(),
    "hex, reversed": lambda value: value.hex().encode()[::-1],
    "base64 at 0": lambda value: moved(value, 0),
    "base64 at 1": lambda value: moved(value, 1),
    "base64 at 2": lambda value: moved(value, 2),
    "base64url at 0": lambda value: moved(value, 0).translate(URL),
    "base64url at 1": lambda value: moved(value, 1).translate(URL),
    "base64url at 2": lambda value: moved(value, 2).translate(URL),
    "base64, reversed": lambda value: moved(value, 0)[::-1],
    "UTF-16 LE": lambda value: wide(value, "le"),
    "UTF-16 BE": lambda value: wide(value, "be"),
    "UTF-16 LE of hex": lambda value: wide(value.hex().encode(), "le"),
    "UTF-16 BE of hex": lambda value: wide(value.hex().encode(), "be"),
    "UTF-16 LE of base64": lambda value: wide(moved(value, 0), "le"),
    "bencode": bencoded,
    "bencode of hex": lambda value: bencoded(value.hex().encode()),
    "numbers": lambda value: ", ".join(str(byte) for byte in value).encode(),
}
URL = bytes.maketrans(b"+/", b"-_")


def patterns(values):
    """By their first bytes: all of a pattern, whose it is and how it is written."""
    found = {}
    for name, value in values.items():
        for form, write in FORMS.items():
            text = write(value)
            if form.startswith("bencode"):
                text = text.partition(b":")[2]
            # A number is up to five characters, a wide one two bytes.
            length = PIECE * (4 if form == "numbers" else 2 if form.startswith("UTF-16") else 1)
            for piece in {text[:length], text[-length:]}:
                found.setdefault(piece[:PIECE], []).append((piece, name, form))
    return found


def used(path):
    """What is in the file, without whole blocks of zeros: a disk has many."""
    runs, length = [], 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            length += len(block)
            if any(block):
                runs.append(block)
    return b"".join(runs), length


def search(values_file, *files):
    with open(values_file) as file:
        values = {name: bytes.fromhex(value) for name, value in json.load(file).items()}
    short = [name for name, value in values.items() if len(value) < PIECE]
    if short:
        sys.exit(f"too short to be told from chance: {short}")
    wanted, hits, total = patterns(values), {}, 0
    for path in files:
        data, length = used(path)
        total += length
        for place in [place for place in range(len(data)) if data[place : place + PIECE] in wanted]:
            for piece, name, form in wanted[data[place : place + PIECE]]:
                if data.startswith(piece, place):
                    around = repr(data[max(place - 40, 0) : place + 60])
                    hits.setdefault((path, name, form), around)
    hits = [dict(zip(("file", "value", "form", "around"), (*key, around))) for key, around in hits.items()]
    print(json.dumps({"bytes": total, "values": len(values), "patterns": len(wanted), "hits": hits}))


def make(count):
    """A seed, a token, a wakeup key, a text, a name, a password and an address each."""
    person = lambda: {
        **{name: os.urandom(size).hex() for name, size in (("seed", 32), ("token", 32), ("key", 32), ("text", 300))},
        "name": "user-" + os.urandom(9).hex(),
        "password": base64.b32encode(os.urandom(20)).decode(),
        "address": str(ipaddress.IPv6Address(b"\x2a\x0f" + os.urandom(14))),
    }
    print(json.dumps([person() for _ in range(int(count))]))


def dump(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    for line in connection.iterdump():
        print(line)


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "forms":
        print("\n".join(FORMS))
    elif command == "write":
        sys.stdout.buffer.write(FORMS[words[0]](bytes.fromhex(words[1])))
    else:
        {"make": make, "search": search, "dump": dump}[command](*words)
