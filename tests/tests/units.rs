//! The units of deploy/ under a real systemd: what it starts, hands over and takes away.
//!
//! It runs in namespaces of its own (`interop/systemd.sh`), with both units as they are shipped. Only where they log to is changed, and the row
//! key is given as an operator gives one that is encrypted to the machine.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_lab::lab::{Lab, LabSettings, OxendKind};
use quietline_lab::notifier::find_program;
use quietline_lab::turn::relay::Relay;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_starts_both_units_and_hands_over_keys_that_nobody_else_reads() {
    let world = World::new();
    let lab = world.notifier();
    let relay = world.relay();
    let found = tokio::task::spawn_blocking(move || {
        let found = world.run();
        drop(relay);
        found
    });
    let found = found.await.unwrap();
    drop(lab);

    for unit in UNITS {
        let state = found.read(&format!("{unit}.started"));
        for line in [
            "ActiveState=active",
            "SubState=running",
            "NRestarts=0",
            "Result=success",
            "LimitMEMLOCK=infinity",
            "LimitCORE=0",
            "MemorySwapMax=0",
        ] {
            assert!(state.contains(line), "{unit}: {state}\n{}", found.all());
        }
        let state = found.read(&format!("{unit}.stopped"));
        for line in [
            "ActiveState=inactive",
            "NRestarts=0",
            "Result=success",
            "ExecMainStatus=0",
        ] {
            assert!(state.contains(line), "{unit}: {state}\n{}", found.all());
        }
        // systemd has nothing to say of them, and calls them well shut in: 2.0 of 10 at most.
        assert_eq!(found.read(&format!("{unit}.verify")), "", "{unit}");
        assert_eq!(found.read(&format!("{unit}.security")).trim(), "0", "{unit}");
    }

    // Each key is its service's alone and lies in memory, and the settings name it there.
    let keys = found.read("credentials");
    assert!(keys.lines().filter(|line| line.contains("keys_")).count() > 5, "{keys}");
    for line in keys.lines().filter(|line| line.contains("keys_")) {
        assert!(
            line.starts_with("-r--------") || line.starts_with("-r--r-----+"),
            "{line}"
        );
    }
    assert!(keys.contains("keys_rows") && keys.contains("keys_onion"), "{keys}");
    assert!(found.read("notifier.keys").contains("row keys: "), "{}", found.all());
    let audit = found.json("notifier.json");
    assert_eq!(audit["running"], true);
    for (what, expected) in [
        ("core dumps", Value::Bool(true)),
        ("access by other processes", Value::Bool(true)),
        ("swap", Value::Bool(true)),
        ("key files", Value::Bool(true)),
        ("rows on disk", Value::Bool(true)),
        ("free pages", Value::Bool(true)),
        ("logs of changes", Value::Bool(true)),
        // They are in memory, and their source may lie anywhere.
        ("keys and rows", Value::Null),
    ] {
        assert_eq!(fact(&audit, what)["good"], expected, "{what}: {audit:#}");
    }
    let audit = found.json("turn.json");
    for what in [
        "core dumps",
        "access by other processes",
        "swap",
        "key files",
        "TLS to clients",
    ] {
        assert_eq!(fact(&audit, what)["good"], true, "{what}: {audit:#}");
    }

    // As the kernel has it: no right of root's, no swap, no dump, everything locked.
    for unit in UNITS {
        let process = found.read(&format!("{unit}.process"));
        for line in [
            "CapBnd:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(process.contains(line), "{unit}: {line}\n{process}");
        }
        let limit = |name: &str| process.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(
            limit("Max core file size").split_whitespace().nth(4) == Some("0"),
            "{process}"
        );
        let number = |name: &str| -> u64 { limit(name).split_whitespace().nth(1).unwrap().parse().unwrap() };
        // A systemd without CAP_SYS_RESOURCE, as in a container, raises no limit beyond its own; `check` then says what holds.
        let is_locked = number("VmLck:") >= number("VmRSS:");
        assert!(
            is_locked || !limit("Max locked memory").contains("unlimited"),
            "{process}"
        );
        assert_eq!(number("VmSwap:"), 0, "{process}");
    }
}

const UNITS: [&str; 2] = ["quietline-notifier", "quietline-turn"];

/// A folder for systemd.sh.
struct World(tempfile::TempDir);

