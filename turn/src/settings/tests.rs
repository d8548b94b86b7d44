use super::*;
use quietline_shared::service::config::Fault;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../../../deploy/turn.toml");
const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

fn machine() -> Machine {
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let outward = ips(&["9.9.9.9", "2a00::9"]);
    Machine::new(ips(&["9.9.9.9", "172.17.0.1", "2a00::9"]), outward)
}

struct Home(TempDir);

impl Home {
    /// With the files that the texts below name.
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let (certificate, key) = certificate::tests::pem();
        home.write("secret", SECRET);
        home.write("other-secret", &format!("{}\n", SECRET.replace('f', "a")));
        home.write("password", "053c268164bc7bd7\n");
        home.write("certificate.pem", &certificate);
        home.write("key.pem", &key);
        home
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn read(&self, text: &str) -> Result<(Settings, Vec<Fault>), Vec<Fault>> {
        self.write("turn.toml", text);
        read(&self.0.path().join("turn.toml"), &machine())
            .map(|(settings, warnings)| (settings, warnings.0))
            .map_err(|faults| faults.0)
    }

    fn good(&self, text: &str) -> Settings {
        match self.read(&format!("{AUTH}{text}")) {
            Ok((settings, warnings)) => {
                assert_eq!(warnings, []);
                settings
            }
            Err(faults) => panic!("{faults:#?}"),
        }
    }

    /// Places of the faults, in their order.
    fn faults(&self, text: &str) -> Vec<String> {
        let faults = self.read(text).err().expect("faults");
        faults.into_iter().map(|fault| fault.place).collect()
    }
}

const AUTH: &str = "auth.timed = [{ secret_file = 'secret' }]\n";

fn addresses(relays: &RelayTable) -> Vec<(String, String)> {
    (0..)
        .map_while(|number| relays.get(number))
        .map(|relay| (relay.bind.to_string(), relay.advertised.to_string()))
        .collect()
}

// ---- The example

#[test]
fn the_example_loads_and_its_values_are_the_defaults() {
    let home = Home::new();
    home.write("keys/turn-secret", SECRET);
    let (example, warnings) = home.read(EXAMPLE).ok().unwrap();
    assert_eq!(warnings, []);
    let defaults = home.good("");
    assert_eq!(example.fixed, defaults.fixed);
    assert_eq!(example.place.listeners, defaults.place.listeners);
    assert_eq!(addresses(&example.place.relays), addresses(&defaults.place.relays));
    assert_eq!(example.credentials.realm(), defaults.credentials.realm());
    assert!(example.peers == defaults.peers);
    assert_eq!(example.limits, defaults.limits);
    assert_eq!(example.streams, defaults.streams);
    assert_eq!(example.drain, defaults.drain);
    // And those are what the core calls its defaults.
    assert_eq!(defaults.limits, Limits::default());
    assert_eq!(defaults.streams, StreamSettings::default());
    assert_eq!(defaults.fixed.nonce_epoch, turn_core::auth::NONCE_EPOCH);
    assert_eq!(defaults.place.relays.ports(), RELAY_PORTS);
}

