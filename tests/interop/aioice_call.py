"""Two aioice clients of one TURN server talk through their relayed addresses.

In: address and port of the server, transport (udp, tcp or tls), user, password, number of messages, seconds between them, and for tls
the authority's file. Out: one line of JSON that counts what was sent, what came to the other side, and what came back. A message that
is not what was sent does not count.
"""

import asyncio
import json
import ssl
import sys
import time

from aioice import turn

PATIENCE = 20


class Collector(asyncio.DatagramProtocol):
    """Keeps what comes; the side that answers sends it back, too."""

    def __init__(self, answers):
        self.answers = answers
        self.transport = None
        self.received = []

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        pass

    def datagram_received(self, data, addr):
        self.received.append((data, addr))
        if self.answers:
            self.transport.sendto(b"back " + data, addr)


async def main(host, port, transport, user, password, count, pause, authority):
    tls = ssl.create_default_context(cafile=authority) if transport == "tls" else False
    asked = {
        "server_addr": (host, port),
        "username": user,
        "password": password,
        "transport": "udp" if transport == "udp" else "tcp",
        "ssl": tls,
    }
    caller, near = await turn.create_turn_endpoint(lambda: Collector(False), **asked)
    callee, far = await turn.create_turn_endpoint(lambda: Collector(True), **asked)
    caller_address = caller.get_extra_info("sockname")
    callee_address = callee.get_extra_info("sockname")
    # What comes before both have permitted each other is dropped, as it must be.
    deadline = time.monotonic() + PATIENCE
    while (b"back hello", callee_address) not in near.received and time.monotonic() < deadline:
        callee.sendto(b"hello", caller_address)
        caller.sendto(b"hello", callee_address)
        await asyncio.sleep(0.1)

    sent = [b"message %d of a call" % number for number in range(count)]
    started = time.monotonic()
    for message in sent:
        caller.sendto(message, callee_address)
        await asyncio.sleep(pause)
    expected = {(b"back " + message, callee_address) for message in sent}
    while not expected <= set(near.received) and time.monotonic() < deadline + count * pause:
        await asyncio.sleep(0.01)
    seconds = time.monotonic() - started
    arrived = [data for data, source in far.received if source == caller_address]
    returned = [data for data, source in near.received if source == callee_address]
    caller.close()
    callee.close()
    await asyncio.sleep(0.1)
    print(
        json.dumps(
            {
                "sent": len(sent),
                "arrived": sum(message in arrived for message in sent),
                "returned": sum(b"back " + message in returned for message in sent),
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    host, port, transport, user, password, count, pause = sys.argv[1:8]
    authority = sys.argv[8] if len(sys.argv) > 8 else None
    asyncio.run(main(host, int(port), transport, user, password, int(count), float(pause), authority))
