//! The audit as everybody may read it: the page `/transparency`.
//!
//! In: a way to make an audit with rounded numbers, the operator's file. Out: a page. Never: makes a new one for each visitor, so that two
//! visits tell no more than one, or names a file of this machine.

use super::requests::{Requests, RequestsFault};
use super::{Audit, Fact, Place, Scale};
use crate::service::config::SettingsFile;
use crate::service::page::{Html, Page};
use axum::Router;
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::Mutex;

/// `[transparency]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct PublicationSettings {
    /// Whether the page is served. Default yes: what it says is rounded, and people can see what they trust.
    pub page: bool,
    /// What the operator tells about requests received: UTF-8, at most 65,536 bytes. Default: nothing.
    pub requests_file: Option<PathBuf>,
}

impl Default for PublicationSettings {
    fn default() -> Self {
        Self {
            page: true,
            requests_file: None,
        }
    }
}

impl PublicationSettings {
    /// Reads the section; a file that cannot be shown is a fault now rather than an empty page later.
    pub fn read(file: &mut SettingsFile) -> Option<Self> {
        let settings: Self = file.section("transparency")?;
        if let Some(requests) = &settings.requests_file
            && let Err(fault) = Requests::read(requests)
        {
            file.fault(
                "transparency.requests_file",
                fault.to_string(),
                "UTF-8 text of at most 65,536 bytes",
            );
        }
        Some(settings)
    }
}

type Looking = Pin<Box<dyn Future<Output = Audit> + Send>>;

/// The page and how it is made anew.
pub struct Publication {
    look: Box<dyn Fn() -> Looking + Send + Sync>,
    requests_file: Option<PathBuf>,
    made: Mutex<Option<(Instant, Page)>>,
}

impl Publication {
    /// `look` makes an audit with [`Scale::Rounded`]. `None` where the settings do not want the page.
    pub fn new<F>(settings: &PublicationSettings, look: impl Fn() -> F + Send + Sync + 'static) -> Option<Arc<Self>>
    where
        F: Future<Output = Audit> + Send + 'static,
    {
        settings.page.then(|| {
            Arc::new(Self {
                look: Box::new(move || Box::pin(look())),
                requests_file: settings.requests_file.clone(),
                made: Mutex::new(None),
            })
        })
    }

    pub async fn response(&self) -> Response {
        self.response_at(Instant::now()).await
    }

    async fn response_at(&self, now: Instant) -> Response {
        // Whoever comes while it is made waits for the same one.
        let mut made = self.made.lock().await;
        if let Some((at, page)) = &*made
            && now.saturating_duration_since(*at) < MADE_EVERY
        {
            return page.response();
        }
        let audit = (self.look)().await;
        let requests = self.requests_file.as_deref().map(Requests::read);
        let page = page(&audit, requests.as_ref());
        let response = page.response();
        *made = Some((now, page));
        response
    }

    /// A route for it; without a publication none.
    pub fn route(publication: Option<Arc<Self>>) -> Router {
        match publication {
            Some(publication) => Router::new().route(PATH, get(async move || publication.response().await)),
            None => Router::new(),
        }
    }
}

pub const PATH: &str = "/transparency";
/// Counting reads whole tables, and a page that moved with each subscription would say when it came.
const MADE_EVERY: Duration = Duration::from_secs(600);

fn page(audit: &Audit, requests: Option<&Result<Requests, RequestsFault>>) -> Page {
    let mut html = Html::default();
    html.line("h1", &format!("What {} knows", audit.server));
    html.line(
        "p",
        "The server makes this page itself, from its own files and its own process. It says what is so here and now, good or not. Numbers are \
         rounded, and none below 20 is shown.",
    );
    html.line("p", &as_of(audit));

    html.line("h2", "What is held");
    for holding in &audit.held {
        html.line("h3", holding.what);
        html.element("dl", &[], |list| {
            let mut row = |name: &str, text: &str| {
                list.line("dt", name).line("dd", text);
            };
            row("What it is", holding.of);
            row("Where", place(holding.place));
            if holding.groups.is_empty() {
                // The same as for few: nobody learns when the first one comes.
                row("How many", &Scale::Rounded.count(0));
            }
            for group in &holding.groups {
                let count = group
                    .count
                    .map_or_else(|| "an unknown number".to_owned(), |count| Scale::Rounded.count(count));
                row("How many", &format!("{count}, {}", group.protection.words()));
            }
            row("How long", &holding.kept);
        });
    }

    html.line("h2", "Who would learn what");
    for adversary in &audit.adversaries {
        html.line("h3", adversary.who.words());
        if !adversary.learns.is_empty() {
            html.line("p", "Would learn:").list(&adversary.learns);
        }
        if !adversary.does_not_learn.is_empty() {
            html.line("p", "Would not learn:").list(&adversary.does_not_learn);
        }
    }

    html.line("h2", "How it is kept safe");
    html.element("table", &[], |table| {
        table.line("caption", "Each line was looked up when this page was made.");
        table.element("thead", &[], |head| {
            head.element("tr", &[], |row| {
                for name in ["What", "Good", "In words"] {
                    row.element("th", &[("scope", "col")], |cell| {
                        cell.text(name);
                    });
                }
            });
        });
        table.element("tbody", &[], |body| {
            for fact in &audit.facts {
                body.element("tr", &[], |row| show_fact(row, fact));
            }
        });
    });

    html.line("h2", "Requests received");
    match requests {
        Some(Ok(requests)) => {
            html.line("p", "In the words of the operator:");
            requests.show(&mut html);
        }
        Some(Err(_)) => {
            html.line(
                "p",
                "The operator publishes something here, and it cannot be read at the moment.",
            );
        }
        None => {
            html.line(
                "p",
                "The operator has published nothing about requests from authorities or others. That does not say that there were none.",
            );
        }
    }
    Page::new(&format!("What {} knows", audit.server), &html)
}

fn show_fact(row: &mut Html, fact: &Fact) {
    let (class, mark) = match fact.good {
        Some(true) => ("good", "yes"),
        Some(false) => ("bad", "no"),
        None => ("soft", "unknown"),
    };
    row.element("th", &[("scope", "row")], |cell| {
        cell.text(fact.what);
    });
    row.element("td", &[("class", class)], |cell| {
        cell.text(mark);
    });
    row.line("td", &fact.says);
}

const fn place(place: Place) -> &'static str {
    match place {
        Place::Disk => "on disk",
        Place::Memory => "in the memory of the running process",
    }
}

