//! "Is my TURN working?": one page that tries the relay from the browser of whoever opens it.
//!
//! In: what the settings say of the relay, where its name leads, requests of browsers. Out: the page, and for each check a credential that
//! is soon over. Never: keeps or logs anything of a visitor, answers under a name that is not ours, or lets a browser run what is not in the
//! page itself.

use crate::hazards::{Hazard, Standing, is_private};
use crate::offer::{NoTicket, Ticket, TurnUrl, expiry};
use crate::settings::PageSettings;
use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};
use turn_core::control;
use turn_core::time::{Rate, nanoseconds};

/// What the page says of the relay; a reload brings another.
pub struct Facts {
    pub urls: Vec<TurnUrl>,
    /// What clients are told their relayed addresses are.
    pub advertised: Vec<IpAddr>,
    pub standing: Standing,
    pub control: Arc<control::Settings>,
    /// Beyond it the relay takes no timed name.
    pub longest_life: Duration,
}

pub struct Page {
    facts: Mutex<Arc<Facts>>,
    public_host: Option<String>,
    life: Duration,
    rate: Rate,
    began: Instant,
    /// See [`Rate::admit`].
    paid_until: Mutex<u64>,
}

impl Page {
    pub fn new(settings: &PageSettings, facts: Facts) -> Arc<Self> {
        let a_minute = settings.credentials_per_minute.get();
        Arc::new(Self {
            facts: Mutex::new(Arc::new(facts)),
            public_host: settings.public_host.clone(),
            life: settings.credential_life.get(),
            rate: Rate::new(a_minute, a_minute * 60),
            began: Instant::now(),
            paid_until: Mutex::new(0),
        })
    }

    pub fn reload(&self, facts: Facts) {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
    }

    /// `/` and `/start`.
    pub fn router(self: &Arc<Self>) -> Router {
        let (shown, started) = (Arc::clone(self), Arc::clone(self));
        Router::new()
            .route("/", get(async move |headers: HeaderMap| shown.show(&headers)))
            .route(
                "/start",
                post(async move |headers: HeaderMap| started.start(&headers).await),
            )
    }

    fn show(&self, headers: &HeaderMap) -> Response {
        match self.ours(headers) {
            Ok(_) => {
                metrics::counter!("page_views_total").increment(1);
                DOCUMENT.response()
            }
            Err(refusal) => refusal.response(),
        }
    }

    /// What one check needs.
    async fn start(self: &Arc<Self>, headers: &HeaderMap) -> Response {
        if let Err(refusal) = self.ours(headers).and_then(|host| self.asked_by_page(headers, host)) {
            return refusal.response();
        }
        if !self.has_one_more() {
            return Refusal::Rate.response();
        }
        let facts = Arc::clone(&self.facts.lock().unwrap_or_else(PoisonError::into_inner));
        let page = Arc::clone(self);
        // Certificates are judged, files of the system are read, and names are looked up.
        let begun = tokio::task::spawn_blocking(move || page.begun(&facts)).await;
        match begun {
            Ok(begun) => {
                let kind = [(header::CONTENT_TYPE, "application/json")];
                kept_nowhere((kind, begun.to_string()).into_response())
            }
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    fn begun(&self, facts: &Facts) -> Value {
        let now = SystemTime::now();
        let hazard = |hazard: &Hazard| json!({ "name": hazard.trouble.label(), "advice": hazard.advice });
        let hazards: Vec<Value> = facts.standing.hazards(now).iter().map(hazard).collect();
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut begun = json!({
            "now": since_1970.as_millis() as u64,
            "advertised": facts.advertised,
            "known_as": known_as(&facts.urls),
            "hazards": hazards,
        });
        let life = self.life.min(facts.longest_life);
        let (key, value) = match Ticket::new(facts.control.credentials(), expiry(life)) {
            Ok(ticket) => {
                metrics::counter!("page_credentials_total").increment(1);
                ("server", ticket.ice_server(&facts.urls))
            }
            Err(NoTicket::NoTimedSecret) => ("missing", Value::from(NoTicket::NoTimedSecret.to_string())),
            Err(fault) => ("missing", Value::from(fault.to_string())),
        };
        if let Some(begun) = begun.as_object_mut() {
            begun.insert(key.to_owned(), value);
        }
        begun
    }

    fn has_one_more(&self) -> bool {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        // In units of a sixtieth of a credential, so that a rate a minute is one a second.
        match self.rate.admit(*paid_until, nanoseconds(self.began.elapsed()), 60) {
            Some(until) => {
                *paid_until = until;
                true
            }
            None => false,
        }
    }

    /// The host that was asked for. A name that is not ours may be a stranger's that points here, so that the stranger's own page, in a
    /// browser that reaches us, would count as of the same origin. An address belongs to nobody else.
    fn ours<'a>(&self, headers: &'a HeaderMap) -> Result<&'a str, Refusal> {
        let host = one(headers, &header::HOST).ok_or(Refusal::Host)?;
        let name = name_of(host);
        let is_ours = name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self
                .public_host
                .as_deref()
                .is_some_and(|public| public.eq_ignore_ascii_case(name));
        if is_ours { Ok(host) } else { Err(Refusal::Host) }
    }

