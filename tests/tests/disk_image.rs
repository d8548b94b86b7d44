//! The disk of a busy system, in the hands of somebody with a tool of their own.
//!
//! Both servers work on a small ext4 file system: subscriptions, wakeups that wait, an exchange of keys, kills, unsubscriptions; calls. Then
//! its image is searched, free blocks and journal included, by `interop/disk_search.py`, which also made up everything that is searched for.
//! Only keys and settings lie elsewhere, as they should.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_lab::http::HttpClient;
use quietline_lab::lab::{Lab, LabSettings, Sent};
use quietline_lab::notifier::Notifier;
use quietline_lab::phone::{Phone, PushService, unix_seconds};
use quietline_lab::trial::{DAY, PATIENCE, receive, until_figure, watched};
use quietline_lab::turn::client::Who;
use quietline_lab::turn::server::{Site, Transport};
use quietline_lab::turn::stun::{Builder, kind};
use serde_json::{Map, Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PHONES: usize = 24;
const CALLERS: usize = 6;
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_of_a_busy_system_holds_nothing_of_anybody() {
    let disk = Disk::new();
    let given: Vec<Value> = serde_json::from_slice(&tool(&["make", &(PHONES + CALLERS).to_string()])).unwrap();
    let (people, callers) = given.split_at(PHONES);
    let mut marked = Marked::default();

    // Calls go on beside everything else.
    let calls = {
        let (folder, callers) = (disk.folder("turn"), callers.to_vec());
        tokio::task::spawn_blocking(move || calls_of(&folder, &callers))
    };
    let mut lab = lab_on(&disk).await;
    let mut phones = Vec::new();
    for (number, person) in people.iter().enumerate() {
        let phone = phone_of(&lab, number, person);
        let item = phone.subscribe_item(unix_seconds());
        subscribe(&lab, number, person, &phone, &item).await;
        marked.phone(number, person, &phone, &item);
        phones.push(phone);
    }
    for (number, phone) in phones.iter().enumerate() {
        watched(&lab, phone).await;
        marked.message(number, &send(&lab, phone, &people[number]));
        receive(&lab, phone).await;
    }
    scrape(&lab, &disk.folder("scrapes"), "busy").await;

    // Wakeups wait for a provider, and the machine goes down.
    lab.set_providers_down(true);
    for (number, phone) in phones.iter().enumerate() {
        marked.message(number, &lab.send(phone, 0, text(&people[number]).as_bytes(), DAY));
    }
    until_figure(&lab, "outbox_entries", "", |entries| entries == PHONES as f64).await;
    let mut gone = rows(&disk, "subscriptions.db", "SELECT row FROM subscription").await;
    gone.extend(rows(&disk, "outbox.db", "SELECT row FROM entry").await);
    lab.notifier().kill().await.unwrap();
    let killed = disk.image("killed");

    // Another row key, half of all leave, the others are woken while the disk is taken away.
    lab.start_notifier().await.unwrap();
    let rotated = Command::new(Notifier::find_binary(None).unwrap())
        .args(["rotate-key", "--settings"])
        .arg(lab.settings_file())
        .output()
        .unwrap();
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    // Everything is under the new one now.
    gone.extend(rows(&disk, "subscriptions.db", "SELECT row FROM subscription").await);
    lab.set_providers_down(false);
    let (leaving, staying) = phones.split_at(PHONES / 2);
    for phone in leaving {
        assert!(lab.unsubscribe(phone).await.unwrap().is_success());
    }
    let busy = std::thread::scope(|scope| {
        let taken = scope.spawn(|| disk.image("busy"));
        while !taken.is_finished() {
            for (number, phone) in staying.iter().enumerate() {
                let number = number + leaving.len();
                marked.message(number, &lab.send(phone, 0, text(&people[number]).as_bytes(), DAY));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        taken.join().unwrap()
    });
    scrape(&lab, &disk.folder("scrapes"), "after").await;
    // What still waited would rightly be in the file.
    until_figure(&lab, "outbox_entries", "", |entries| entries == 0.0).await;
    for row in rows(&disk, "subscriptions.db", "SELECT row FROM subscription").await {
        gone.remove(&row);
    }
    lab.stop_notifier(PATIENCE).await.unwrap();
    calls.await.unwrap();
    for (number, caller) in callers.iter().enumerate() {
        marked.caller(number, caller);
    }
    let stopped = disk.image("stopped");
    what_was_deleted_is_gone_from_the_disk_though_it_was_sealed(&disk, &gone, &killed, &stopped);
    let mut files = vec![killed, busy, stopped];
    for name in ["subscriptions.db", "outbox.db"] {
        let dump = disk.outside(&format!("{name}.sql"));
        let database = disk.folder("notifier").join(name);
        fs::write(&dump, tool(&["dump", &database.to_string_lossy()])).unwrap();
        assert!(fs::read_to_string(&dump).unwrap().contains("CREATE TABLE"));
        files.push(dump);
    }
    files.extend(below(&disk.mount));

    let values = disk.outside("values.json");
    fs::write(&values, Value::Object(marked.values.clone()).to_string()).unwrap();
    let found = search(&values, &files);
    assert_eq!(found["hits"], json!([]), "{found:#}");
    assert!(
        found["values"].as_u64() > Some(200) && found["bytes"].as_u64() > Some(3 * IMAGE_BYTES),
        "{found:#}"
    );

    the_same_search_finds_each_value_where_it_is(&disk, &values, &marked);
    a_leak_in_each_form_is_found_though_its_file_is_gone(&disk, &values, &marked);
}

/// Whoever has the key could open it: rows of who left, wakeups that were delivered, all rows as they were under the old key.
fn what_was_deleted_is_gone_from_the_disk_though_it_was_sealed(
    disk: &Disk,
    gone: &BTreeSet<Vec<u8>>,
    before: &Path,
    after: &Path,
) {
    assert!(gone.len() >= 2 * PHONES + PHONES / 2, "{}", gone.len());
    let named = gone.iter().enumerate();
    let values = named.map(|(number, row)| (format!("row {number}"), hex::encode(row).into()));
    let file = disk.outside("gone.json");
    fs::write(&file, Value::Object(values.collect()).to_string()).unwrap();
    let there = hits(&search(&file, &[before.to_owned()]), "value");
    assert!(
        there.len() >= 2 * PHONES,
        "the search finds what is there: {}",
        there.len()
    );
    let left = hits(&search(&file, &[after.to_owned()]), "value");
    assert_eq!(left, BTreeSet::new());
}

/// What was said to the servers, word for word.
fn the_same_search_finds_each_value_where_it_is(disk: &Disk, values: &Path, marked: &Marked) {
    let said = disk.outside("said");
    fs::write(&said, &marked.said).unwrap();
    let found: BTreeSet<String> = hits(&search(values, &[said]), "value");
    let missed: Vec<_> = marked.values.keys().filter(|name| !found.contains(*name)).collect();
    assert_eq!(missed, Vec::<&String>::new());
}

/// Written to the disk, and deleted before it is taken.
fn a_leak_in_each_form_is_found_though_its_file_is_gone(disk: &Disk, values: &Path, marked: &Marked) {
    let forms = String::from_utf8(tool(&["forms"])).unwrap();
    let value = marked.values["key of 1"].as_str().unwrap();
    let leak = disk.folder("notifier").join("leak");
    let mut file = fs::File::create(&leak).unwrap();
    for form in forms.lines() {
        file.write_all(&tool(&["write", form, value])).unwrap();
        file.write_all(b"\n").unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    if disk.is_mounted {
        fs::remove_file(&leak).unwrap();
    }
    let found = search(values, &[disk.image("leaking")]);
    assert_eq!(hits(&found, "value"), BTreeSet::from(["key of 1".to_owned()]));
    let (found, wanted) = (hits(&found, "form"), forms.lines().map(str::to_owned).collect());
    assert_eq!(found, wanted);
}

// ---- The system

async fn lab_on(disk: &Disk) -> Lab {
    let data = disk.folder("notifier");
    let path = |name: &str| data.join(name).to_string_lossy().into_owned();
    let mut settings = LabSettings::in_folder(disk.outside("lab"))
        .with("store.path", path("subscriptions.db"))
        .with("outbox.path", path("outbox.db"))
        .with("watcher.node_list_file", path("nodes.json"))
        .with("log.level", "trace");
    settings.ready_within = PATIENCE;
    settings.swarms = 2;
    let mut lab = Lab::surround(settings).unwrap();
    // What it writes of its own accord goes to the disk too.
    let folder = &lab.settings.folder;
    symlink(path("log"), folder.join("notifier.log")).unwrap();
    fs::remove_dir(folder.join("tmp")).unwrap();
    symlink(disk.folder("tmp"), folder.join("tmp")).unwrap();
    lab.start_notifier().await.unwrap();
    lab
}

fn phone_of(lab: &Lab, number: usize, person: &Value) -> Phone {
    let seed: [u8; 32] = hex::decode(field(person, "seed")).unwrap().try_into().unwrap();
    let service = PushService::ALL[number % PushService::ALL.len()];
    let mut phone = Phone::person(&seed, service);
    let token = field(person, "token");
    match service {
        PushService::Webpush => phone = phone.with_reader(lab.webpush.reader()),
        PushService::Firebase => phone.token = format!("{}:APA91b{token}", &token[..22]),
        PushService::Huawei => phone.token = format!("IQAAAA{token}"),
        _ => phone.token = token.to_owned(),
    }
    phone.enc_key = hex::decode(field(person, "key")).unwrap().try_into().unwrap();
    phone
}

/// Through an onion, or directly with an address.
async fn subscribe(lab: &Lab, number: usize, person: &Value, phone: &Phone, item: &Value) {
    if number.is_multiple_of(2) {
        assert!(lab.subscribe(phone).await.unwrap().is_success());
        return;
    }
    let (body, address) = (item.to_string(), field(person, "address"));
    let request = format!(
        "POST /subscribe HTTP/1.1\r\nHost: quietline.example\r\nX-Forwarded-For: {address}\r\nUser-Agent: {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        field(person, "name"),
        body.len()
    );
    let mut stream = TcpStream::connect(lab.http_address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"success\":true"),
        "{answer}"
    );
}

fn send(lab: &Lab, phone: &Phone, person: &Value) -> Sent {
    lab.send(phone, 0, &hex::decode(field(person, "text")).unwrap(), DAY)
}

/// A message of its own each time: the same text would be the same message.
fn text(person: &Value) -> String {
    let number: [u8; 4] = quietline_lab::sodium::random();
    format!("{}{}", field(person, "text"), hex::encode(number))
}

async fn scrape(lab: &Lab, folder: &Path, when: &str) {
    for (name, address) in [
        ("metrics", lab.ops_address()),
        ("info", lab.http_address()),
        ("transparency", lab.http_address()),
    ] {
        let answer = HttpClient::new(address).get(&format!("/{name}")).await.unwrap();
        assert_eq!(answer.status, 200);
        fs::write(folder.join(format!("{name}-{when}")), &answer.body).unwrap();
    }
}

/// Each caller has a user, an address and a peer; what they say goes there and back.
fn calls_of(disk: &Path, callers: &[Value]) {
    let outside = tempfile::tempdir().unwrap();
    symlink(disk.join("log"), outside.path().join("log")).unwrap();
    let users = callers.iter().enumerate().map(|(number, caller)| {
        let file = format!("password-{number}");
        fs::write(outside.path().join(&file), field(caller, "password")).unwrap();
        toml::Value::Table(toml::Table::from_iter([
            ("name".to_owned(), field(caller, "name").into()),
            ("password_file".to_owned(), file.into()),
        ]))
    });
    let users = toml::Value::Array(users.collect());
    let mut site = Site::quietline(outside.path(), |settings| {
        quietline_lab::settings::set(settings, "auth.user", users);
        quietline_lab::settings::set(settings, "log.level", "trace");
    });
    let mut open = Vec::new();
    for caller in callers {
        let address: std::net::Ipv6Addr = field(caller, "address").parse().unwrap();
        site.world.ip(&format!("addr add {address}/128 dev lo nodad"));
        let who = Who::new(field(caller, "name"), field(caller, "password"));
        let mut client = site.client_at(address, Transport::ALL[open.len() % 3], who);
        // A fresh IPv6 address takes nothing until the network is asked whether somebody else has it.
        let deadline = Instant::now() + PATIENCE;
        while client
            .ask_within(&Builder::new(kind::BINDING).build(), LOOK_EVERY)
            .is_none()
        {
            assert!(Instant::now() < deadline, "the relay answers");
        }
        let relayed = client.allocate_v6();
        let peer = site.peer_at(address);
        let place = peer.local_addr().unwrap();
        assert_eq!((client.permit(place), client.bind(0x4000, place)), (0, 0));
        let said = hex::decode(field(caller, "text")).unwrap();
        client.send_on(0x4000, &said);
        assert_eq!(site.first_at(&peer), Some(said.clone()));
        peer.send_to(&said, relayed).unwrap();
        assert!(client.next().is_some());
        open.push((client, peer));
    }
    for path in ["/metrics", "/transparency", "/health/ready"] {
        fs::write(disk.join(path.replace('/', "-")), site.tells(path)).unwrap();
    }
    open.truncate(callers.len() / 2);
    site.stop(PATIENCE).unwrap();
}

/// Sealed, as they are in the file now.
async fn rows(disk: &Disk, database: &str, query: &'static str) -> BTreeSet<Vec<u8>> {
    let path = disk.folder("notifier").join(database);
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut file = options.connect().await.unwrap();
    let rows: Vec<(Vec<u8>,)> = sqlx::query_as(query).fetch_all(&mut file).await.unwrap();
    file.close().await.unwrap();
    rows.into_iter().map(|(row,)| row).collect()
}

// ---- What is searched for

/// By name in hex; and once each as it was said.
#[derive(Default)]
struct Marked {
    values: Map<String, Value>,
    said: Vec<u8>,
}

impl Marked {
    fn add(&mut self, name: String, value: &[u8]) {
        self.values.insert(name, hex::encode(value).into());
        self.said.extend_from_slice(value);
        self.said.push(b'\n');
    }

    fn phone(&mut self, number: usize, person: &Value, phone: &Phone, item: &Value) {
        self.add(format!("account of {number}"), &phone.account()[1..]);
        self.add(format!("signing key of {number}"), phone.session_ed25519().unwrap());
        self.add(format!("key of {number}"), &phone.enc_key);
        match phone.reader() {
            Some(reader) => {
                let (_, last) = reader.endpoint.rsplit_once('/').unwrap();
                self.add(format!("endpoint of {number}"), last.as_bytes());
                self.add(format!("auth of {number}"), &reader.auth);
            }
            None => {
                self.add(
                    format!("token of {number}"),
                    &hex::decode(field(person, "token")).unwrap(),
                );
                self.add(format!("token text of {number}"), phone.token.as_bytes());
            }
        }
        let signature = item["signature"].as_str().unwrap().trim_end_matches('=');
        self.add(format!("signature of {number}, text"), signature.as_bytes());
        self.add(
            format!("body for {number}"),
            &hex::decode(field(person, "text")).unwrap(),
        );
        self.add(format!("agent of {number}"), field(person, "name").as_bytes());
        self.address(&format!("address of {number}"), person);
    }

    fn message(&mut self, number: usize, sent: &Sent) {
        let many = self.values.len();
        self.add(format!("hash {many} for {number}"), sent.hash.as_bytes());
    }

    fn caller(&mut self, number: usize, caller: &Value) {
        for name in ["name", "password"] {
            self.add(format!("{name} of caller {number}"), field(caller, name).as_bytes());
        }
        self.add(
            format!("words of caller {number}"),
            &hex::decode(field(caller, "text")).unwrap(),
        );
        self.address(&format!("address of caller {number}"), caller);
    }

    fn address(&mut self, name: &str, of: &Value) {
        let address: std::net::Ipv6Addr = field(of, "address").parse().unwrap();
        self.add(format!("{name}, text"), address.to_string().as_bytes());
        self.add(name.to_owned(), &address.octets());
    }
}

fn field<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().unwrap()
}

fn tool(words: &[&str]) -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/disk_search.py");
    let output = Command::new("python3").arg(script).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn search(values: &Path, files: &[PathBuf]) -> Value {
    let words: Vec<_> = [values].into_iter().chain(files.iter().map(PathBuf::as_path)).collect();
    let words: Vec<_> = words.iter().map(|path| path.to_str().unwrap()).collect();
    serde_json::from_slice(&tool(&[&["search"], &*words].concat())).unwrap()
}

fn hits(found: &Value, what: &str) -> BTreeSet<String> {
    let hits = found["hits"].as_array().unwrap().iter();
    hits.map(|hit| hit[what].as_str().unwrap().to_owned()).collect()
}

/// Every ordinary file.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(below(&path)),
            false => found.push(path),
        }
    }
    found
}

