// Calls between two connections of this page, which know nothing of each other but what signalling would carry.
//
// In: two configurations of a call, from whoever drives the browser. Out: what getStats says of both ends. Never: contacts anything but
// the ICE servers it is given.
"use strict";

const calls = new Map();

/// One fake microphone and camera for all calls; small pictures, so that many calls fit on a few cores.
let devices;
const microphoneAndCamera = () =>
  (devices ??= navigator.mediaDevices.getUserMedia({
    audio: true,
    video: { width: 160, height: 120, frameRate: 10 },
  }));

/// Each side: `config` for the browser, `only` (a pattern of the candidates that the other side is told; all without it), `onlyTold`.
async function begin(name, sides) {
  const started = performance.now();
  const call = { ends: [], errors: [], sent: 0, returned: 0, started };
  calls.set(name, call);
  const stream = await microphoneAndCamera();
  call.ends = sides.map((side) => new RTCPeerConnection(side.config));
  const [caller, callee] = call.ends;
  call.ends.forEach((end, number) => {
    const other = call.ends[1 - number];
    const only = new RegExp(sides[number].only ?? "");
    end.onicecandidate = ({ candidate }) => {
      if (!candidate || only.test(candidate.candidate)) other.addIceCandidate(candidate ?? undefined).catch(note(call));
    };
    end.onicecandidateerror = ({ url, errorCode, errorText }) => call.errors.push(`${url} ${errorCode} ${errorText}`);
    stream.getTracks().forEach((track) => end.addTrack(track, stream));
  });
  callee.ondatachannel = ({ channel }) => (channel.onmessage = ({ data }) => channel.readyState === "open" && channel.send(data));
  // What is lost shall stay lost, so that it can be counted.
  call.channel = caller.createDataChannel("numbers", { ordered: false, maxRetransmits: 0 });
  call.channel.onmessage = () => (call.returned += 1);
  call.channel.onopen = () => (call.talk = setInterval(() => call.channel.send(String((call.sent += 1))), 20));
  const connected = Promise.all(call.ends.map(reached));
  await caller.setLocalDescription();
  await callee.setRemoteDescription(caller.localDescription);
  await callee.setLocalDescription();
  await caller.setRemoteDescription(callee.localDescription);
  await connected;
  call.setup = performance.now() - started;
  return call.setup;
}

const note = (call) => (fault) => call.errors.push(String(fault));

/// Longest time until a call stands: milliseconds.
const PATIENCE = 120_000;

/// Until ICE and DTLS are done.
const reached = (end) =>
  new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`a connection is only ${end.connectionState}`)), PATIENCE);
    end.onconnectionstatechange = () => {
      if (end.connectionState === "connected") resolve();
      if (end.connectionState === "failed") reject(new Error("a connection failed"));
    };
  });

/// Both ends as getStats sees them.
async function report(name) {
  const call = calls.get(name);
  const ends = await Promise.all(call.ends.map(endOf));
  return { ends, sent: call.sent, returned: call.returned, setup: call.setup ?? null, errors: call.errors };
}

async function endOf(end) {
  const stats = [...(await end.getStats()).values()];
  const ofType = (type) => stats.filter((stat) => stat.type === type);
  const byId = (id) => stats.find((stat) => stat.id === id) ?? {};
  const pair = byId(ofType("transport")[0]?.selectedCandidatePairId);
  const [local, remote] = [byId(pair.localCandidateId), byId(pair.remoteCandidateId)];
  const inbound = (kind) => ofType("inbound-rtp").find((stat) => stat.kind === kind) ?? {};
  const [audio, video] = [inbound("audio"), inbound("video")];
  return {
    state: end.connectionState,
    local: local.candidateType ?? "",
    localAddress: local.address ?? "",
    relayProtocol: local.relayProtocol ?? "",
    url: local.url ?? "",
    remote: remote.candidateType ?? "",
    remoteAddress: remote.address ?? "",
    roundTrips: pair.responsesReceived ?? 0,
    roundTripSeconds: pair.currentRoundTripTime ?? null,
    bytesReceived: pair.bytesReceived ?? 0,
    audioPackets: audio.packetsReceived ?? 0,
    audioLost: audio.packetsLost ?? 0,
    videoPackets: video.packetsReceived ?? 0,
    videoLost: video.packetsLost ?? 0,
    framesDecoded: video.framesDecoded ?? 0,
  };
}

/// Until both ends have received this much more than `since`, a report; or until the time is over, which the reader of the report sees.
async function heard(name, least, patience) {
  const deadline = performance.now() + patience;
  const first = await report(name);
  for (;;) {
    const now = await report(name);
    const grew = (key) => now.ends.every((end, number) => end[key] - first.ends[number][key] >= least[key]);
    const whole = Object.keys(least).every((key) => (key === "returned" ? now.returned - first.returned >= least.returned : grew(key)));
    if (whole || performance.now() > deadline || now.ends.some((end) => end.state === "failed")) return { ...now, whole };
    // getStats tells no events.
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function end(name) {
  const call = calls.get(name);
  clearInterval(call.talk);
  call.ends.forEach((one) => one.close());
  calls.delete(name);
}