    /// Only our own page may ask for a credential.
    fn asked_by_page(&self, headers: &HeaderMap, host: &str) -> Result<(), Refusal> {
        if one(headers, &FETCH_SITE).is_some_and(|site| site != "same-origin") {
            return Err(Refusal::Origin);
        }
        let origin = one(headers, &header::ORIGIN).ok_or(Refusal::Origin)?;
        let (_, from) = origin.split_once("://").ok_or(Refusal::Origin)?;
        match from.eq_ignore_ascii_case(host) {
            true => Ok(()),
            false => Err(Refusal::Origin),
        }
    }
}

/// Where the hosts of these URLs are; nothing of a name that is not known in time.
fn known_as(urls: &[TurnUrl]) -> Vec<IpAddr> {
    let hosts: BTreeSet<&str> = urls.iter().map(|url| url.host.as_str()).collect();
    let addresses = hosts.into_iter().flat_map(|host| match host.parse() {
        Ok(address) => vec![address],
        Err(_) => public_addresses(host),
    });
    addresses.collect()
}

/// A machine often knows its own name by an address that it has for itself, which says nothing of where others go.
fn public_addresses(name: &str) -> Vec<IpAddr> {
    let (tell, told) = mpsc::channel();
    let name = name.to_owned();
    // The system's resolver has no deadline; a thread that is left behind ends by itself.
    std::thread::spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        let _ = tell.send(found.map(Iterator::collect::<Vec<_>>).unwrap_or_default());
    });
    let found = told.recv_timeout(LOOK_UP_WITHIN).unwrap_or_default();
    let addresses: BTreeSet<IpAddr> = found.iter().map(SocketAddr::ip).collect();
    addresses.into_iter().filter(|address| !is_private(*address)).collect()
}

/// `None` if it is not there, twice there, or not text.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Without the port, and IPv6 without its brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or(v6, |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Why a request is not served. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Asked for under a name that is not ours.
    Host,
    /// A page of somebody else asks.
    Origin,
    Rate,
}

impl Refusal {
    fn response(self) -> Response {
        let (status, label, words) = match self {
            Self::Host => (
                StatusCode::FORBIDDEN,
                "host",
                "This name is not mine. Use an address, or set page.public_host.\n",
            ),
            Self::Origin => (
                StatusCode::FORBIDDEN,
                "origin",
                "Only my own page may ask this. A proxy must pass the Host header on.\n",
            ),
            Self::Rate => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate",
                "Too many checks at once. Try again in a minute.\n",
            ),
        };
        metrics::counter!("page_refused_total", "reason" => label).increment(1);
        kept_nowhere((status, words).into_response())
    }
}

/// The page as it is sent.
struct Document {
    html: String,
    policy: HeaderValue,
}

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let html = include_str!("page/page.html")
        .replace("/*style*/", STYLE)
        .replace("/*script*/", SCRIPT);
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; connect-src 'self'; style-src {}; script-src {}; require-trusted-types-for 'script'; trusted-types 'none'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    Document {
        html,
        policy: HeaderValue::try_from(policy).expect("base64 and words are a header value"),
    }
});

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

impl Document {
    fn response(&self) -> Response {
        let mut response = self.html.as_str().to_owned().into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        kept_nowhere(response)
    }
}

/// Neither a browser nor a proxy keeps it, and no other site sees anything of it.
fn kept_nowhere(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A visitor waits for it.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(2);
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_the_addresses_that_others_reach() {
        let known = |hosts: &[&str]| {
            let url = |host: &&str| format!("turn:{host}:3478").parse().unwrap();
            known_as(&hosts.iter().map(url).collect::<Vec<_>>())
        };
        let addresses = |text: &[&str]| text.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
        // An address is what clients are told, whatever it is.
        let told = known(&["10.0.0.5", "[2a00::9]", "10.0.0.5"]);
        assert_eq!(told, addresses(&["10.0.0.5", "2a00::9"]));
        // Every resolver reads this name as 1.2.3.4 without asking anybody.
        assert_eq!(known(&["0x01020304"]), addresses(&["1.2.3.4"]));
        assert_eq!(known(&["localhost"]), addresses(&[]));
    }
}