#[test]
fn the_example_holds_every_setting() {
    // Who reads a section with an unknown key is told which keys there are.
    fn known<T: serde::de::DeserializeOwned>() -> Vec<String> {
        let fault = serde_json::from_str::<T>("{\"?\": 0}").err().unwrap().to_string();
        let (_, known) = fault.split_once("expected ").unwrap();
        known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
    let shown = |section: &str| -> BTreeSet<String> {
        let mut lines = EXAMPLE.lines().map(|line| line.trim_start_matches("# "));
        lines
            .find(|line| *line == section)
            .unwrap_or_else(|| panic!("{section} is not in the example"));
        let keys = lines.take_while(|line| !line.starts_with('['));
        keys.filter_map(|line| line.split_once(" = "))
            .map(|(key, _)| key.to_owned())
            .collect()
    };
    let mut sections = vec![
        ("[listen]", known::<ListenSettings>()),
        ("[relay]", known::<RelaySettings>()),
        ("[[relay.address]]", known::<RelayAddressSettings>()),
        ("[auth]", known::<AuthSettings>()),
        ("[[auth.user]]", known::<UserSettings>()),
        ("[[auth.timed]]", known::<TimedSettings>()),
        ("[peers]", known::<PeersSettings>()),
        ("[limits]", known::<LimitsSettings>()),
        ("[streams]", known::<StreamSettings>()),
        ("[shard]", known::<ShardSettings>()),
        ("[sockets]", known::<SocketsSettings>()),
        ("[log]", known::<LogSettings>()),
        ("[lifecycle]", known::<LifecycleSettings>()),
    ];
    sections.push(("[ops]", known::<OpsSettings>()));
    sections.push(("[page]", known::<PageSettings>()));
    sections.push(("[transparency]", known::<PublicationSettings>()));
    for (section, known) in sections {
        let is_list = |key: &&String| ["address", "user", "timed"].contains(&key.as_str());
        let known: BTreeSet<String> = known.iter().filter(|key| !is_list(key)).cloned().collect();
        assert_eq!(shown(section), known, "{section}");
    }
}

// ---- Where the relay is

#[test]
fn without_addresses_the_machine_says_where() {
    let settings = Home::new().good("");
    let listeners: Vec<String> = settings.place.listeners.iter().map(SocketAddr::to_string).collect();
    assert_eq!(listeners, ["9.9.9.9:3478", "172.17.0.1:3478", "[2a00::9]:3478"]);
    // Of the bridge to containers nothing would come back.
    let same = |ip: &str| (ip.to_owned(), ip.to_owned());
    assert_eq!(addresses(&settings.place.relays), [same("9.9.9.9"), same("2a00::9")]);
}

#[test]
fn who_listens_on_one_address_relays_on_it() {
    let settings = Home::new().good("listen = { addresses = ['127.0.0.1', '127.0.0.2'], ports = [3478, 443] }");
    let listeners: Vec<String> = settings.place.listeners.iter().map(SocketAddr::to_string).collect();
    let expected = ["127.0.0.1:3478", "127.0.0.1:443", "127.0.0.2:3478", "127.0.0.2:443"];
    assert_eq!(listeners, expected);
    assert_eq!(
        addresses(&settings.place.relays),
        [("127.0.0.1".into(), "127.0.0.1".into())]
    );
}

#[test]
fn behind_a_nat_the_outer_address_is_enough() {
    let home = Home::new();
    let relays = |text: &str| addresses(&home.good(&format!("relay.address = [{text}]")).place.relays);
    let pair = |bind: &str, advertised: &str| (bind.to_owned(), advertised.to_owned());
    assert_eq!(relays("{ advertised = '1.2.3.4' }"), [pair("9.9.9.9", "1.2.3.4")]);
    assert_eq!(
        relays("{ advertised = '1.2.3.4' }, { advertised = '2a00::1234' }"),
        [pair("9.9.9.9", "1.2.3.4"), pair("2a00::9", "2a00::1234")]
    );
    assert_eq!(
        relays("{ bind = '10.0.0.5', advertised = '1.2.3.4' }, { bind = '10.0.0.6' }"),
        [pair("10.0.0.5", "1.2.3.4"), pair("10.0.0.6", "10.0.0.6")]
    );
}

#[test]
fn what_else_serves_on_this_machine_is_no_peer() {
    let home = Home::new();
    let settings = home.good("ops.listen = '9.9.9.77:9101'\nlisten.addresses = ['9.9.9.9']");
    let policy = settings.peers.policy(&settings.place);
    let may = |policy: &PeerPolicy, ip: &str| policy.check_address(ip.parse().unwrap()).is_ok();
    for ours in ["9.9.9.77", "2a00::9", "172.17.0.1", "127.0.0.1"] {
        assert!(!may(&policy, ours), "{ours}");
    }
    assert!(may(&policy, "9.9.9.78") && may(&policy, "2a00::8"));
    // Who allows it knows what serves there.
    let settings = home.good("listen.addresses = ['9.9.9.9']\npeers.allow = ['172.17.0.0/16']");
    assert!(may(&settings.peers.policy(&settings.place), "172.17.0.1"));
    // But nobody means health and metrics.
    let settings = home.good("peers.allow = ['127.0.0.0/8']");
    let policy = settings.peers.policy(&settings.place);
    assert!(!may(&policy, "127.0.0.1") && may(&policy, "127.0.0.2"));
}

#[test]
fn an_address_that_comes_and_goes_is_listened_on_by_nobody_and_is_no_peer() {
    let temporary: IpAddr = "2a00::1234".parse().unwrap();
    let home = Home::new();
    let machine = machine().and_passing(&[temporary]);
    home.good("");
    let (mut settings, _) = read(&home.0.path().join("turn.toml"), &machine).ok().unwrap();
    assert!(
        settings
            .place
            .listeners
            .iter()
            .all(|listener| listener.ip() != temporary)
    );
    assert_eq!(settings.place.relays.number_of(temporary), None);
    let may = |settings: &Settings, ip: IpAddr| settings.peers.policy(&settings.place).check_address(ip).is_ok();
    assert!(!may(&settings, temporary));
    // Another one takes its place later.
    let next: IpAddr = "2a00::5678".parse().unwrap();
    assert!(may(&settings, next));
    settings.place.look_again(&self::machine().and_passing(&[next]));
    assert!(!may(&settings, next) && may(&settings, temporary));
    // What we listen on or relay stays what it is.
    assert!(
        settings
            .place
            .others
            .iter()
            .all(|ip| settings.place.relays.number_of(*ip).is_none())
    );
}

// ---- Faults

#[test]
fn every_fault_is_named_at_once() {
    let home = Home::new();
    home.write("short-secret", "short");
    home.write("short-password", "short");
    home.write("placeholder", "changeme-changeme-changeme-changeme");
    let faults = home.faults(
        r#"
        [listen]
        addresses = ["0.0.0.0", "everywhere"]
        ports = "all"
        certificate_file = "certificate.pem"
        certificate_key_file = "secret"
        [relay]
        first_port = 70000
        [auth]
        realm = 5
        nonce_epoch = "1s"
        [[auth.user]]
        name = "alice"
        password_file = "missing"
        [[auth.timed]]
        secret_file = "secret"
        algorithm = "md5"
        [peers]
        allow = ["10.0.0.0/8", "10.0.0.0/33", "home"]
        [limits]
        allocations = 0
        bandwith = 5
        max_lifetime = "1y"
        [streams]
        idle = "soon"
        [shard]
        count = 0
        [ops]
        listen = "9101"
        [log]
        level = "loud"
        [lifecycle]
        drain = 5
        [telephone]
        "#,
    );
    let expected = [
        "listen.addresses[1]",
        "listen.ports",
        "relay.first_port",
        "auth.realm",
        "auth.nonce_epoch",
        "auth.timed[0].algorithm",
        "peers.allow[1]",
        "peers.allow[2]",
        "limits.allocations",
        "limits.bandwith",
        "limits.max_lifetime",
        "streams.idle",
        "shard.count",
        "ops.listen",
        "log.level",
        "lifecycle.drain",
        "listen.certificate_key_file",
        "auth.user[0].password_file",
        "telephone",
    ];
    let (found, expected): (BTreeSet<_>, BTreeSet<_>) = (
        faults.iter().map(String::as_str).collect(),
        expected.into_iter().collect(),
    );
    assert_eq!(found, expected);
}

#[test]
fn it_does_not_start_without_authentication_or_with_a_weak_one() {
    let home = Home::new();
    assert_eq!(home.faults(""), ["auth"]);
    for (secret, is_good) in [
        ("", false),
        ("short", false),
        ("changeme-changeme-changeme-changeme", false),
        ("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", false),
        (SECRET, true),
    ] {
        home.write("tried", secret);
        let read = home.read("auth.timed = [{ secret_file = 'tried' }]");
        let faults: Vec<String> = read
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|fault| fault.place)
            .collect();
        let expected: &[&str] = if is_good { &[] } else { &["auth.timed[0].secret_file"] };
        assert_eq!(faults, expected, "{secret}");
    }
    for (password, is_good) in [
        ("", false),
        ("secret", false),
        ("alice", false),
        ("1234567", false),
        ("053c268164bc7bd7", true),
    ] {
        home.write("tried", password);
        let read = home.read("auth.user = [{ name = 'alice', password_file = 'tried' }]");
        let faults = read.err().unwrap_or_default();
        assert_eq!(faults.is_empty(), is_good, "{password}: {faults:?}");
        assert!(
            faults.iter().all(|fault| fault.place == "auth.user[0].password_file"),
            "{faults:?}"
        );
    }
    let user = "{ name = 'alice', password_file = 'password' }";
    assert_eq!(home.faults(&format!("auth.user = [{user}, {user}]")), ["auth.user"]);
    assert_eq!(home.faults(&format!("{AUTH}auth.realm = ''")), ["auth.realm"]);
    let nobody = user.replace("alice", "");
    assert_eq!(home.faults(&format!("auth.user = [{nobody}]")), ["auth.user[0].name"]);
}

