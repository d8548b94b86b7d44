"use strict";
// Calls this browser makes with itself through the relay. What relay and browser say is shown as text and never as markup.

const GATHER = 11_000, CONNECT = 9_000, PING_EVERY = 20, PINGS = 200, PING_LENGTH = 172, LATE = 1_500, PAIRING = 500;
const FLOOD_TIME = 1_000, FLOOD_LOOK = 50, FLOOD_LENGTH = 1_100, FLOOD_AHEAD = 65_536, CLOCK = 60_000;
const KINDS = { udp: "UDP", tcp: "TCP", tls: "TLS" };
const place = (id) => document.getElementById(id);
const root = document.documentElement;

function make(tag, words, kind) {
  const element = document.createElement(tag);
  if (words !== undefined) element.textContent = words;
  if (kind) element.className = kind;
  return element;
}

const wait = (time) => new Promise((done) => setTimeout(done, time));
const within = (time, promise) => Promise.race([promise, wait(time).then(() => null)]);
const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

// ---- What the relay says

async function begin() {
  const asked = Date.now();
  const answer = await fetch("start", { method: "POST", cache: "no-store" });
  if (!answer.ok) throw new Error(await answer.text());
  const facts = await answer.json();
  // The relay's clock was read somewhere between question and answer.
  facts.ahead = facts.now < asked - CLOCK || facts.now > Date.now() + CLOCK ? facts.now - Date.now() : 0;
  return facts;
}

function wayOf(url) {
  const parts = /^(turns?):(\[.*\]|[^:?]*):(\d+)\?transport=(\w+)$/.exec(url) ?? [url, "turn", url, "", "udp"];
  const kind = parts[1] === "turns" ? "tls" : parts[4] === "tcp" ? "tcp" : "udp";
  const host = parts[2].replace(/[[\]]/g, "");
  return { url, kind, host, family: familyOf(host), port: Number(parts[3]), stun: `stun:${parts[2]}:${parts[3]}` };
}

// Of a name there is none.
const familyOf = (address) => (address?.includes(":") ? "IPv6" : /^[\d.]+$/.test(address) ? "IPv4" : undefined);

// ---- One call

const same = (candidate) => candidate;

// Two ends in this page: what each may use, and what the first is told of a candidate of the second, if anything.
function ends(near, far, told = same) {
  const call = { errors: [], near: [], far: [], ends: [new RTCPeerConnection(near), new RTCPeerConnection(far)] };
  const [a, b] = call.ends;
  call.channel = a.createDataChannel("check", { ordered: false, maxRetransmits: 0 });
  call.arrived = new Promise((done) => (b.ondatachannel = (event) => done(event.channel)));
  call.open = new Promise((done) => (call.channel.onopen = () => done(true)));
  call.gathered = new Promise((done) => {
    const first = (event) => (event.candidate?.candidate ? done(true) : a.iceGatheringState === "complete" && done(false));
    a.addEventListener("icecandidate", first);
    a.addEventListener("icegatheringstatechange", () => a.iceGatheringState === "complete" && done(call.near.length > 0));
  });
  for (const [own, other, list, hand] of [[a, b, call.near, same], [b, a, call.far, told]]) {
    own.addEventListener("icecandidate", async ({ candidate }) => {
      if (!candidate?.candidate) return;
      list.push(candidate);
      const handed = hand(candidate);
      await call.ready;
      if (handed) other.addIceCandidate(handed).catch(() => {});
    });
    own.addEventListener("icecandidateerror", (event) => {
      if (call.errors.length < 20) call.errors.push({ code: event.errorCode, words: event.errorText });
    });
  }
  // Candidates that are known by then would pass with the description, and pass nobody who looks at them.
  const described = ({ type, sdp }) => ({ type, sdp: sdp.replace(/^a=(candidate:|end-of-candidates).*\r\n/gm, "") });
  call.ready = (async () => {
    await a.setLocalDescription();
    await b.setRemoteDescription(described(a.localDescription));
    await b.setLocalDescription();
    await a.setRemoteDescription(described(b.localDescription));
  })().catch(() => {});
  return call;
}

