//! A page that people read: one document, one style, nothing fetched from anywhere.
//!
//! In: a title and a body. Out: a whole HTML document and the headers it is served with. Never: lets a value become markup, lets a browser
//! load, send or run what is not in the document itself, or asks it to remember anything.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Markup that is made by calls: what is text is escaped, what is opened is closed. Names of elements and attributes are constants.
#[derive(Clone, Debug, Default)]
pub struct Html(String);

impl Html {
    pub fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    /// An element with what `inside` puts into it.
    pub fn element(
        &mut self,
        name: &'static str,
        attributes: &[(&'static str, &str)],
        inside: impl FnOnce(&mut Self),
    ) -> &mut Self {
        self.open(name, attributes);
        inside(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
        self
    }

    /// An element without attributes that holds text.
    pub fn line(&mut self, name: &'static str, text: &str) -> &mut Self {
        self.element(name, &[], |html| {
            html.text(text);
        })
    }

    /// `ul` with an `li` for each text; nothing for none.
    pub fn list<T: AsRef<str>>(&mut self, items: &[T]) -> &mut Self {
        if items.is_empty() {
            return self;
        }
        self.element("ul", &[], |html| {
            for item in items {
                html.line("li", item.as_ref());
            }
        })
    }

    fn open(&mut self, name: &'static str, attributes: &[(&'static str, &str)]) {
        self.0.push('<');
        self.0.push_str(name);
        for (name, value) in attributes {
            self.0.push(' ');
            self.0.push_str(name);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
        self.0.push('>');
    }

    /// Our own style or script: a browser takes it literally up to its end tag.
    fn raw(&mut self, name: &'static str, constant: &'static str) {
        self.element(name, &[], |html| html.0.push_str(constant));
    }
}

/// A document that is ready to be served.
#[derive(Clone, Debug)]
pub struct Page {
    html: Bytes,
    policy: HeaderValue,
}

impl Page {
    /// `body` begins with the `h1` and stands in the landmark `main`. A screen reader jumps to it; there is nothing before it.
    pub fn new(title: &str, body: &Html) -> Self {
        Self::build(title, body, None)
    }

    /// As [`Self::new`], for a page that measures something in the browser. It must say what it says without its script as well.
    pub fn with_script(title: &str, body: &Html, script: &'static str) -> Self {
        Self::build(title, body, Some(script))
    }

    fn build(title: &str, body: &Html, script: Option<&'static str>) -> Self {
        let mut document = Html("<!DOCTYPE html>".to_owned());
        document.element("html", &[("lang", "en")], |html| {
            html.element("head", &[], |head| {
                head.open("meta", &[("charset", "utf-8")]);
                head.open(
                    "meta",
                    &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")],
                );
                head.open("meta", &[("name", "color-scheme"), ("content", "light dark")]);
                head.line("title", title);
                head.raw("style", STYLE);
            });
            html.element("body", &[], |html| {
                html.element("main", &[], |main| main.0.push_str(&body.0));
                if let Some(script) = script {
                    html.raw("script", script);
                }
            });
        });
        Self {
            html: Bytes::from(document.0),
            policy: policy(script),
        }
    }

    pub fn html(&self) -> &[u8] {
        &self.html
    }

    /// Without a trace in the browser or in a cache on the way: what it says is of this minute.
    pub fn response(&self) -> Response {
        let mut response = Response::new(Body::from(self.html.clone()));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Only our own style and script run, told by their hashes; nothing else is loaded, sent, framed or navigated to by a form.
fn policy(script: Option<&str>) -> HeaderValue {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let script = script.map_or_else(|| "'none'".to_owned(), hash);
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {script}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE)
    );
    // Base64 and words: always a header value.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

const HEADERS: [(HeaderName, &str); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// One column of readable width, the reader's own font size and colours; contrast is at least 7 to 1 in both schemes.
const STYLE: &str = "\
:root{--ink:#1b1b1f;--paper:#fdfdfb;--soft:#494950;--line:#c9c9cf;--good:#0b5a2b;--bad:#8f1414;--link:#0b4a8f}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--paper:#131316;--soft:#bdbdc6;--line:#47474f;--good:#8fe0ac;--bad:#ffb3ab;--link:#a9cdff}}
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:46rem;margin:0 auto;padding:1.25rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 1rem}
h2{font-size:1.3rem;line-height:1.25;margin:2.5rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;line-height:1.3;margin:1.75rem 0 .4rem}
p,ul,dl,table{margin:.5rem 0 .9rem}
ul{padding-left:1.3rem}
li{margin:.25rem 0}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,button:focus-visible{outline:3px solid var(--link);outline-offset:2px}
dt{font-weight:600;margin-top:.5rem}
dd{margin:0}
table{border-collapse:collapse;width:100%}
caption{text-align:left;color:var(--soft);padding-bottom:.4rem}
th,td{text-align:left;vertical-align:top;padding:.45rem .75rem .45rem 0;border-bottom:1px solid var(--line);overflow-wrap:break-word}
td:last-child{overflow-wrap:anywhere}
th{font-weight:600}
small,.soft{color:var(--soft);font-size:.9rem}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
@media(min-width:40rem){dl{display:grid;grid-template-columns:9rem 1fr;gap:.3rem 1rem}dt{margin-top:0}}
";

#[cfg(test)]
mod tests {
    use super::*;

    fn titled() -> Html {
        let mut body = Html::default();
        body.line("h1", "Title");
        body
    }

    #[test]
    fn what_is_put_into_a_page_is_escaped() {
        let evil = "</style><script>alert(1)</script>\" onload=\"x";
        let mut body = Html::default();
        body.element("h1", &[("title", evil)], |html| {
            html.text(evil);
        });
        body.list(&[evil]);
        let page = Page::new(evil, &body);
        let text = std::str::from_utf8(page.html()).unwrap();
        assert!(!text.contains("<script"), "{text}");
        assert_eq!(text.matches("&lt;script&gt;").count(), 4, "{text}");
        assert!(!text.contains("\" onload"), "{text}");
    }

    #[test]
    fn a_browser_runs_only_what_the_document_holds() {
        let header = |page: &Page, name: HeaderName| {
            let response = page.response();
            response.headers()[name].to_str().unwrap().to_owned()
        };
        let plain = Page::new("Title", &titled());
        let policy = header(&plain, header::CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(policy.contains("script-src 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let active = Page::with_script("Title", &titled(), "go()");
        let digest = STANDARD.encode(Sha256::digest("go()"));
        let policy = header(&active, header::CONTENT_SECURITY_POLICY);
        assert!(policy.contains(&format!("script-src 'sha256-{digest}'")), "{policy}");
        assert_eq!(header(&plain, header::CACHE_CONTROL), "no-store");
        assert_eq!(header(&plain, header::CONTENT_TYPE), "text/html; charset=utf-8");
    }

    #[test]
    fn a_page_has_a_language_a_title_and_one_main_landmark() {
        let page = Page::new("Title", &titled());
        let text = std::str::from_utf8(page.html()).unwrap();
        assert!(text.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{text}");
        assert!(text.contains("<title>Title</title>"), "{text}");
        assert!(text.contains("<main><h1>Title</h1></main>"), "{text}");
    }

    /// WCAG's relative luminance.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    #[test]
    fn words_stand_out_from_the_paper_in_both_schemes() {
        let schemes: Vec<&str> = STYLE.split(":root{").skip(1).collect();
        assert_eq!(schemes.len(), 2);
        for scheme in schemes {
            let colour = |name: &str| {
                let at = scheme.find(&format!("--{name}:")).unwrap() + name.len() + 3;
                luminance(&scheme[at..at + 7])
            };
            for words in ["ink", "soft", "good", "bad", "link"] {
                let (light, dark) = (colour(words).max(colour("paper")), colour(words).min(colour("paper")));
                let contrast = (light + 0.05) / (dark + 0.05);
                assert!(contrast >= 7.0, "{words}: {contrast}");
            }
        }
    }
}