#[test]
fn places_that_cannot_work_are_named() {
    let home = Home::new();
    for (text, place) in [
        ("listen.addresses = ['0.0.0.0']", "listen.addresses[0]"),
        ("listen.addresses = ['9.9.9.9', '9.9.9.9']", "listen.addresses"),
        ("listen.ports = []", "listen.ports"),
        ("listen.ports = [0]", "listen.ports"),
        ("listen.ports = [3478, 3478]", "listen.ports"),
        ("listen.ports = [50000]", "listen.ports"),
        ("listen.name = 'no name'", "listen.name"),
        (
            "listen.certificate_file = 'certificate.pem'",
            "listen.certificate_key_file",
        ),
        ("listen.certificate_key_file = 'key.pem'", "listen.certificate_file"),
        ("relay.first_port = 1000", "relay.first_port"),
        ("relay = { first_port = 60000, last_port = 50000 }", "relay.first_port"),
        ("relay.address = [{}]", "relay.address[0]"),
        (
            "relay.address = [{ bind = '9.9.9.9', advertised = '2a00::9' }]",
            "relay.address",
        ),
        (
            "relay.address = [{ bind = '9.9.9.9' }, { bind = '9.9.9.9' }]",
            "relay.address",
        ),
        ("relay.address = [{ bind = '0.0.0.0' }]", "relay.address[0].bind"),
        ("ops.listen = '9.9.9.9:50000'", "ops.listen"),
        ("ops.listen = '0.0.0.0:50000'", "ops.listen"),
        (
            "limits = { default_lifetime = '1h', max_lifetime = '10m' }",
            "limits.max_lifetime",
        ),
        ("streams.queue = 1", "streams.queue"),
    ] {
        assert_eq!(home.faults(&format!("{AUTH}{text}")), [place], "{text}");
    }
    let many: Vec<String> = (1..=65).map(|port| port.to_string()).collect();
    let many = format!("{AUTH}listen.ports = [{}]", many.join(", "));
    assert_eq!(home.faults(&many), ["listen"]);
    home.write("turn.toml", AUTH);
    let alone = read(&home.0.path().join("turn.toml"), &Machine::default())
        .err()
        .unwrap();
    let places: Vec<&str> = alone.0.iter().map(|fault| fault.place.as_str()).collect();
    assert_eq!(places, ["listen.addresses"], "one cause, one fault");
}