const close = (call) => call.ends.forEach((end) => end.close());

// Packets as a voice call sends them; each comes back from the other end.
async function ping(channel, far, seen) {
  const sent = [], back = new Map();
  far.binaryType = channel.binaryType = "arraybuffer";
  far.onmessage = ({ data }) => far.readyState === "open" && far.send(data);
  channel.onmessage = ({ data }) => {
    const number = new DataView(data).getUint32(0);
    if (sent[number] === undefined || back.has(number)) return;
    back.set(number, performance.now() - sent[number]);
    seen(number, back.get(number));
  };
  const began = performance.now();
  for (let number = 0; number < PINGS && channel.readyState === "open"; number += 1) {
    const packet = new DataView(new ArrayBuffer(PING_LENGTH));
    packet.setUint32(0, number);
    sent[number] = performance.now();
    channel.send(packet);
    await wait(Math.max(0, began + (number + 1) * PING_EVERY - performance.now()));
  }
  const deadline = performance.now() + LATE;
  while (back.size < sent.length && performance.now() < deadline) await wait(PING_EVERY);
  sent.forEach((_, number) => back.has(number) || seen(number, null));
  return { sent: sent.length, times: [...back.values()] };
}

// As much as goes through in a second: so much the relay lets through at once, whatever its [limits] bandwidth_per_allocation.
async function flood(channel, far, seen) {
  let bytes = 0, first = 0, last = 0, counted = 0, step = 0;
  far.onmessage = ({ data }) => {
    last = performance.now();
    first ||= last;
    bytes += data.byteLength;
  };
  const packet = new Uint8Array(FLOOD_LENGTH), began = performance.now();
  let looked = began;
  for (let now = began; now < began + FLOOD_TIME && channel.readyState === "open"; now = performance.now()) {
    while (channel.bufferedAmount < FLOOD_AHEAD) channel.send(packet);
    if (now - looked >= FLOOD_LOOK) {
      seen(step++, ((bytes - counted) * 8) / (now - looked) / 1_000);
      [looked, counted] = [now, bytes];
    }
    await wait(4);
  }
  return last > first ? (bytes * 8) / (last - first) / 1_000 : 0;
}

// ---- What is tried

async function tryWay(way, facts, shown) {
  const server = { urls: [way.url], username: facts.server.username, credential: facts.server.credential };
  const relayed = { iceServers: [server], iceTransportPolicy: "relay" };
  const began = performance.now(), call = ends(relayed, relayed);
  const result = { way, errors: call.errors, candidates: call.near };
  try {
    result.allocated = Boolean(await within(GATHER, call.gathered));
    if (!result.allocated) return result;
    shown.state("connecting");
    const open = await within(CONNECT, Promise.all([call.open, call.arrived]));
    if (!open) return result;
    result.setUp = performance.now() - began;
    shown.state("calling");
    const echoes = await ping(call.channel, open[1], shown.echo);
    Object.assign(result, { sent: echoes.sent, times: echoes.times, works: echoes.times.length > echoes.sent / 2 });
    shown.figures(result);
    if (result.works) result.speed = await flood(call.channel, open[1], shown.speed);
    return result;
  } finally {
    close(call);
  }
}

// Two ends that share a relay meet inside of it. One that has no relay proves that the world reaches relayed addresses, if nothing was
// sent to it first: what goes out through a firewall lets the answer in. A permission is for all ports of an address (RFC 8656 §9), so the
// relayed end is told of a port where nobody is.
async function tryOutside(ways, facts) {
  const server = { urls: [ways[0].url], username: facts.server.username, credential: facts.server.credential };
  // Of all, since each tells the second end its address of one family only.
  const stun = { urls: ways.map((way) => way.stun) };
  const call = ends({ iceServers: [server], iceTransportPolicy: "relay" }, { iceServers: [stun] }, besides);
  try {
    const works = Boolean(await within(CONNECT, call.open));
    const own = call.far.filter((candidate) => candidate.type === "srflx").map((candidate) => candidate.address);
    return { works, own, relayed: call.near.map((candidate) => candidate.address) };
  } finally {
    close(call);
  }
}

