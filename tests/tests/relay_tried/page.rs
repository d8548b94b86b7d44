//! The page in a headless Chromium: calls over every transport, every planted fault, and what strangers try.

use crate::browser::Visit;
use crate::scene::{Fault, PAGE, Scene};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Ends with the check: its verdict, what it found and how each way went.
const END: &str = r##"new Promise((done) => {
  const root = document.documentElement;
  const names = (id) => [...document.querySelectorAll(`#${id} li`)].map((item) => item.dataset.name);
  const points = (id) => [...document.querySelectorAll(`#${id} path`)].map((path) => path.getAttribute("d").split("L").length);
  const look = () => {
    if (!root.dataset.state || root.dataset.state === "running") return;
    const ways = Object.fromEntries([...document.querySelectorAll(".way")].map((way) =>
      [way.className.split(" ")[1], way.querySelector(".state").textContent]));
    done({ state: root.dataset.state, ways, faults: names("faults"), notes: names("notes"), text: document.body.innerText,
      echoes: points("echoes"), speeds: points("speed"),
      wide: root.scrollWidth > innerWidth, strange: window.strange, images: document.images.length });
  };
  new MutationObserver(look).observe(root, { attributes: true });
  look();
})"##;

fn visited(scene: &Scene, is_trusted: bool, before: Option<&str>) -> Value {
    let visit = Visit {
        network: &scene.site.world,
        url: &format!("http://{PAGE}/"),
        trusted: is_trusted.then_some(&*scene.trusted),
        before,
    };
    visit.ask(END)
}

