//! What strangers send: garbage, too much, too slowly, without end.

use super::*;

const PATHS: [&str; 3] = ["/subscribe", "/unsubscribe", "/oxen/v4/lsrpc"];

#[tokio::test]
async fn garbage_gets_a_constant_answer() {
    let server = start("direct_burst = 100000").await;
    let deep = "[".repeat(100_000);
    let deep_object = "{\"a\":".repeat(50_000);
    let many = format!("[{}0]", "0,".repeat(100_000));
    let bodies: [&[u8]; 8] = [
        b"\0",
        b"{not json",
        b"\xff\xfe\xfd",
        b"null",
        b"\"text\"",
        deep.as_bytes(),
        deep_object.as_bytes(),
        many.as_bytes(),
    ];
    for body in bodies {
        for path in ["/subscribe", "/unsubscribe"] {
            let reply = server.post(path, body).await;
            assert_eq!(reply.code, 200, "{path}");
            assert!(
                matches!(reply.json()["error"].as_u64(), Some(1 | 4)),
                "{:?}",
                reply.json()
            );
            assert!(reply.body.len() < 200);
        }
        let reply = server.post("/oxen/v4/lsrpc", body).await;
        assert_eq!((reply.code, &reply.body[..]), (400, &b"Invalid v4 onion request"[..]));
        assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
        for cipher in [Cipher::AesGcm, Cipher::XChaCha20] {
            let (code, _) = server.through_onion(cipher, "/subscribe", body).await;
            assert_eq!(code, 200);
        }
    }
    for path in PATHS {
        let reply = server.post(path, b"").await;
        let expected = if path == "/oxen/v4/lsrpc" { 400 } else { 200 };
        assert_eq!(reply.code, expected, "{path}");
    }
    let missing = json!({"error": 1, "message": "Invalid request: request body missing"});
    assert_eq!(server.post("/subscribe", b"").await.json(), missing);
}

/// A sequence that is the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

#[tokio::test]
async fn damaged_requests_are_answered_and_none_ends_the_server() {
    let server = start("direct_burst = 100000").await;
    let item = json!([subscription(1), subscription(2)]).to_string().into_bytes();
    let (onion, _) = server.client.seal(Cipher::XChaCha20, "POST", "/subscribe", Some(&item));
    let mut dice = Dice(5);
    for round in 0..300 {
        let (path, whole) = if round % 2 == 0 {
            ("/subscribe", &item)
        } else {
            ("/oxen/v4/lsrpc", &onion)
        };
        let mut damaged = whole.clone();
        match round % 3 {
            0 => damaged.truncate(dice.roll(whole.len())),
            1 => {
                for _ in 0..=dice.roll(4) {
                    let place = dice.roll(damaged.len());
                    damaged[place] ^= 1 << dice.roll(8);
                }
            }
            _ => {
                let place = dice.roll(damaged.len());
                let end = (place + dice.roll(40)).min(damaged.len());
                damaged.drain(place..end);
            }
        }
        let reply = server.post(path, &damaged).await;
        assert!(matches!(reply.code, 200 | 400 | 425), "{path} {}", reply.code);
    }
    assert_eq!(server.post("/subscribe", &item).await.code, 200);
}

#[tokio::test]
async fn damaged_text_inside_an_onion_is_answered_in_secret() {
    let server = start("").await;
    let text = br#"l40:{"method":"POST","endpoint":"/subscribe"}2:[]e"#;
    let mut dice = Dice(11);
    for round in 0..200 {
        let mut damaged = text.to_vec();
        if round % 2 == 0 {
            damaged.truncate(dice.roll(text.len()));
        } else {
            let place = dice.roll(damaged.len());
            damaged[place] = dice.roll(256) as u8;
        }
        let (sealed, key) = server.client.seal_text(Cipher::AesGcm, &damaged);
        let reply = server.post("/oxen/v4/lsrpc", &sealed).await;
        assert_eq!(reply.code, 200);
        assert!(matches!(key.open(&reply.body).code, 200 | 400 | 404 | 405));
    }
}