// ---- The disk

const IMAGE_BYTES: u64 = 96 << 20;

/// A file system in a file, mounted. Where the system has no loop devices it is a folder, and each image is a file system made of it: that
/// has no blocks of deleted files.
struct Disk {
    mount: PathBuf,
    is_mounted: bool,
    files: TempDir,
}

impl Disk {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let (image, mount) = (files.path().join("image"), files.path().join("disk"));
        fs::create_dir(&mount).unwrap();
        make_file_system(&image, None);
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &mount])
            .output()
            .unwrap();
        Self {
            mount,
            is_mounted: mounted.status.success(),
            files,
        }
    }

    /// On the disk.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.mount.join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Not on it.
    fn outside(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// All of it as it is now, block by block.
    fn image(&self, name: &str) -> PathBuf {
        let image = self.outside(name);
        if self.is_mounted {
            run(Command::new("sync").arg("--file-system").arg(&self.mount));
            run(Command::new("cp")
                .arg("--sparse=always")
                .arg(self.outside("image"))
                .arg(&image));
        } else {
            make_file_system(&image, Some(&self.mount));
        }
        image
    }
}

fn make_file_system(image: &Path, of: Option<&Path>) {
    fs::File::create(image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let mut make = Command::new("/sbin/mkfs.ext4");
    make.args(["-q", "-F"]);
    if let Some(folder) = of {
        make.arg("-d").arg(folder);
    }
    run(make.arg(image));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // A process may still stand on it: it goes with its last user.
            let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
        }
    }
}