// The same address, and a port so far away that no NAT which counts its ports up gives it out next. A host candidate may be the address
// that the world sees, hidden behind a name, so only the others are told.
function besides({ type, candidate, sdpMid, sdpMLineIndex, usernameFragment }) {
  if (type !== "srflx") return null;
  const elsewhere = (port) => (port < 32_768 ? port + 16_384 : port - 16_384);
  const moved = candidate.replace(/^((?:\S+ ){5})(\d+)/, (_, before, port) => before + elsewhere(Number(port)));
  return { candidate: moved, sdpMid, sdpMLineIndex, usernameFragment };
}

// The families that this network has, if the relay has both; empty if it cannot be told. A browser hides its own addresses, but pairs each
// only with those of the same family (RFC 8445 §6.1.2.2). What it pairs and did not tell before is no address: a socket for any.
async function familiesHere(ways) {
  const there = new Map(ways.filter((way) => way.kind === "udp" && way.family).map((way) => [way.family, way]));
  if (there.size < 2) return new Set();
  const call = ends({}, {}, () => null), [own] = call.ends;
  try {
    await call.ready;
    for (const { host, port } of there.values())
      await own.addIceCandidate({ candidate: `candidate:1 1 udp 1 ${host} ${port} typ host`, sdpMLineIndex: 0 });
    const deadline = performance.now() + GATHER;
    while (own.iceGatheringState !== "complete" && performance.now() < deadline) await wait(PING_EVERY);
    if (own.iceGatheringState !== "complete") return new Set();
    await wait(PAIRING);
    const stats = await own.getStats();
    const isTold = ({ localCandidateId }) => call.near.some((candidate) => candidate.port === stats.get(localCandidateId)?.port);
    const pairs = [...stats.values()].filter((one) => one.type === "candidate-pair" && isTold(one));
    return new Set(pairs.map((pair) => familyOf(stats.get(pair.remoteCandidateId)?.address)).filter(Boolean));
  } catch {
    return new Set();
  } finally {
    close(call);
  }
}

// ---- What it means

const PRIVATE = /^(0|10|127|169\.254|192\.168|172\.(1[6-9]|2\d|3[01])|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7]))\.|^(::1?$|f[cd]|fe[89ab])/i;
// A certificate that ends soon, or that our own library cannot read, may be good to a browser.
const BREAKS_TLS = /^(certificate-(expired|early|name|private)|chain-incomplete)$/;
const TITLES = {
  "port-closed": "Nothing answers", "udp-blocked": "UDP is blocked", "tcp-blocked": "TCP is blocked", "tls-blocked": "TLS is blocked",
  "wrong-secret": "The credential is refused", "clock-off": "The clocks differ", "external-wrong": "The outer address is wrong",
  "external-missing": "The outer address is missing", "relay-ports-blocked": "Relayed addresses are not reached",
  "certificate-expired": "The certificate has ended", "certificate-ending": "The certificate ends soon",
  "certificate-early": "The certificate is not good yet", "certificate-name": "The certificate is for another name",
  "certificate-private": "The certificate is not publicly trusted",
  "certificate-unreadable": "The certificate cannot be read", "chain-incomplete": "The certificate chain is incomplete",
  "file-limit": "Too few open files", buffers: "Small socket buffers", "no-tls": "No TLS", "no-ipv4": "No IPv4 address",
  "no-media": "Calls are not set up", full: "The relay has no room", "no-secret": "No timed secret", "no-webrtc": "No WebRTC here",
  "no-answer": "The relay's page does not answer", "no-address": "No relayed address is given",
};

