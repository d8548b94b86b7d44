use super::*;
use serde_json::Value;
use std::fmt::Write;

const NOW: u64 = 1_800_000_123;

/// A settings file beside two secrets, and what is read from it.
fn read_text(text: &str) -> Result<Option<TurnOffer>, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [("one", "0f1e2d3c4b5a69788796a5b4c3d2e1f0"), ("short", "0f1e2d3c")] {
        std::fs::write(folder.path().join(name), secret).unwrap();
    }
    let path = folder.path().join("notifier.toml");
    std::fs::write(&path, text).unwrap();
    let mut file = SettingsFile::read(&path).unwrap();
    let offer = read(&mut file);
    match file.finish_partly() {
        Ok(_) => Ok(offer),
        Err(faults) => Err(faults.to_string()),
    }
}

fn servers(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let _ = writeln!(
            text,
            "[[turn.server]]\noperator = \"{number}\"\nurls = [\"turn:r{number}.example.net\"]\nsecret_file = \"one\""
        );
        text
    })
}

fn desk(head: &str) -> (TurnDesk, watch::Sender<Option<Arc<TurnOffer>>>) {
    let offer = read_text(&format!("[turn]\n{head}\n{}", servers(2))).unwrap();
    let (sender, receiver) = watch::channel(offer.map(Arc::new));
    (TurnDesk::new(receiver), sender)
}

fn code_of(answer: &Answer) -> u16 {
    answer.code.as_u16()
}

#[test]
fn everything_else_than_the_one_request_is_refused_by_name() {
    let (desk, _sender) = desk("");
    let given = desk.answer(b"{}", NOW);
    assert_eq!(code_of(&given), 200);
    for (body, message) in [
        (&b""[..], "Invalid request: request body missing"),
        (b"{\"account\":\"05ab\"}", "Invalid request: the body is not {}"),
        (b"[{}]", "Invalid request: the body is not {}"),
        (&[0xff; 5_000], "Invalid request: the body is not {}"),
    ] {
        let refused = desk.answer(body, NOW);
        assert_eq!((code_of(&refused), refused.json.len()), (400, given.json.len()));
        let json: Value = serde_json::from_str(&refused.json).unwrap();
        assert_eq!(json, json!({"error": 1, "message": message}));
    }
    assert_eq!(desk.refuse_too_large().json.len(), given.json.len());
}

#[test]
fn an_epoch_that_is_used_up_says_when_the_next_begins() {
    let (desk, sender) = desk("epoch = \"10m\"\nper_epoch = 3");
    let codes = |now| (0..5).map(|_| code_of(&desk.answer(b"{}", now))).collect::<Vec<_>>();
    assert_eq!(codes(NOW), [200, 200, 200, 503, 503]);
    let json: Value = serde_json::from_str(&desk.answer(b"{}", NOW).json).unwrap();
    assert_eq!(json["retry_after"], 600 - NOW % 600);
    // What is refused for its shape uses nothing up.
    assert_eq!(code_of(&desk.answer(b"[]", NOW)), 400);
    let again = read_text(&format!("[turn]\nepoch = \"10m\"\nper_epoch = 3\n{}", servers(2))).unwrap();
    sender.send_replace(again.map(Arc::new));
    assert_eq!(codes(NOW), [503; 5], "a reload is no new epoch");
    assert_eq!(codes(NOW + 600), [200, 200, 200, 503, 503]);
}

#[test]
fn a_flood_gets_the_rate_and_no_more() {
    let (desk, _sender) = desk("rate = 1\nburst = 10");
    let began = Instant::now();
    let given = (0..1_000).filter(|_| code_of(&desk.answer(b"{}", NOW)) == 200).count() as u64;
    assert!((10..=11 + began.elapsed().as_secs()).contains(&given), "{given}");
}

#[test]
fn without_relays_there_is_no_such_endpoint() {
    let (desk, sender) = desk("");
    assert!(desk.is_offered());
    sender.send_replace(None);
    assert!(!desk.is_offered());
    assert_eq!(code_of(&desk.answer(b"{}", NOW)), 503, "one that was on its way");
}

#[test]
fn names_are_new_each_time() {
    let (desk, _sender) = desk("");
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..500 {
        let json: Value = serde_json::from_str(&desk.answer(b"{}", NOW).json).unwrap();
        for server in json["iceServers"].as_array().unwrap() {
            let name = server["username"].as_str().unwrap();
            assert!(names.insert(name.to_owned()));
            assert_eq!(name.len(), 10 + 1 + 32);
        }
    }
    assert_eq!(names.len(), 1_000);
}

#[test]
fn faults_of_the_section_are_named_with_their_places() {
    assert!(read_text("[http]").unwrap().is_none(), "no section, no relays");
    let text = format!(
        "[turn]\n{}{}",
        servers(1),
        "[[turn.server]]\noperator = \"b\"\nurls = [\"stun:a\", \"turn:b\"]\nsecret_file = \"short\"\n\
         [[turn.server]]\noperator = \"c\"\nurls = [\"turn:c\"]\nsecret_file = \"missing\""
    );
    let faults = read_text(&text).err().unwrap();
    for place in [
        "turn.server[1].urls[0]: ",
        "turn.server[1].secret_file: ",
        "turn.server[2].secret_file: ",
    ] {
        assert!(faults.contains(place), "{place}: {faults}");
    }
    assert_eq!(faults.lines().count(), 3, "{faults}");
    for (text, place) in [
        ("[turn]".to_owned(), "turn.server"),
        (format!("[turn]\n{}", servers(65)), "turn.server"),
        (format!("[turn]\nepoch = \"5s\"\n{}", servers(1)), "turn.epoch"),
        (format!("[turn]\nper_epoch = 0\n{}", servers(1)), "turn.per_epoch"),
        (format!("[turn]\nrate = 0\n{}", servers(1)), "turn.rate"),
        (format!("[turn]\nsecret = 'x'\n{}", servers(1)), "turn.secret"),
        (format!("[turn]\n{}lifetime = \"8d\"", servers(1)), "turn.server"),
        (format!("[turn]\n{}algorithm = \"md5\"", servers(1)), "turn.server"),
    ] {
        let faults = read_text(&text).err().unwrap();
        assert!(faults.starts_with(place), "{place}: {faults}");
    }
}

#[test]
fn the_example_settings_show_the_defaults() {
    let example = include_str!("../../../../deploy/notifier.toml");
    let section = example.split_once("# [turn]\n").unwrap().1;
    let section = section.split_once("\n\n").unwrap().0;
    let shown: String = section
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap().to_owned() + "\n")
        .collect();
    let shown: toml::Table = toml::from_str(&format!("[turn]\n{shown}")).unwrap();
    let shown: TurnSettings = shown["turn"].clone().try_into().unwrap();
    let default: TurnSettings = toml::from_str("[[server]]\noperator = 'a'\nurls = []\nsecret_file = 'a'\n").unwrap();
    assert_eq!(
        (shown.epoch, shown.per_epoch, shown.rate, shown.burst),
        (default.epoch, default.per_epoch, default.rate, default.burst)
    );
    assert_eq!(shown.server.len(), 2);
    for server in &shown.server {
        assert!(server.urls.iter().all(|url| RelayUrl::parse(url).is_ok()));
        let default = &default.server[0];
        assert_eq!(
            (server.algorithm, server.lifetime),
            (default.algorithm, default.lifetime)
        );
    }
}
