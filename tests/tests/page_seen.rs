//! `/transparency` of both servers as people see and hear it: in a browser without scripts, on a phone and on a desk, and as a screen
//! reader is told it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../browser/headless.rs"]
mod headless;

use chromiumoxide::cdp::browser_protocol::emulation::{
    SetDeviceMetricsOverrideParams, SetScriptExecutionDisabledParams,
};
use chromiumoxide::{Command, Method};
use headless::{Headless, evaluate, trusting};
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::phone::PushService;
use quietline_lab::trial::{PATIENCE, enrolled};
use quietline_lab::turn::relay::Relay;
use serde::Serialize;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_notifier_knows_is_read_on_any_screen_and_by_ear() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path().join("lab")).with(
        "transparency.requests_file",
        folder.path().join("requests.md").to_string_lossy().into_owned(),
    );
    std::fs::write(
        folder.path().join("requests.md"),
        "# 2026\n\nOne request, from a court.\n\n- nothing was there\n",
    )
    .unwrap();
    settings.ready_within = PATIENCE;
    let lab = Lab::start(settings).await.unwrap();
    let _phone = enrolled(&lab, PushService::Apns).await;
    let heard = seen_and_heard(&format!("http://{}/transparency", lab.http_address())).await;
    assert_eq!(heard.name, "What quietline-notifier knows");
    heard.has_sections(&[
        "What is held",
        "Subscriptions",
        "Who would learn what",
        "Somebody with the disk",
        "Somebody whom the providers help",
        "How it is kept safe",
        "Requests received",
        "2026",
    ]);
    heard.says_in_a_row(&["free pages", "yes"]);
    heard.says_in_a_row(&["core dumps", "yes"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_knows_is_read_on_any_screen_and_by_ear() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Relay::prepare(folder.path(), None, |_| {}).unwrap();
    relay.start(PATIENCE).unwrap();
    let heard = seen_and_heard(&format!("http://{}/transparency", relay.ops)).await;
    assert_eq!(heard.name, "What quietline-turn knows");
    heard.has_sections(&[
        "What is held",
        "Live allocations",
        "Who would learn what",
        "How it is kept safe",
        "Requests received",
    ]);
    heard.says_in_a_row(&["core dumps", "yes"]);
}

/// Width, height, and whether it is a phone.
const SCREENS: [(i64, i64, bool); 3] = [(320, 568, true), (390, 844, true), (1280, 800, false)];

/// On each screen nothing is cut off, too small, fetched from elsewhere or run; then what a screen reader is told.
async fn seen_and_heard(url: &str) -> Heard {
    let profile = tempfile::tempdir().unwrap();
    let headless = Headless::start(profile.path(), PATIENCE, &[trusting(&[])])
        .await
        .unwrap();
    let page = headless.browser.new_page("about:blank").await.unwrap();
    page.execute(SetScriptExecutionDisabledParams::new(true)).await.unwrap();
    for (width, height, is_phone) in SCREENS {
        page.execute(SetDeviceMetricsOverrideParams::new(width, height, 2.0, is_phone))
            .await
            .unwrap();
        page.goto(url).await.unwrap();
        let seen = evaluate(&page, LOOK).await.unwrap();
        assert_eq!(seen["width"], width, "{seen:#}");
        assert_eq!(seen["wide"], Value::Array(vec![]), "{width}: wider than the screen");
        assert_eq!(seen["small"], Value::Array(vec![]), "{width}: too small to read");
        assert_eq!(seen["fetched"], 0, "{seen:#}");
        assert!(seen["longest_line"].as_f64().unwrap() <= 46.0 * 16.0, "{seen:#}");
        assert!(seen["words"].as_u64() > Some(200), "{seen:#}");
    }
    let tree = page.execute(FullTree {}).await.unwrap().result.clone();
    headless.end().await;
    Heard::of(&tree)
}

const LOOK: &str = r#"(() => {
  const all = [...document.body.querySelectorAll("*")];
  const told = (element) => element.tagName + ": " + element.textContent.slice(0, 60);
  return {
    width: innerWidth,
    wide: document.documentElement.scrollWidth > innerWidth
      ? all.filter((element) => element.getBoundingClientRect().right > innerWidth + 1).map(told) : [],
    small: all.filter((element) => parseFloat(getComputedStyle(element).fontSize) < 14).map(told),
    fetched: performance.getEntriesByType("resource").length,
    longest_line: Math.max(...all.map((element) => element.getBoundingClientRect().width)),
    words: document.body.innerText.split(/\s+/).length,
  };
})()"#;