function judge(facts, results, outside) {
  const faults = [], notes = [];
  const fault = (name, advice) => faults.some((known) => known.name === name) || faults.push({ name, advice });
  const hazard = (name) => facts.hazards.find((hazard) => hazard.name === name);
  const refused = (result, ...codes) => result.errors.some((error) => codes.includes(error.code));
  const each = (values) => [...new Set(values)].join(", ");
  const hosts = (results) => each(results.map((result) => result.way.host));

  const unknown = results.filter((result) => refused(result, 401));
  if (unknown.length)
    fault("wrong-secret", `What answers at ${hosts(unknown)} does not know this relay's secret: another relay is there, or one with another secret or clock. Give all relays of one name the same [[auth.timed]] secret_file.`);
  if (results.some((result) => refused(result, 486, 508)))
    fault("full", "The relay answers and gives no address: [limits] or its ports are used up.");
  const silent = results.filter((result) => !result.allocated && !refused(result, 401, 486, 508));
  const answers = (host) => results.some((result) => result.way.host === host && !silent.includes(result));
  const closed = silent.filter((result) => !answers(result.way.host));
  if (closed.length && "onicecandidateerror" in RTCPeerConnection.prototype)
    fault("port-closed", `Nothing answers at ${hosts(closed)}. Does this name or address lead to the relay, and does the firewall let UDP and TCP in to its [listen] ports?`);
  else if (closed.length)
    fault("no-address", `Nothing answers at ${hosts(closed)}, or the credential is refused; this browser does not tell which. Open the page in another browser, such as Chromium, or run quietline-turn check.`);
  const blocked = (kind) => silent.filter((result) => result.way.kind === kind && !closed.includes(result));
  const [udp, tcp] = [blocked("udp"), blocked("tcp")];
  // On a port that TCP does not reach, TLS says nothing of itself.
  const tls = blocked("tls").filter(({ way }) => !tcp.some((other) => other.way.host === way.host && other.way.port === way.port));
  const ports = (results) => each(results.map((result) => result.way.port));
  if (udp.length)
    fault("udp-blocked", `Over UDP nothing comes back from ${hosts(udp)}. Let UDP in to port ${ports(udp)} in the firewall of the relay and of its provider; the visitor's own network may block it as well.`);
  if (tcp.length)
    fault("tcp-blocked", `Over TCP nothing comes back from ${hosts(tcp)}. Let TCP in to port ${ports(tcp)} in the firewall of the relay and of its provider.`);
  if (tls.length) {
    const reasons = facts.hazards.filter((hazard) => BREAKS_TLS.test(hazard.name));
    reasons.forEach((reason) => fault(reason.name, reason.advice));
    if (!reasons.length)
      fault("tls-blocked", `Over TLS no call begins at ${hosts(tls)}. Let TCP in to port ${ports(tls)} in the firewall of the relay and of its provider, and look whether the browser accepts the certificate.`);
  }
  const unheard = results.filter((result) => result.allocated && !result.works);
  if (unheard.length)
    fault("no-media", `Addresses are given over ${unheard.map((result) => KINDS[result.way.kind]).join(", ")}, and no packets come through. Look at the relay's log and shard_lost_total.`);

  if (outside && !outside.works) {
    const relayed = outside.relayed[0] ?? facts.advertised[0] ?? "";
    const [family, host] = [familyOf(relayed), results[0].way.host];
    // One who has no public address of the same family cannot tell.
    const judged = outside.own.some((address) => familyOf(address) === family && !PRIVATE.test(address) && !facts.advertised.includes(address));
    const places = facts.known_as.filter((address) => familyOf(address) === family);
    const elsewhere = hazard("external-wrong") || (places.length && !places.includes(relayed));
    if (PRIVATE.test(relayed) && (judged || !PRIVATE.test(host)))
      fault("external-missing", `Clients are told ${relayed}, which nobody outside reaches. Set [[relay.address]] advertised to the outer address.`);
    else if (elsewhere && judged)
      fault("external-wrong", `Packets sent to ${relayed} do not reach the relay, which is known as ${each(places) || host}. Set [[relay.address]] advertised to the address that the world sees${facts.advertised.length > 1 ? ", or, if this is another one of the relay, let UDP in to its [relay] ports" : ""}.`);
    else if (judged)
      fault("relay-ports-blocked", `Packets sent to ${relayed} do not reach the relay. Let UDP in to the [relay] ports, and look whether ${relayed} is its outer address.`);
    else
      notes.push({ name: "outside-unknown", advice: "Whether the world reaches relayed addresses cannot be told from this network: open the page from outside as well." });
  }
  if (facts.ahead)
    fault("clock-off", `The relay's clock is ${Math.round(Math.abs(facts.ahead) / 1000)} s ${facts.ahead > 0 ? "ahead of" : "behind"} this device's. Timed credentials need the right time (timedatectl).`);
  for (const { name, advice } of facts.hazards) {
    const known = faults.some((fault) => fault.name === name);
    const hurts = ["clock-off", "file-limit"].includes(name) || (name === "external-wrong" && !outside?.works);
    if (hurts) fault(name, advice);
    else if (!known) notes.push({ name, advice });
  }
  return { faults, notes };
}

