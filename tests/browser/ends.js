// One end of a call whose other end is in another browser, in another network.
//
// In: a configuration, and what the other end signals. Out: what this end signals, and what getStats and its own clocks say of the call. Never:
// contacts anything but the ICE servers it is given.
"use strict";

const ends = new Map();

/// Milliseconds between two numbers, two texts, two looks at what came, and two restarts of ICE.
const EACH = { number: 20, text: 100, look: 50, restart: 6_000 };
/// Fills packets: a text is more than one of them takes.
const TEXT = "…".padEnd(1_500, "quietline ");

/// Caller and callee speak, show pictures, and send numbers (what is lost stays lost) and texts (all of them, in order). The caller makes all offers.
/// When its ICE is cut off it restarts it, from then on with the configuration `later`, if there is one.
async function join(name, isCaller, config, later) {
  const stream = await microphoneAndCamera();
  const connection = new RTCPeerConnection(config);
  const end = {
    connection, later, started: performance.now(), connectedAt: null, signals: [], errors: [], states: [], restarts: 0,
    audio: beat(), numbers: beat(), texts: beat(), numbersSent: 0, highestNumber: 0, textsSent: 0, isInOrder: true,
  };
  ends.set(name, end);
  const signal = (one) => {
    end.signals.push(one);
    end.wake?.();
  };
  end.signal = signal;
  connection.onicecandidate = ({ candidate }) => candidate && signal({ candidate: candidate.toJSON() });
  connection.onicecandidateerror = ({ url, errorCode, errorText }) => end.errors.push(`${url} ${errorCode} ${errorText}`);
  connection.oniceconnectionstatechange = () => {
    end.states.push(`${connection.iceConnectionState} at ${Math.round(performance.now() - end.started)} ms`);
    if (isCaller) mend(end);
  };
  connection.onconnectionstatechange = () => {
    if (connection.connectionState === "connected") end.connectedAt ??= performance.now() - end.started;
  };
  if (isCaller) connection.onnegotiationneeded = () => describe(end).catch(note(end));
  stream.getTracks().forEach((track) => connection.addTrack(track, stream));

  const numbers = connection.createDataChannel("numbers", { negotiated: true, id: 0, ordered: false, maxRetransmits: 0 });
  const texts = connection.createDataChannel("texts", { negotiated: true, id: 1 });
  numbers.onmessage = ({ data }) => {
    end.highestNumber = Math.max(end.highestNumber, Number(data));
    hit(end.numbers);
  };
  texts.onmessage = ({ data }) => {
    if (data !== end.texts.count + TEXT) end.isInOrder = false;
    hit(end.texts);
  };
  const whileOpen = (channel, milliseconds, send) =>
    (channel.onopen = () => end.timers.push(setInterval(() => channel.readyState === "open" && send(), milliseconds)));
  end.timers = [setInterval(() => look(end).catch(note(end)), EACH.look)];
  whileOpen(numbers, EACH.number, () => numbers.send(String((end.numbersSent += 1))));
  // A channel that is cut off must not fill its queue: a call that is heard again has no use for old words.
  whileOpen(texts, EACH.text, () => texts.bufferedAmount < 100_000 && texts.send(end.textsSent++ + TEXT));
}

async function describe(end) {
  await end.connection.setLocalDescription();
  end.signal({ description: end.connection.localDescription.toJSON() });
}

/// Until ICE stands again. The other end needs no sign but the new offer.
function mend(end) {
  clearTimeout(end.again);
  if (!["disconnected", "failed"].includes(end.connection.iceConnectionState)) return;
  if (end.later) end.connection.setConfiguration(end.later);
  end.restarts += 1;
  end.connection.restartIce();
  end.again = setTimeout(() => mend(end), EACH.restart);
}

/// What the other end is to be told next; null when this one has hung up.
async function signals(name) {
  const end = ends.get(name);
  if (!end) return null;
  if (end.signals.length === 0) await new Promise((resolve) => (end.wake = resolve));
  return ends.has(name) ? end.signals.splice(0) : null;
}

async function take(name, signals) {
  const end = ends.get(name);
  for (const { description, candidate } of signals) {
    try {
      if (candidate) await end.connection.addIceCandidate(candidate);
      if (!description) continue;
      if (description.type === "offer" && end.later) end.connection.setConfiguration(end.later);
      await end.connection.setRemoteDescription(description);
      if (description.type === "offer") await describe(end);
    } catch (fault) {
      note(end)(fault);
    }
  }
}

/// What comes again and again: how often, when last, and the longest pause.
const beat = () => ({ count: 0, last: null, pause: 0 });

function hit(beat, count = beat.count + 1) {
  const now = performance.now();
  if (beat.last !== null) beat.pause = Math.max(beat.pause, now - beat.last);
  Object.assign(beat, { count, last: now });
}

/// Sound has no event for each packet.
async function look(end) {
  for (const receiver of end.connection.getReceivers().filter(({ track }) => track.kind === "audio")) {
    for (const stat of (await receiver.getStats()).values()) {
      if (stat.type === "inbound-rtp" && stat.packetsReceived > end.audio.count) hit(end.audio, stat.packetsReceived);
    }
  }
}

/// From now on pauses are measured anew; one that lasts counts whole.
function forgetPauses(name) {
  const end = ends.get(name);
  for (const one of [end.audio, end.numbers, end.texts]) one.pause = 0;
}

async function reportOfEnd(name) {
  const end = ends.get(name);
  const sent = (kind, stats) => stats.find((stat) => stat.type === "outbound-rtp" && stat.kind === kind)?.packetsSent ?? 0;
  const stats = [...(await end.connection.getStats()).values()];
  return {
    ...(await endOf(end.connection)),
    ice: end.connection.iceConnectionState,
    connectedAt: end.connectedAt,
    audioSent: sent("audio", stats),
    videoSent: sent("video", stats),
    numbers: end.numbers.count,
    numbersSent: end.numbersSent,
    numbersLost: end.highestNumber - end.numbers.count,
    texts: end.texts.count,
    isInOrder: end.isInOrder,
    audioPause: end.audio.pause,
    numbersPause: end.numbers.pause,
    restarts: end.restarts,
    states: end.states,
    errors: end.errors,
  };
}

/// Until this end has received so much more than it had, a report; or until the time is over, which the reader of the report sees.
async function grown(name, least, patience) {
  const deadline = performance.now() + patience;
  const first = await reportOfEnd(name);
  for (;;) {
    const now = await reportOfEnd(name);
    const whole = Object.keys(least).every((key) => now[key] - first[key] >= least[key]);
    if (whole || performance.now() > deadline) return { ...now, whole };
    // getStats tells no events.
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function leave(name) {
  const end = ends.get(name);
  end.timers.forEach(clearInterval);
  clearTimeout(end.again);
  end.connection.close();
  ends.delete(name);
  end.wake?.();
}
