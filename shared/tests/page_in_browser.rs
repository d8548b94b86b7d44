//! The page `/transparency` in a real browser: on a phone and on a desk, by day and by night, and as a screen reader hears it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_shared::service::audit::{
    Adversary, Audit, Fact, Group, Holding, Key, KeyState, Place, Protection, Publication, PublicationSettings, Who,
};
use quietline_shared::service::server::{self, Limits};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use tokio::net::TcpListener;

const PHONE: (u32, u32) = (390, 844);
const DESK: (u32, u32) = (1280, 900);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_read_the_page_on_a_phone_on_a_desk_and_by_ear() {
    let folder = tempfile::tempdir().unwrap();
    let requests = folder.path().join("requests.md");
    std::fs::write(
        &requests,
        "# 2026\n\nNone was received.\n\n- a point\n- <b>another</b>\n",
    )
    .unwrap();
    let url = serve(&requests).await;
    let look = move || {
        let mut browser = Browser::start(folder.path());
        let papers = [(PHONE, "light"), (PHONE, "dark"), (DESK, "light"), (DESK, "dark")].map(|(size, scheme)| {
            let seen = browser.visit(&url, size, scheme);
            assert_eq!(seen.complaints, [""; 0], "{size:?} {scheme}");
            assert!(
                seen.width <= f64::from(size.0),
                "{size:?} {scheme}: {} wide",
                seen.width
            );
            listen(&seen.spoken);
            seen.paper
        });
        let [light, dark, light_desk, dark_desk] = papers;
        assert_eq!((&light, &dark), (&light_desk, &dark_desk));
        assert_eq!(
            (light.as_str(), dark.as_str()),
            ("rgb(253, 253, 251)", "rgb(19, 19, 22)")
        );
    };
    tokio::task::spawn_blocking(look).await.unwrap();
}