// ---- What is seen

// Lines that grow while packets come back; what did not come back is a mark at the foot.
class Chart {
  series = [];
  constructor(id, steps, scales) {
    Object.assign(this, { svg: place(id), steps, scales });
  }
  begin() {
    this.series = [];
    this.svg.closest("figure").hidden = true;
  }
  add(kind) {
    const line = { kind, points: [] };
    this.series.push(line);
    return (step, value) => {
      line.points.push([step, value]);
      this.due ??= requestAnimationFrame(() => ((this.due = null), this.draw()));
    };
  }
  draw() {
    this.svg.closest("figure").hidden = !this.series.some((line) => line.points.length);
    const width = Math.max(280, this.svg.clientWidth || 720), height = this.svg.clientHeight || 200;
    const [left, top, right, bottom] = [40, 14, width - 10, height - 22];
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const most = Math.max(0, ...this.series.flatMap((line) => line.points.map(([, value]) => value ?? 0)));
    const scale = this.scales.find((scale) => scale >= most) ?? most;
    const x = (step) => left + ((right - left) * step) / (this.steps - 1);
    const y = (value) => bottom - ((bottom - top) * Math.min(value, scale)) / scale;
    const part = (tag, attributes, words) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      if (words !== undefined) element.textContent = words;
      return element;
    };
    const parts = [0, 0.5, 1].flatMap((share) => [
      part("line", { x1: left, x2: right, y1: y(scale * share), y2: y(scale * share) }),
      part("text", { x: left - 6, y: y(scale * share) + 4, "text-anchor": "end" }, String(scale * share)),
    ]);
    for (const { kind, points } of this.series) {
      const came = points.filter(([, value]) => value !== null).sort(([a], [b]) => a - b);
      const path = came.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      parts.push(part("path", { d: path, class: kind }));
      for (const [step, value] of points) if (value === null) parts.push(part("rect", { x: x(step) - 1, y: bottom + 3, width: 2, height: 8 }));
    }
    this.svg.replaceChildren(...parts);
  }
}

const charts = {
  echoes: new Chart("echoes", PINGS, [5, 10, 20, 50, 100, 200, 500, 1_000, 2_000]),
  speed: new Chart("speed", FLOOD_TIME / FLOOD_LOOK, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000]),
};

function card(way) {
  const element = make("article", undefined, `way ${way.kind}`);
  const state = make("span", "waiting", "state"), figures = make("dl", undefined, "figures");
  element.append(make("h3", KINDS[way.kind]), state, make("span", way.url, "url"), figures);
  place("ways").append(element);
  return {
    echo: charts.echoes.add(way.kind),
    speed: charts.speed.add(way.kind),
    state: (words, kind) => ((state.textContent = words), (state.className = `state ${kind ?? ""}`), (element.dataset.state = kind ?? "")),
    figures(result) {
      const lost = result.sent ? 100 * (1 - result.times.length / result.sent) : 0;
      const rows = [["set up", `${Math.round(result.setUp)} ms`], ["lost", `${lost.toFixed(1)} %`]];
      if (result.times.length) rows.unshift(["round trip", `${median(result.times).toFixed(1)} ms`]);
      if (result.speed) rows.push(["throughput", `${result.speed.toFixed(1)} Mbit/s`]);
      figures.replaceChildren(...rows.map(([name, value]) => {
        const row = make("div");
        row.append(make("dt", name), make("dd", value));
        return row;
      }));
    },
    done(result) {
      this.state(result.works ? "works" : "does not work", result.works ? "good" : "bad");
      if (result.works) this.figures(result);
      const lines = result.candidates.map((candidate) => `${candidate.address}:${candidate.port} ${candidate.type} over ${KINDS[way.kind]}`);
      lines.push(...result.errors.map((error) => `${error.code} ${error.words}`));
      if (!lines.length) return;
      const more = make("details"), list = make("ul");
      list.append(...[...new Set(lines)].map((line) => make("li", line)));
      more.append(make("summary", "Candidates and errors"), list);
      element.append(more);
    },
  };
}