fn as_of(audit: &Audit) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(audit.at).unwrap_or(0));
    format!("As of {}. Version {}.", httpdate::fmt_http_date(at), audit.version)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn shown(audit: &Audit, requests: Option<&Result<Requests, RequestsFault>>) -> String {
        String::from_utf8(page(audit, requests).html().to_vec()).unwrap()
    }

    #[test]
    fn the_page_rounds_escapes_and_names_no_file() {
        let text = shown(&sample(), None);
        for part in [
            "<dd>&lt; 20, in plain</dd>",
            "<dd>about 120,000, sealed under row key 00c0ffee</dd>",
            "an account &lt;b&gt; and a token",
            "an unknown number, in memory only",
            "<td class=\"bad\">no</td><td>12 kB lie in swap</td>",
            "published nothing about requests",
            "As of Fri, 15 Jan 2027 08:00:00 GMT",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        for never in ["/var/lib", "/etc/test", "123,456", "<b>", "<script"] {
            assert!(!text.contains(never), "{never}\n{text}");
        }
    }

    #[test]
    fn headings_descend_one_step_at_a_time() {
        let text = shown(&sample(), None);
        let levels: Vec<u32> = text
            .match_indices("<h")
            .filter_map(|(at, _)| text[at + 2..at + 3].parse().ok())
            .collect();
        assert_eq!(levels[0], 1);
        assert_eq!(levels.iter().filter(|level| **level == 1).count(), 1);
        assert!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
    }

    #[test]
    fn the_operators_words_are_words() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("requests.md");
        std::fs::write(&file, "# 2026\n\n<script>x</script> [a](http://b)\n").unwrap();
        let text = shown(&sample(), Some(&Requests::read(&file)));
        assert!(
            text.contains("<h3>2026</h3><p>&lt;script&gt;x&lt;/script&gt; [a](http://b)</p>"),
            "{text}"
        );
        let missing = Requests::read(&folder.path().join("none"));
        assert!(shown(&sample(), Some(&missing)).contains("cannot be read at the moment"));
    }

    #[tokio::test]
    async fn visitors_see_the_same_page_for_ten_minutes() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        let publication = Publication::new(&PublicationSettings::default(), move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { sample() }
        })
        .unwrap();
        let begun = Instant::now();
        for (seconds, expected) in [(0, 1), (599, 1), (601, 2), (701, 2)] {
            let now = begun + Duration::from_secs(seconds);
            let (one, two) = tokio::join!(publication.response_at(now), publication.response_at(now));
            assert_eq!((one.status().as_u16(), two.status().as_u16()), (200, 200));
            assert_eq!(looks.load(Ordering::Relaxed), expected);
        }
        let off = PublicationSettings {
            page: false,
            ..PublicationSettings::default()
        };
        assert!(Publication::new(&off, || async { sample() }).is_none());
    }
}