/// What a screen reader is given: one landmark, headings in order, a table whose cells have headers, and the words themselves.
fn listen(spoken: &[Spoken]) {
    let of_role = |role: &str| spoken.iter().filter(|node| node.role == role).collect::<Vec<_>>();
    assert_eq!(of_role("main").len(), 1);
    assert_eq!(of_role("RootWebArea")[0].name, "What quietline-test knows");
    let levels: Vec<i64> = of_role("heading").iter().map(|heading| heading.level).collect();
    assert_eq!(levels[0], 1);
    assert!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
    let names: Vec<&str> = of_role("heading").iter().map(|heading| heading.name.as_str()).collect();
    for name in [
        "What quietline-test knows",
        "What is held",
        "Subscriptions",
        "Who would learn what",
        "Somebody with the disk",
        "How it is kept safe",
        "Requests received",
        "2026",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let columns: Vec<&str> = of_role("columnheader").iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(columns, ["What", "Good", "In words"]);
    let rows: Vec<&str> = of_role("rowheader").iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(rows, ["core dumps", "swap"]);
    assert!(!of_role("listitem").is_empty() && !of_role("term").is_empty() && !of_role("definition").is_empty());
    let words: Vec<&str> = of_role("StaticText").iter().map(|text| text.name.as_str()).collect();
    for said in [
        "< 20, in plain",
        "about 120,000, sealed under row key 00c0ffee",
        "<b>another</b>",
    ] {
        assert!(words.iter().any(|text| text.contains(said)), "{said}: {words:?}");
    }
}

async fn serve(requests: &Path) -> String {
    let settings = PublicationSettings {
        page: true,
        requests_file: Some(requests.to_owned()),
    };
    let pages = Publication::route(Publication::new(&settings, || std::future::ready(sample())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        name: "test",
        connections: 8,
        header_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
    };
    tokio::spawn(server::serve(listener, pages, limits, std::future::pending()));
    format!("http://{address}/transparency")
}

fn sample() -> Audit {
    let group = |protection, count| Group {
        protection,
        count: Some(count),
    };
    let fact = |what, good, says: &str| Fact {
        what,
        good: Some(good),
        says: says.to_owned(),
    };
    let lines = |text: &str| vec![text.to_owned(), "a-long-word-without-any-space-".repeat(8)];
    Audit {
        server: "quietline-test",
        version: "0.0.0",
        at: 1_800_000_000,
        running: true,
        held: vec![Holding {
            what: "Subscriptions",
            of: "one for each device of each account",
            place: Place::Disk,
            file: Some("/var/lib/rows.db".into()),
            groups: vec![
                group(Protection::Plain, 7),
                group(
                    Protection::Sealed {
                        key: "00c0ffee".to_owned(),
                    },
                    123_456,
                ),
            ],
            kept: "14 days at most".to_owned(),
        }],
        keys: vec![Key {
            name: "a",
            purpose: "b",
            file: "/etc/key".into(),
            id: None,
            state: KeyState::OwnerOnly,
            beside_data: None,
        }],
        facts: vec![
            fact("core dumps", true, "a crash leaves no copy of the memory"),
            fact(
                "swap",
                false,
                "parts can lie in swap on a disk: now 12 kB; 0 kB are locked",
            ),
        ],
        adversaries: vec![Adversary {
            who: Who::Disk,
            learns: lines("that a server runs here"),
            does_not_learn: lines("what is said"),
        }],
    }
}

/// What one visit showed.
struct Seen {
    /// Of the whole content, CSS pixels.
    width: f64,
    paper: String,
    spoken: Vec<Spoken>,
    /// What the browser refused or missed, such as a style that the policy forbids.
    complaints: Vec<String>,
}

struct Spoken {
    role: String,
    name: String,
    level: i64,
}

/// Chromium, told what to do through a pair of pipes.
struct Browser {
    child: Child,
    orders: File,
    answers: Receiver<Value>,
    number: u64,
}

impl Browser {
    fn start(folder: &Path) -> Self {
        let (orders, answers) = (folder.join("orders"), folder.join("answers"));
        let made = Command::new("mkfifo").args([&orders, &answers]).status().unwrap();
        assert!(made.success());
        // Chromium reads from its file 3 and writes to its file 4; a shell can give it both.
        let child = Command::new("sh")
            .args([
                "-c",
                "orders=$1 answers=$2; shift 2; exec chromium \"$@\" 3<\"$orders\" 4>\"$answers\"",
                "sh",
            ])
            .args([&orders, &answers])
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (told, heard) = mpsc::channel();
        let opened = std::thread::spawn(move || {
            let orders = File::options().write(true).open(orders).unwrap();
            (orders, File::open(answers).unwrap())
        });
        let begun = std::time::Instant::now();
        let mut browser = child;
        while !opened.is_finished() {
            let ended = browser.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "chromium does not start (is it installed? .ci/setup does it): {ended:?}"
            );
            assert!(begun.elapsed() < PATIENCE, "chromium does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (orders, answers) = opened.join().unwrap();
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).unwrap();
                if told.send(message).is_err() {
                    return;
                }
            }
        });
        Self {
            child: browser,
            orders,
            answers: heard,
            number: 0,
        }
    }

    fn visit(&mut self, url: &str, (width, height): (u32, u32), scheme: &str) -> Seen {
        let mut complaints = Vec::new();
        let target = self.order(
            None,
            "Target.createTarget",
            json!({ "url": "about:blank" }),
            &mut complaints,
        );
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.order(None, "Target.attachToTarget", attach, &mut complaints)["sessionId"].clone();
        let mut order =
            |method: &str, parameters: Value| self.order(Some(&session), method, parameters, &mut complaints);
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        order("Emulation.setDeviceMetricsOverride", size);
        let scheme_of = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        order("Emulation.setEmulatedMedia", scheme_of);
        order("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
        for domain in ["Log", "Page", "DOM", "CSS", "Accessibility"] {
            order(&format!("{domain}.enable"), json!({}));
        }
        let gone = order("Page.navigate", json!({ "url": url }));
        assert!(gone.get("errorText").is_none(), "{gone}");
        self.hear("Page.loadEventFired", &mut complaints);
        let mut order =
            |method: &str, parameters: Value| self.order(Some(&session), method, parameters, &mut complaints);
        let width = order("Page.getLayoutMetrics", json!({}))["cssContentSize"]["width"]
            .as_f64()
            .unwrap();
        let root = order("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
        let body = order("DOM.querySelector", json!({ "nodeId": root, "selector": "body" }));
        let styles = order("CSS.getComputedStyleForNode", json!({ "nodeId": body["nodeId"] }));
        let styles = styles["computedStyle"].as_array().unwrap();
        let paper = styles.iter().find(|style| style["name"] == "background-color").unwrap();
        let paper = paper["value"].as_str().unwrap().to_owned();
        let tree = order("Accessibility.getFullAXTree", json!({}));
        let spoken = tree["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["ignored"] == false);
        let spoken = spoken.map(Spoken::of).collect();
        let picture = order("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        // For people who work on the page: the tests judge what can be judged.
        let name = format!(
            "transparency-{}-{scheme}.png.base64",
            if width < 600.0 { "phone" } else { "desk" }
        );
        let picture = picture["data"].as_str().unwrap();
        std::fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name), picture).unwrap();
        self.order(
            None,
            "Target.closeTarget",
            json!({ "targetId": target["targetId"] }),
            &mut complaints,
        );
        // No page of ours has an icon, and every browser asks for one.
        complaints.retain(|complaint| !complaint.contains("favicon.ico"));
        Seen {
            width,
            paper,
            spoken,
            complaints,
        }
    }

    fn order(
        &mut self,
        session: Option<&Value>,
        method: &str,
        parameters: Value,
        complaints: &mut Vec<String>,
    ) -> Value {
        self.number += 1;
        let number = self.number;
        let mut message = json!({ "id": number, "method": method, "params": parameters });
        if let Some(session) = session {
            message["sessionId"] = session.clone();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.orders.write_all(&bytes).unwrap();
        let answer = self.next(complaints, |message| message["id"] == number);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn hear(&mut self, event: &str, complaints: &mut Vec<String>) {
        self.next(complaints, |message| message["method"] == event);
    }

    fn next(&mut self, complaints: &mut Vec<String>, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.answers.recv_timeout(PATIENCE).unwrap();
            if message["method"] == "Log.entryAdded" {
                complaints.push(message["params"]["entry"].to_string());
            }
            if is_it(&message) {
                return message;
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Spoken {
    fn of(node: &Value) -> Self {
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let properties = node["properties"].as_array().map(Vec::as_slice).unwrap_or_default();
        let level = properties.iter().find(|property| property["name"] == "level");
        Self {
            role: text(&node["role"]),
            name: text(&node["name"]),
            level: level.and_then(|level| level["value"]["value"].as_i64()).unwrap_or(0),
        }
    }
}

/// A browser's start takes a second, on a machine under load a minute.
const PATIENCE: Duration = Duration::from_secs(120);