function list(id, items) {
  place(id).replaceChildren(...items.map(({ name, advice }) => {
    const item = make("li");
    item.dataset.name = name;
    item.append(...(TITLES[name] ? [make("strong", TITLES[name])] : []), make("p", advice));
    return item;
  }));
}

function progress(share) {
  place("bar").style.transform = `scaleX(${share})`;
  place("bar").parentElement.setAttribute("aria-valuenow", Math.round(share * 100));
}

function conclude(state, verdict, summary, { faults, notes }) {
  place("verdict").textContent = verdict;
  place("summary").textContent = summary;
  list("faults", faults);
  list("notes", notes);
  place("found").hidden = !faults.length;
  place("beside").hidden = !notes.length;
  progress(1);
  place("again").disabled = false;
  root.dataset.state = state;
}

const alone = (name, advice) => ({ faults: [{ name, advice }], notes: [] });

async function check() {
  root.dataset.state = "running";
  place("again").disabled = true;
  place("ways").replaceChildren();
  place("found").hidden = place("beside").hidden = true;
  Object.values(charts).forEach((chart) => chart.begin());
  progress(0.05);
  place("verdict").textContent = "Checking…";
  if (!window.RTCPeerConnection)
    return conclude("unsure", "This browser cannot tell.", "It has no WebRTC, or it was switched off.", alone("no-webrtc", "Open the page in another browser."));
  let facts;
  try {
    facts = await begin();
  } catch (fault) {
    return conclude("unsure", "The check did not begin.", "The relay's page gave no credential.", alone("no-answer", String(fault.message).slice(0, 200)));
  }
  if (!facts.server)
    return conclude("unsure", "The check needs a timed secret.", "Without one the relay has nothing to hand to a visitor.", alone("no-secret", facts.missing));
  const ways = facts.server.urls.map(wayOf);
  const families = familiesHere(ways);
  let left = ways.length + 1;
  const step = () => progress(0.1 + 0.85 * (1 - --left / (ways.length + 1)));
  progress(0.1);
  const results = await Promise.all(ways.map(async (way) => {
    const shown = card(way);
    shown.state("asking for an address");
    const result = await tryWay(way, facts, shown);
    shown.done(result);
    step();
    return { ...result, shown };
  }));
  const here = await families;
  const has = (family) => here.has(family) || results.some((result) => result.allocated && result.way.family === family);
  const beyond = here.size ? results.filter(({ way }) => way.family && !has(way.family)) : [];
  beyond.forEach(({ way, shown }) => shown.state(`this network has no ${way.family}`));
  const counted = results.filter((result) => !beyond.includes(result));
  const working = results.filter((result) => result.works);
  const open = working.filter((result) => result.way.kind === "udp").map((result) => result.way);
  const outside = open.length ? await tryOutside(open, facts) : null;
  step();
  const found = judge(facts, counted, outside);
  if (beyond.length)
    found.notes.push({ name: "family-unknown", advice: `This network has no ${beyond[0].way.family}: whether the relay answers at ${beyond[0].way.host} cannot be told from here.` });
  const every = beyond.length ? "every way that this network has" : "every way";
  if (working.length === counted.length && !found.faults.length)
    return conclude("works", "It works.", outside?.works
      ? `Calls go through over ${every}, and packets from outside reach the relay.`
      : `Calls go through over ${every}.`, found);
  if (working.length)
    return conclude("partly", "It works, but not for everybody.", `${working.length} of ${counted.length} ways carry a call. What is below keeps others from calling, or will.`, found);
  conclude("broken", "It does not work.", "No call came about. What is below is why.", found);
}

place("again").addEventListener("click", () => check());
addEventListener("resize", () => Object.values(charts).forEach((chart) => chart.draw()));
check();