fn names(seen: &Value, list: &str) -> Vec<String> {
    let names = seen[list].as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text(seen: &Value) -> &str {
    seen["text"].as_str().unwrap_or_default()
}

/// Asserts that the page names the fault among what is to be mended (or good to know), and gives what it shows.
fn finds(fault: Fault, name: &str, list: &str, is_trusted: bool) -> Value {
    let seen = visited(&Scene::with(fault), is_trusted, None);
    assert!(
        names(&seen, list).iter().any(|found| found == name),
        "{fault:?} is {name}: {seen:#}"
    );
    seen
}

#[test]
fn a_relay_that_works_is_said_to_work_over_every_transport() {
    let seen = visited(&Scene::with(Fault::None), true, None);
    assert_eq!(seen["state"], "works", "{seen:#}");
    for way in ["udp", "tcp", "tls"] {
        assert_eq!(seen["ways"][way], "works", "{seen:#}");
    }
    assert_eq!(names(&seen, "faults"), Vec::<String>::new());
    let text = seen["text"].as_str().unwrap();
    assert!(text.contains("packets from outside reach the relay"), "{text}");
    for figure in ["round trip", "lost", "set up", "throughput"] {
        assert_eq!(text.matches(&format!("\n{figure}")).count(), 3, "{figure}: {text}");
    }
    for (chart, least) in [("echoes", 100), ("speeds", 3)] {
        let lines = seen[chart].as_array().unwrap();
        assert!(
            lines.len() == 3 && lines.iter().all(|points| points.as_u64() > Some(least)),
            "{chart}: {lines:?}"
        );
    }
    assert_eq!(seen["wide"], false, "a phone need not scroll sideways");
}

#[test]
fn udp_that_is_blocked_is_found() {
    let seen = finds(Fault::UdpBlocked, "udp-blocked", "faults", true);
    assert_eq!(
        (&seen["state"], &seen["ways"]["tcp"]),
        (&"partly".into(), &"works".into())
    );
}

#[test]
fn tcp_that_is_blocked_is_found() {
    let seen = finds(Fault::TcpBlocked, "tcp-blocked", "faults", true);
    assert_eq!(
        (&seen["state"], &seen["ways"]["udp"]),
        (&"partly".into(), &"works".into())
    );
}

#[test]
fn tls_that_is_blocked_is_found_though_the_certificate_ends_soon() {
    let seen = finds(Fault::TlsBlocked, "tls-blocked", "faults", true);
    assert_eq!(names(&seen, "faults"), ["tls-blocked"], "{seen:#}");
    assert!(text(&seen).contains("Let TCP in to port 443"), "{seen:#}");
    // It is good until then.
    assert_eq!(names(&seen, "notes"), ["certificate-ending"], "{seen:#}");
    assert!(!text(&seen).contains("has ended"), "{seen:#}");
}

#[test]
fn tls_on_a_port_of_its_own_is_found_blocked_beside_tcp() {
    let seen = visited(&Scene::with(Fault::TcpAndTlsBlocked), true, None);
    assert_eq!(names(&seen, "faults"), ["tcp-blocked", "tls-blocked"], "{seen:#}");
}

#[test]
fn one_address_of_two_at_which_nothing_answers_is_found() {
    let seen = finds(Fault::V6Blocked, "port-closed", "faults", true);
    assert_eq!(
        (&seen["state"], names(&seen, "faults").len()),
        (&"partly".into(), 1),
        "{seen:#}"
    );
    assert!(text(&seen).contains("Nothing answers at 2a00:1::4."), "{seen:#}");
    assert!(text(&seen).contains("3 of 6 ways carry a call"), "{seen:#}");
}

#[test]
fn what_a_visitors_network_has_not_is_no_fault_of_the_relay() {
    let seen = finds(Fault::NoV6, "family-unknown", "notes", true);
    assert_eq!(seen["state"], "works", "{seen:#}");
    assert_eq!(text(&seen).matches("this network has no IPv6").count(), 3, "{seen:#}");
    assert!(text(&seen).contains("packets from outside reach the relay"), "{seen:#}");
    assert_eq!(seen["wide"], false, "a phone need not scroll sideways");
}

#[test]
fn relay_ports_that_are_blocked_are_found() {
    finds(Fault::RelayPortsBlocked, "relay-ports-blocked", "faults", true);
}

#[test]
fn relay_ports_that_let_only_answers_in_are_found() {
    let seen = finds(Fault::RelayPortsUnopened, "relay-ports-blocked", "faults", true);
    assert_eq!(seen["state"], "partly", "{seen:#}");
}

#[test]
fn a_wrong_outer_address_is_found() {
    let seen = finds(Fault::ExternalWrong, "external-wrong", "faults", true);
    assert_eq!(seen["state"], "broken");
}

#[test]
fn an_outer_address_that_the_relays_name_does_not_lead_to_is_found() {
    let seen = finds(Fault::ExternalMistyped, "external-wrong", "faults", true);
    assert!(text(&seen).contains("which is known as 1.2.3.4"), "{seen:#}");
}

#[test]
fn a_missing_outer_address_is_found() {
    finds(Fault::ExternalMissing, "external-missing", "faults", true);
}

#[test]
fn a_wrong_secret_is_found() {
    let seen = finds(Fault::WrongSecret, "wrong-secret", "faults", true);
    assert_eq!(seen["state"], "broken");
}

#[test]
fn a_browser_that_tells_no_errors_of_a_relay_blames_no_firewall_for_a_wrong_secret() {
    // As Firefox was before 150.
    let silent = r#"
      delete RTCPeerConnection.prototype.onicecandidateerror;
      RTCPeerConnection.prototype.addEventListener = function (kind, ...rest) {
        if (kind !== "icecandidateerror") EventTarget.prototype.addEventListener.call(this, kind, ...rest);
      };"#;
    let seen = visited(&Scene::with(Fault::WrongSecret), true, Some(silent));
    let faults = names(&seen, "faults");
    assert!(faults.iter().any(|name| name == "no-address"), "{seen:#}");
    assert!(!faults.iter().any(|name| name == "port-closed"), "{seen:#}");
}

#[test]
fn a_clock_that_is_off_is_found() {
    let later = "const now = Date.now; Date.now = () => now() - 3600e3;";
    let seen = visited(&Scene::with(Fault::ClockOff), true, Some(later));
    assert_eq!(names(&seen, "faults"), ["clock-off"], "{seen:#}");
    assert!(
        seen["text"].as_str().unwrap().contains("3600 s ahead of this device's"),
        "{seen:#}"
    );
}

#[test]
fn a_certificate_that_has_ended_is_found() {
    let seen = finds(Fault::CertificateExpired, "certificate-expired", "faults", false);
    assert_eq!(seen["ways"]["tls"], "does not work");
}

#[test]
fn a_certificate_for_another_name_is_found() {
    finds(Fault::CertificateName, "certificate-name", "faults", false);
}

#[test]
fn a_chain_with_a_hole_is_found() {
    finds(Fault::ChainIncomplete, "chain-incomplete", "faults", false);
}

#[test]
fn too_few_open_files_are_found() {
    finds(Fault::FileLimit, "file-limit", "faults", true);
}

#[test]
fn small_buffers_are_found() {
    let seen = finds(Fault::Buffers, "buffers", "notes", true);
    assert_eq!(seen["state"], "works");
}

#[test]
fn what_browser_and_relay_say_is_never_markup() {
    // Whatever a candidate or an error may hold, as a hostile relay or network would have it.
    let hostile = r#"
      const evil = "<img src=x onerror='window.strange=1'><script>window.strange=2</script>";
      const Real = RTCPeerConnection;
      window.RTCPeerConnection = class extends Real {
        addEventListener(kind, listener) {
          if (kind === "icecandidateerror") setTimeout(() => listener({ errorCode: evil, errorText: evil }));
          if (kind !== "icecandidate") return super.addEventListener(kind, listener);
          super.addEventListener(kind, (event) => listener(event.candidate && {
            candidate: new Proxy(event.candidate, { get: (own, key) => {
              if (key === "address") return evil;
              const value = own[key];
              return typeof value === "function" ? value.bind(own) : value;
            } }) }));
        }
      };"#;
    let seen = visited(&Scene::with(Fault::None), true, Some(hostile));
    let text = seen["text"].as_str().unwrap();
    assert!(!seen["state"].is_null() && !text.is_empty(), "{seen:#}");
    assert_eq!(seen["strange"], Value::Null, "a script ran: {seen:#}");
    assert_eq!(seen["images"], 0, "{seen:#}");
}

// ---- What strangers try

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
    headers: &'a str,
}