/// As the protocol has it: its names of properties change with the browser, and none is needed here.
#[derive(Debug, Serialize)]
struct FullTree {}

impl Method for FullTree {
    fn identifier(&self) -> std::borrow::Cow<'static, str> {
        "Accessibility.getFullAXTree".into()
    }
}

impl Command for FullTree {
    type Response = Value;
}

/// What a screen reader is told, in the order in which it reads.
struct Heard {
    name: String,
    /// Level and name.
    headings: Vec<(u64, String)>,
    /// The names of the cells of each row.
    rows: Vec<Vec<String>>,
}

impl Heard {
    fn of(tree: &Value) -> Self {
        let nodes: Vec<&Value> = tree["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["ignored"] != true)
            .collect();
        let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
        let name = |node: &Value| node["name"]["value"].as_str().unwrap_or_default().to_owned();
        let of_role = |wanted: &str| {
            nodes
                .iter()
                .filter(|node| role(node) == wanted)
                .copied()
                .collect::<Vec<_>>()
        };
        assert_eq!(of_role("main").len(), 1, "one landmark to jump to");
        let headings = of_role("heading").into_iter().map(|node| {
            let properties = node["properties"].as_array().unwrap();
            let level = properties.iter().find(|property| property["name"] == "level").unwrap();
            (level["value"]["value"].as_u64().unwrap(), name(node))
        });
        let headings: Vec<_> = headings.collect();
        assert!(headings.iter().all(|(_, name)| !name.is_empty()), "{headings:?}");
        assert_eq!(headings[0].0, 1);
        assert!(
            headings.windows(2).all(|pair| pair[1].0 <= pair[0].0 + 1),
            "no level is left out: {headings:?}"
        );

        // A table with a name, three named columns, and a name for each row.
        let tables = of_role("table");
        assert_eq!(tables.len(), 1);
        assert!(!name(tables[0]).is_empty(), "{}", tables[0]);
        let columns: Vec<_> = of_role("columnheader").into_iter().map(name).collect();
        assert_eq!(columns, ["What", "Good", "In words"]);
        let child = |node: &Value| {
            let ids: Vec<_> = node["childIds"].as_array().unwrap().clone();
            let find = |id: &Value| nodes.iter().find(|node| node["nodeId"] == *id).copied();
            ids.iter().filter_map(find).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<&Value>> = of_role("row").into_iter().map(child).collect();
        let is_named =
            |row: &&Vec<&Value>| role(row[0]) == "rowheader" && row[1..].iter().all(|cell| role(cell) != "rowheader");
        assert_eq!(
            rows.iter().filter(is_named).count(),
            rows.len() - 1,
            "all but the columns' names"
        );
        assert!(!of_role("list").is_empty() && !of_role("listitem").is_empty());
        assert!(!of_role("term").is_empty() && of_role("term").len() == of_role("definition").len());
        for nothing in ["image", "button", "textbox", "link"] {
            assert!(of_role(nothing).is_empty(), "{nothing}");
        }
        Self {
            name: name(of_role("RootWebArea")[0]),
            headings,
            rows: rows
                .into_iter()
                .map(|row| row.into_iter().map(name).collect())
                .collect(),
        }
    }

    /// In this order; others may stand between them.
    fn has_sections(&self, wanted: &[&str]) {
        let mut left = self.headings.iter();
        for name in wanted {
            assert!(left.any(|(_, heading)| heading == name), "{name}: {:?}", self.headings);
        }
    }

    fn says_in_a_row(&self, cells: &[&str]) {
        let is_so =
            |row: &Vec<String>| row.iter().zip(cells).all(|(said, wanted)| said == wanted) && row.len() >= cells.len();
        assert!(self.rows.iter().any(is_so), "{cells:?}: {:?}", self.rows);
    }
}
