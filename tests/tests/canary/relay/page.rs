//! Visitors of the relay's page, and its operator. What visitors show of themselves stays nowhere, and is not said to them again.

use super::{CLIENTS, PATIENCE, SERVER, World, word};
use quietline_lab::turn::server::binary;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;

/// Where a proxy, or here everybody, finds it.
pub const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVER), 8080);

impl World {
    /// The page as browsers ask for it, as strangers do, and as nobody should.
    pub fn visits(&mut self) {
        let (host, stranger) = (PAGE.to_string(), format!("{}.example", word()));
        self.values.mark("name of a stranger's site", stranger.as_bytes());
        let same = format!("Origin: http://{PAGE}\r\nSec-Fetch-Site: same-origin\r\n");
        let other = format!("Origin: http://{stranger}\r\n");
        let nowhere = format!("GET /{}", self.marked("a path"));
        let asked = format!("GET /?{}", self.marked("a query"));
        for (request, host, headers, expected) in [
            ("GET /", &*host, "", 200),
            (&asked, &host, "", 200),
            (&nowhere, &host, "", 404),
            ("GET /", &stranger, "", 403),
            ("POST /start", &stranger, &same, 403),
            ("POST /start", &host, &other, 403),
            ("GET /start", &host, &same, 405),
        ] {
            let answer = self.visit(request, host, headers);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {expected}")),
                "{request}: {answer}"
            );
            self.sinks.add("page", answer);
        }
        for _ in 0..2 {
            self.start_a_check(&host, &same);
        }
        let too_many = self.visit("POST /start", &host, &same);
        assert!(too_many.starts_with("HTTP/1.1 429"), "{too_many}");
        self.sinks.add("/start", too_many);
        // No HTTP, and too long a head.
        for bytes in [
            self.marked("no request"),
            format!("GET / HTTP/1.1\r\nX: {}", self.marked("a header").repeat(4_000)),
        ] {
            let answer = self.say(format!("{bytes}\r\n\r\n").as_bytes());
            self.sinks.add("page", answer);
        }
    }

    /// What a visitor is given on purpose is theirs alone: it is taken out of the answer, and stands nowhere else. The relay's own address,
    /// of which a relayed one is made, is everybody's.
    fn start_a_check(&mut self, host: &str, headers: &str) {
        let answer = self.visit("POST /start", host, headers);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let mut json: Value = serde_json::from_str(body).unwrap();
        for field in ["username", "credential"] {
            let given = json["server"][field].take();
            let given = given.as_str().unwrap();
            let random = given.split_once(':').map_or(given, |(_, random)| random);
            self.values.mark(format!("{field} of a visitor"), random.as_bytes());
        }
        for public in ["/advertised", "/known_as", "/server/urls"] {
            assert!(json.pointer_mut(public).unwrap().take().is_array(), "{public}");
        }
        self.sinks.add("/start", format!("{head}\n{json}"));
    }

    /// Everything that this relay's operator can ask it for; `is_good`: whether its settings are.
    pub fn audits(&mut self, is_good: bool) {
        for form in [&[][..], &["--json"]] {
            let mut line = Command::new(binary());
            line.arg("audit").args(form).arg("--settings");
            line.arg(self.site.folder.join("turn.toml"));
            let output = self.site.home.run(|| line.output()).unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert_eq!(output.status.success(), is_good, "{}", String::from_utf8_lossy(&said));
            self.sinks.add("audit", said);
        }
    }

    fn marked(&mut self, name: &str) -> String {
        let word = word();
        self.values.mark(name, word.as_bytes());
        word
    }

    /// One request of somebody with an address of their own, who is told by everything else that a request can carry.
    fn visit(&mut self, request: &str, host: &str, headers: &str) -> String {
        let forwarded = self.address(CLIENTS);
        let told = ["User-Agent", "Referer", "Cookie", "Accept-Language"]
            .map(|name| format!("{name}: {}\r\n", self.marked(name)))
            .concat();
        self.say(
            format!(
                "{request} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: {forwarded}\r\n{told}{headers}Connection: close\r\n\
                 Content-Length: 0\r\n\r\n"
            )
            .as_bytes(),
        )
    }

    fn say(&mut self, bytes: &[u8]) -> String {
        let ip = self.address(CLIENTS);
        let mut stream = self.site.tcp(ip.into(), PAGE);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let local = stream.local_addr().unwrap();
        self.mark_socket("visitor", local);
        // It may be refused before all of it has come.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}