#[tokio::test]
async fn a_body_counts_up_to_the_limit_and_not_beyond() {
    let server = start("").await;
    let padded = |length: usize| {
        let mut text = b"[]".to_vec();
        text.resize(length, b' ');
        text
    };
    let too_large = json!({"error": 1, "message": "Invalid request: request too large"});
    for (length, expected) in [
        (99_999, json!([])),
        (100_001, json!([])),
        (262_144, json!([])),
        (262_145, too_large.clone()),
        (300_000, too_large.clone()),
    ] {
        let reply = server.post("/subscribe", &padded(length)).await;
        assert_eq!((reply.code, reply.json()), (200, expected.clone()), "{length}");
        let (code, body) = server
            .through_onion(Cipher::XChaCha20, "/subscribe", &padded(length))
            .await;
        assert_eq!(
            (code, serde_json::from_slice::<Value>(&body).unwrap()),
            (200, expected),
            "{length}"
        );
    }
    let reply = server.post("/subscribe", &padded(1 << 20)).await;
    assert_eq!((reply.code, reply.json()), (200, too_large));
    assert_eq!(server.post("/oxen/v4/lsrpc", &padded(1 << 20)).await.code, 413);
}

#[tokio::test]
async fn a_hundred_items_with_long_tokens_fit() {
    let server = start("").await;
    let items: Vec<Value> = (0..100)
        .map(|seed| {
            let mut item = subscription(seed);
            item["service_info"]["token"] = json!("t".repeat(300));
            item
        })
        .collect();
    let reply = server.post_json("/subscribe", &json!(items)).await;
    assert_eq!((reply.code, reply.json()), (200, json!(vec![added(); 100])));
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let server = start("body_limit = 4096").await;
    for path in PATHS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        // Ends only because the server stops reading.
        let write = async { while writer.write_all(chunk.as_bytes()).await.is_ok() {} };
        let read = async {
            let mut answer = Vec::new();
            let _ = reader.read_to_end(&mut answer).await;
            answer
        };
        let ((), answer) = tokio::join!(write, read);
        // The answer may be lost to the reset that ends the flood.
        if !answer.is_empty() {
            let reply = parse_reply(&answer);
            assert!(matches!(reply.code, 200 | 413), "{path} {}", reply.code);
        }
    }
    let announced = b"POST /oxen/v4/lsrpc HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(parse_reply(&server.raw(announced).await).code, 413);
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let server = start("request_timeout = \"300ms\"").await;
    for path in PATHS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n[");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let reply = parse_reply(&answer);
        assert_eq!((reply.code, reply.header("connection")), (408, Some("close")), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_refused() {
    let server = start("").await;
    for path in PATHS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n[]");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || parse_reply(&answer).code == 400, "{path}");
    }
}

#[tokio::test]
async fn what_follows_a_refused_body_is_not_taken_for_a_request() {
    let server = start("body_limit = 1024").await;
    let inner = "POST /subscribe HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]";
    let body = format!("{}{inner}", "x".repeat(70_000));
    let mut request = format!(
        "POST /oxen/v4/lsrpc HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    request.push_str(&body);
    let answer = String::from_utf8(server.raw(request.as_bytes()).await).unwrap();
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let both =
        "POST /subscribe HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = String::from_utf8(server.raw(both.as_bytes()).await).unwrap();
    assert!(answer.matches("HTTP/1.1").count() <= 1, "{answer}");
}

#[tokio::test]
async fn an_onion_inside_an_onion_goes_nowhere() {
    let server = start("").await;
    let (inner, _) = server.client.seal(Cipher::AesGcm, "POST", "/subscribe", Some(b"[]"));
    for endpoint in [
        "/oxen/v4/lsrpc",
        "/info",
        "/%6fxen/v4/lsrpc",
        "/subscribe/../oxen/v4/lsrpc",
    ] {
        let (sealed, key) = server.client.seal(Cipher::AesGcm, "POST", endpoint, Some(&inner));
        let reply = server.post("/oxen/v4/lsrpc", &sealed).await;
        let answer = key.open(&reply.body);
        assert_eq!(
            (reply.code, answer.code, &answer.body[..]),
            (200, 404, &b"Not Found"[..]),
            "{endpoint}"
        );
    }
}

#[tokio::test]
async fn an_onion_for_another_key_is_unreadable() {
    let server = start("").await;
    let stranger = Client::with_secret([9; 32], [0x21; 32]);
    let (sealed, _) = stranger.seal(Cipher::XChaCha20, "POST", "/subscribe", Some(b"[]"));
    let reply = server.post("/oxen/v4/lsrpc", &sealed).await;
    assert_eq!((reply.code, &reply.body[..]), (400, &b"Invalid v4 onion request"[..]));
}