/// What drive.sh wrote.
struct Found {
    folder: PathBuf,
    _files: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        // Other users' processes go through it.
        fs::set_permissions(world.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["bin", "units", "etc/quietline/keys", "etc/quietline-turn/keys", "out"] {
            fs::create_dir_all(world.path(folder)).unwrap();
        }
        for unit in UNITS {
            let binary = find_program(unit).unwrap().expect("built: cargo build --release");
            symlink(binary, world.path("bin").join(unit)).unwrap();
            let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/{unit}.service"));
            fs::copy(shipped, world.path("units").join(format!("{unit}.service"))).unwrap();
            let beside = world.path("units").join(format!("{unit}.service.d"));
            fs::create_dir(&beside).unwrap();
            let log = world.path("out").join(unit);
            let mut more = format!(
                "[Service]\nStandardOutput=append:{0}.log\nStandardError=append:{0}.log\n",
                log.display()
            );
            if unit == "quietline-notifier" {
                more += "LoadCredentialEncrypted=keys_rows:/etc/quietline/encrypted/rows\n";
            }
            fs::write(beside.join("more.conf"), more).unwrap();
        }
        // Units that ours name and that nobody starts here.
        for target in [
            "basic",
            "sysinit",
            "shutdown",
            "network-online",
            "time-sync",
            "multi-user",
        ] {
            let text = "[Unit]\nDefaultDependencies=no\n";
            fs::write(world.path("units").join(format!("{target}.target")), text).unwrap();
        }
        let drive = world.path("drive.sh");
        fs::write(&drive, DRIVE).unwrap();
        let unit = format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nTimeoutStartSec=80\nExecStart=/bin/bash {} {} {}\n",
            drive.display(),
            world.path("out").display(),
            world.path("units").display()
        );
        fs::write(world.path("units/drive.service"), unit).unwrap();
        let target = "[Unit]\nDefaultDependencies=no\nWants=drive.service\n";
        fs::write(world.path("units/test.target"), target).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What is around a notifier, and its settings as an operator of the unit writes them.
    fn notifier(&self) -> Lab {
        let mut settings = LabSettings::in_folder(self.path("lab"));
        settings.oxend = OxendKind::Tcp;
        let lab = Lab::surround(settings).unwrap();
        let text = fs::read_to_string(lab.settings_file()).unwrap();
        let text = text
            .replace("\"keys/", "\"$CREDENTIALS_DIRECTORY/keys_")
            .replace("\"data/", "\"/var/lib/quietline/");
        fs::write(self.path("etc/quietline/notifier.toml"), text).unwrap();
        for key in fs::read_dir(self.path("lab/keys")).unwrap().flatten() {
            fs::copy(key.path(), self.path("etc/quietline/keys").join(key.file_name())).unwrap();
        }
        lab
    }

    fn relay(&self) -> Relay {
        Relay::prepare(&self.path("etc/quietline-turn"), None, |_| {}).unwrap()
    }

    fn run(self) -> Found {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/systemd.sh");
        let ran = Command::new(script).arg(self.0.path()).output().unwrap();
        let found = Found {
            folder: self.path("out"),
            _files: self.0,
        };
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert!(found.folder.join("done").exists(), "{}", found.all());
        found
    }
}

impl Found {
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_else(|_| panic!("no {name}:\n{}", self.all()))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap_or_else(|_| panic!("{name}:\n{}", self.all()))
    }

    /// For whoever reads a failed test.
    fn all(&self) -> String {
        let mut all = String::new();
        for file in fs::read_dir(&self.folder).unwrap().flatten() {
            let text = fs::read(file.path()).unwrap_or_default();
            all += &format!("── {}\n{}\n", file.path().display(), String::from_utf8_lossy(&text));
        }
        all
    }
}

fn fact<'a>(audit: &'a Value, what: &str) -> &'a Value {
    let facts = audit["facts"].as_array().unwrap();
    facts.iter().find(|fact| fact["what"] == what).unwrap()
}

/// What an operator does, in order.
const DRIVE: &str = r#"
out=$1
export SYSTEMD_UNIT_PATH=$2
show() { systemctl show "$1" -p ActiveState -p SubState -p Result -p NRestarts -p ExecMainStatus \
  -p LimitMEMLOCK -p LimitCORE -p MemorySwapMax >"$out/$1.$2"; }
units="quietline-notifier quietline-turn"
# Under a key of this machine; the file in plain goes.
mkdir -p /etc/quietline/encrypted
systemd-creds encrypt --with-key=host --name=keys_rows /etc/quietline/keys/rows /etc/quietline/encrypted/rows 2>"$out/encrypt.log"
rm /etc/quietline/keys/rows
for unit in $units; do
  systemctl start $unit
  show $unit started
  process=$(systemctl show $unit -p MainPID --value)
  cat /proc/$process/status /proc/$process/limits >"$out/$unit.process"
  systemd-analyze verify "$2/$unit.service" >"$out/$unit.verify" 2>&1
  systemd-analyze security --offline=true --threshold=20 "$2/$unit.service" >/dev/null 2>&1
  echo $? >"$out/$unit.security"
done
export CREDENTIALS_DIRECTORY=/run/credentials/quietline-notifier.service
ls -la $CREDENTIALS_DIRECTORY >"$out/credentials"
quietline-notifier audit --json --settings /etc/quietline/notifier.toml >"$out/notifier.json"
quietline-notifier check --settings /etc/quietline/notifier.toml >"$out/notifier.keys" 2>&1
quietline-turn audit --json --settings /etc/quietline-turn/turn.toml >"$out/turn.json"
for unit in $units; do
  systemctl reload $unit
  show $unit reloaded
  systemctl stop $unit
  show $unit stopped
done
touch "$out/done"
"#;
