//! What a whole process prints while it is asked everything, at the level that prints most.

use super::*;
use quietline_shared::service::telemetry::{self, Format, Level};
use std::process::Command;

#[test]
fn nothing_about_a_person_is_printed_at_trace() {
    for format in ["text", "json"] {
        // The log of a process can be set up only once, so this one belongs to a child.
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "canaries::a_process_that_is_asked_everything_goes_on",
                "--nocapture",
            ])
            .env("FORMAT", format)
            .output()
            .unwrap();
        let printed = String::from_utf8(child.stderr).unwrap();
        assert!(child.status.success(), "{printed}");
        assert!(printed.contains("the log is heard"), "{printed}");
        assert!(printed.contains("a task panicked"), "{printed}");
        let (account, signature) = signed(88, |account| format!("MONITOR{account}{NOW}10,1"));
        let base64_key = "n5+f";
        for canary in [
            &account[2..18],
            &signature[..16],
            "device-88",
            "9f9f9f",
            base64_key,
            "127.0.0.1",
            "203.0.113",
            "42424242",
        ] {
            assert!(!printed.to_lowercase().contains(canary), "{canary} in {printed}");
        }
    }
}

/// Also the child of the test above, which reads what this prints.
#[tokio::test]
async fn a_process_that_is_asked_everything_goes_on() {
    let format = if std::env::var("FORMAT").is_ok_and(|name| name == "json") {
        Format::Json
    } else {
        Format::Text
    };
    let metrics = telemetry::install(LogSettings {
        level: Level::Trace,
        format,
    })
    .unwrap();
    tracing::trace!(target: "quietline_notifier", "the log is heard");
    let server = start("request_timeout = \"3s\"").await;
    for item in [
        subscription(88),
        unsubscription(88),
        subscription_at(88, 5),
        json!([subscription(88), 5]),
    ] {
        for path in ["/subscribe", "/unsubscribe"] {
            server
                .request(
                    "POST",
                    path,
                    "X-Forwarded-For: 203.0.113.9\r\n",
                    item.to_string().as_bytes(),
                )
                .await;
            server
                .through_onion(Cipher::AesGcm, path, item.to_string().as_bytes())
                .await;
        }
    }
    let half = subscription(88).to_string();
    server.post("/subscribe", &half.as_bytes()[..200]).await;
    server.post("/oxen/v4/lsrpc", half.as_bytes()).await;
    server
        .raw(format!("POST /{half} HTTP/1.1\r\n{half}\r\n\r\n").as_bytes())
        .await;
    server
        .raw(format!("POST /subscribe HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{half}").as_bytes())
        .await;
    server.trouble(Trouble::Refuses);
    server.post_json("/subscribe", &subscription(88)).await;
    server.trouble(Trouble::Panics);
    let text = subscription(88).to_string();
    let request = format!(
        "POST /subscribe HTTP/1.1\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    assert!(server.raw(request.as_bytes()).await.is_empty());
    server.trouble(Trouble::None);
    assert_eq!(server.post_json("/subscribe", &subscription(88)).await.code, 200);
    assert!(metrics.render().contains("service_panics_total 1"));
}
