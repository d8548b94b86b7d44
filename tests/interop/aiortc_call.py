"""aiortc connections of one process call each other through their relayed addresses: sound, pictures and a data channel.

A call has sound or pictures: this version gives both the same number of a header extension, and then cannot read its own packets.

In: the URL of a TURN server, user, password, number of messages, and for turns: the authority's file. Out: one line of JSON: of each call the
frames that were decoded, packets lost, whether all messages came back, and the relayed candidates.
"""

import asyncio
import json
import os
import sys

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, VideoStreamTrack

PATIENCE = 30
FRAMES = 10


def relayed_only(description):
    """What the other side is told: nothing that leads around the relay."""
    lines = description.sdp.split("\r\n")
    kept = [line for line in lines if not line.startswith("a=candidate:") or " typ relay" in line]
    return RTCSessionDescription(sdp="\r\n".join(kept), type=description.type)


class Heard:
    """Counts the frames that one end decodes."""

    def __init__(self, connection):
        self.frames = 0
        self.enough = asyncio.Event()
        self.tasks = []
        connection.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.count(track))))

    async def count(self, track):
        try:
            while True:
                await track.recv()
                self.frames += 1
                if self.frames >= FRAMES:
                    self.enough.set()
        except MediaStreamError:
            pass


async def lost_packets(connection):
    stats = await connection.getStats()
    return sum(stat.packetsLost for stat in stats.values() if stat.type == "remote-inbound-rtp")


async def call(track, url, user, password, count):
    server = RTCIceServer(urls=[url], username=user, credential=password)
    ends = [RTCPeerConnection(RTCConfiguration([server])) for _ in range(2)]
    caller, callee = ends
    heard = [Heard(end) for end in ends]
    for end in ends:
        end.addTrack(track())
    messages = ["message %d of a call" % number for number in range(count)]
    returned, all_returned = [], asyncio.Event()
    channel = caller.createDataChannel("messages")

    @callee.on("datachannel")
    def on_datachannel(far):
        far.on("message", lambda message: far.send("back " + message))

    @channel.on("open")
    def on_open():
        for message in messages:
            channel.send(message)

    @channel.on("message")
    def on_message(message):
        returned.append(message)
        if len(returned) == count:
            all_returned.set()

    await caller.setLocalDescription(await caller.createOffer())
    await callee.setRemoteDescription(relayed_only(caller.localDescription))
    await callee.setLocalDescription(await callee.createAnswer())
    await caller.setRemoteDescription(relayed_only(callee.localDescription))
    await asyncio.wait_for(asyncio.gather(all_returned.wait(), *(one.enough.wait() for one in heard)), PATIENCE)
    report = {
        "returned": returned == ["back " + message for message in messages],
        "frames": min(one.frames for one in heard),
        "lost": sum([await lost_packets(end) for end in ends]),
        "candidates": sum(end.localDescription.sdp.count(" typ relay") for end in ends),
    }
    for end in ends:
        await end.close()
    return report


async def main(*words):
    sound, pictures = await asyncio.gather(call(AudioStreamTrack, *words), call(VideoStreamTrack, *words))
    print(json.dumps({"sound": sound, "pictures": pictures}))


if __name__ == "__main__":
    url, user, password, count = sys.argv[1:5]
    if len(sys.argv) > 5:
        # What aioice's TLS takes for the roots of the system.
        os.environ["SSL_CERT_FILE"] = sys.argv[5]
    asyncio.run(main(url, user, password, int(count)))