#[test]
fn no_fault_repeats_a_value() {
    let home = Home::new();
    let canary = "203.0.113.77";
    home.write("canary", canary);
    for text in [
        format!("listen.addresses = ['{canary}', '{canary}', '0.0.0.0']"),
        format!("listen.name = '{canary} {canary}'"),
        format!("relay.address = [{{ bind = '{canary}' }}, {{ bind = '{canary}' }}]"),
        format!("peers.allow = ['{canary}/99']"),
        format!(
            "auth.user = [{{ name = '{canary}', password_file = 'canary' }}]\nauth.timed = [{{ secret_file = 'canary' }}]"
        ),
        format!("ops.listen = '{canary}:x'"),
    ] {
        let faults = home.read(&text).err().unwrap();
        assert!(
            !faults.is_empty() && !format!("{faults:?}").contains(canary),
            "{faults:?}"
        );
    }
}

#[test]
fn a_secret_that_others_can_read_is_a_warning() {
    let home = Home::new();
    std::fs::set_permissions(home.0.path().join("secret"), Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = home.read(AUTH).ok().unwrap();
    let places: Vec<&str> = warnings.iter().map(|warning| warning.place.as_str()).collect();
    assert_eq!(places, ["auth.timed[0].secret_file"]);
}

// ---- What a reload may change

#[test]
fn what_waits_for_a_restart_is_named() {
    let home = Home::new();
    let before = home.good("").fixed;
    for (text, name) in [
        ("listen.addresses = ['9.9.9.9']", Some("listen.addresses")),
        ("listen.ports = [443]", Some("listen.ports")),
        ("relay.last_port = 60000", Some("relay")),
        ("auth.nonce_epoch = '5m'", Some("auth.nonce_epoch")),
        ("shard.count = 3", Some("shard")),
        ("sockets.send_buffer = 8192", Some("sockets")),
        ("ops.listen = '127.0.0.1:9'", Some("ops")),
        ("transparency.page = false", Some("transparency")),
        ("log.level = 'debug'", Some("log")),
        (
            "listen = { name = 'turn.example.org', certificate_file = 'certificate.pem', certificate_key_file = 'key.pem' }",
            None,
        ),
        ("auth.user = [{ name = 'alice', password_file = 'password' }]", None),
        ("auth.realm = 'other'", Some("auth.realm")),
        ("peers.deny = ['1.2.3.4']", None),
        ("limits.allocations = 5", None),
        ("streams.total = 5", None),
        ("lifecycle.drain = '1s'", None),
    ] {
        // A list written twice in one table is no TOML.
        let text = format!("{AUTH}{text}");
        let after = home.read(&text).ok().unwrap().0.fixed;
        assert_eq!(before.differences(&after), Vec::from_iter(name), "{text}");
    }
}

#[test]
fn after_a_reload_the_page_tells_where_the_relay_is() {
    let home = Home::new();
    let (running, _) = home.read(&format!("{AUTH}listen.ports = [3478]")).ok().unwrap();
    let text = format!("{AUTH}listen = {{ ports = [443], name = 'turn.example.org' }}");
    let (mut again, _) = home.read(&text).ok().unwrap();
    again.stay(&running.fixed, &running.place);
    let urls = crate::offer::urls(&again);
    assert!(!urls.is_empty());
    for url in urls {
        assert_eq!((url.port, &*url.host), (3478, "turn.example.org"));
    }
}

#[test]
fn each_secret_has_its_algorithm_and_the_first_makes_new_credentials() {
    let home = Home::new();
    let password = |text: &str| {
        let (settings, _) = home.read(text).ok().unwrap();
        let password = settings.credentials.timed_password(b"1800000000:00ff");
        password.map(|password| password.expose().clone())
    };
    let sha1 = password(AUTH).unwrap();
    let sha256 = password("auth.timed = [{ secret_file = 'secret', algorithm = 'sha256' }]").unwrap();
    assert_eq!((sha1.len(), sha256.len()), (28, 44));
    let both = "auth.timed = [{ secret_file = 'other-secret' }, { secret_file = 'secret' }]";
    assert!(password(both).is_some_and(|password| password != sha1));
    assert_eq!(
        password("auth.user = [{ name = 'alice', password_file = 'password' }]"),
        None
    );
}

#[test]
fn a_call_needs_no_file_but_a_secret_or_a_password() {
    let home = Home::new();
    let to_call = |text: &str| {
        home.write("copy.toml", text);
        let read = read_for_calls(&home.0.path().join("copy.toml"));
        read.map(|(settings, _)| settings).map_err(|faults| faults.0)
    };
    // Files, addresses and sections that only the relay's own machine can have.
    let rest =
        "listen.addresses = ['::']\nlisten.certificate_file = 'missing.pem'\ntransparency.requests_file = 'missing'\n";
    let settings = to_call(&format!(
        "auth.realm = 'example'\nauth.timed = [{{ secret_file = 'missing' }}, {{ secret_file = 'secret', algorithm = 'sha256' }}]\n\
         auth.user = [{{ name = 'alice', password_file = 'password' }}]\nlimits.timed_max_life = '2h'\n{rest}"
    ));
    let settings = settings.ok().unwrap();
    assert_eq!(
        (settings.realm.as_str(), settings.timed_max_life.as_secs()),
        ("example", 7_200)
    );
    let Caller::Timed(credentials) = settings.caller else {
        panic!("the secret that is here makes names");
    };
    assert_eq!(credentials.timed_password(b"1").unwrap().expose().len(), 44, "SHA-256");

    let user = to_call("auth.user = [{ name = 'alice', password_file = 'password' }]")
        .ok()
        .unwrap();
    assert!(
        matches!(user.caller, Caller::User { name, password } if name == "alice" && password.expose() == "053c268164bc7bd7")
    );
    for (text, place) in [
        (
            "auth.timed = [{ secret_file = 'missing' }]",
            "auth.timed[0].secret_file",
        ),
        (
            "auth.user = [{ name = 'alice', password_file = 'missing' }]",
            "auth.user[0].password_file",
        ),
        (
            "auth.timed = [{ secret_file = 'password' }]",
            "auth.timed[0].secret_file",
        ),
        (rest, "auth"),
    ] {
        let faults = to_call(text).err().unwrap();
        assert_eq!(faults.iter().map(|fault| &*fault.place).collect::<Vec<_>>(), [place]);
    }
}

#[test]
fn a_credential_tells_which_of_the_secrets_made_it() {
    let home = Home::new();
    home.write(
        "turn.toml",
        "auth.timed = [{ secret_file = 'missing' }, { secret_file = 'secret' }, { secret_file = 'other-secret', algorithm = 'sha256' }]",
    );
    let file = home.0.path().join("turn.toml");
    let password = |algorithm, secret: &str| {
        let secret = TimedSecret::new(algorithm, Secret::new(secret.as_bytes().to_vec())).unwrap();
        secret.password(b"1800000000:ab").text().to_owned()
    };
    let made_with = |password: &str| timed_secret_of(&file, "1800000000:ab", password).unwrap();
    let old = password(TimedAlgorithm::Sha1, SECRET);
    assert_eq!(made_with(&old).as_deref(), Some("auth.timed[1].secret_file"));
    let new = password(TimedAlgorithm::Sha256, &SECRET.replace('f', "a"));
    assert_eq!(made_with(&new).as_deref(), Some("auth.timed[2].secret_file"));
    assert_eq!(made_with("of another operator"), None);
}