fn answer(scene: &Scene, request: &Request<'_>) -> String {
    scene.site.world.run(|| {
        let mut stream = TcpStream::connect(PAGE).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let Request {
            method,
            path,
            host,
            headers,
        } = request;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn status(scene: &Scene, request: &Request<'_>) -> u16 {
    let answer = answer(scene, request);
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn strangers_get_no_credential_and_are_counted() {
    let scene = Scene::with(Fault::None);
    let start = |host, headers| Request {
        method: "POST",
        path: "/start",
        host,
        headers,
    };
    // A page of somebody else's, whose name was pointed at the relay.
    let rebound = start("evil.example", "Origin: http://evil.example\r\n");
    assert_eq!(status(&scene, &rebound), 403);
    let shown = Request {
        method: "GET",
        path: "/",
        host: "evil.example",
        headers: "",
    };
    assert_eq!(status(&scene, &shown), 403);
    for headers in [
        "",
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://1.2.3.4:9\r\n",
        "Origin: http://1.2.3.4:8080\r\nSec-Fetch-Site: cross-site\r\n",
        "Origin: http://1.2.3.4:8080\r\nOrigin: http://evil.example\r\n",
    ] {
        assert_eq!(status(&scene, &start(PAGE, headers)), 403, "{headers}");
    }
    let get = Request {
        method: "GET",
        ..start(PAGE, "Origin: http://1.2.3.4:8080\r\n")
    };
    assert_eq!(status(&scene, &get), 405);
    scene.site.wait_metric("page_refused_total", "host", 2.0);
    scene.site.wait_metric("page_refused_total", "origin", 6.0);
    assert_eq!(scene.site.metrics().sum("page_credentials_total").unwrap_or(0.0), 0.0);
    // Beside metrics and health it is not, since it has a port of its own.
    assert!(scene.site.tells("/").starts_with("HTTP/1.1 404"));
}

#[test]
fn credentials_are_short_and_few() {
    let scene = Scene::with(Fault::None);
    let own = Request {
        method: "POST",
        path: "/start",
        host: PAGE,
        headers: "Origin: http://1.2.3.4:8080\r\nSec-Fetch-Site: same-origin\r\n",
    };
    let first = answer(&scene, &own);
    assert!(
        first.starts_with("HTTP/1.1 200") && first.contains("cache-control: no-store"),
        "{first}"
    );
    let body: Value = serde_json::from_str(first.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let username = body["server"]["username"].as_str().unwrap();
    let expiry: u64 = username.split(':').next().unwrap().parse().unwrap();
    let life = expiry - body["now"].as_u64().unwrap() / 1_000;
    assert!((295..=301).contains(&life), "{life}");
    let more: Vec<u16> = (0..25).map(|_| status(&scene, &own)).collect();
    let refused = more.iter().filter(|code| **code == 429).count();
    assert!((4..=6).contains(&refused), "twenty a minute are enough: {more:?}");
    scene.site.wait_metric("page_refused_total", "rate", refused as f64);
}

#[test]
fn the_page_lets_nothing_in_and_nothing_out() {
    let scene = Scene::with(Fault::None);
    let shown = Request {
        method: "GET",
        path: "/",
        host: PAGE,
        headers: "",
    };
    let shown = answer(&scene, &shown);
    for header in [
        "content-security-policy: default-src 'none'; connect-src 'self'; style-src 'sha256-",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "x-frame-options: DENY",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(shown.contains(header), "{header}: {shown}");
    }
    let (head, document) = shown.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("set-cookie") && !head.contains("unsafe"), "{head}");
    for outside in [
        "src=",
        "href=",
        "@import",
        "url(",
        " onclick",
        "innerHTML",
        "localStorage",
        "document.cookie",
    ] {
        assert!(!document.contains(outside), "{outside}");
    }
}
