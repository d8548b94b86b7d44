//! From nothing to settings that run.
//!
//! In: a folder. Out: `turn.toml` and the secret of timed credentials in it. Never: changes a file that exists.

use clap::Args;
use quietline_shared::service::command::{Exit, make_secret_file};
use std::io::{self, Write};
use std::path::PathBuf;

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Where turn.toml and keys/turn-secret go; it is made if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
}

pub fn setup(wish: &Setup, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let mut secret = [0; 32];
    if getrandom::fill(&mut secret).is_err() {
        writeln!(errors, "the operating system gives no random bytes")?;
        return Ok(Exit::Failed);
    }
    let secret = format!("{}\n", hex::encode(secret));
    for (what, name, contents) in [
        ("settings", "turn.toml", SETTINGS),
        ("secret", "keys/turn-secret", secret.as_str()),
    ] {
        let path = wish.folder.join(name);
        match make_secret_file(&path, contents.as_bytes()) {
            Ok(new) => writeln!(out, "{what} {}: {}", if new { "made" } else { "kept" }, path.display())?,
            Err(fault) => {
                writeln!(
                    errors,
                    "{what}: {} cannot be written ({})",
                    path.display(),
                    fault.kind()
                )?;
                return Ok(Exit::Failed);
            }
        }
    }
    Ok(Exit::Done)
}

const SETTINGS: &str = r#"# Made by `quietline-turn setup`. Every setting with its default and its reason is in deploy/turn.toml of the source.

[listen]
# The host name of a certificate, and its files, switch TLS on. 443 passes firewalls that nothing else passes.
# name = "turn.example.org"
# ports = [3478, 443]
# certificate_file = "keys/certificate.pem"
# certificate_key_file = "keys/certificate-key.pem"

# Behind a 1:1 NAT, as in most clouds: the address by which the world knows this machine.
# [[relay.address]]
# advertised = "203.0.113.7"

# Whoever shares this secret can hand out credentials, as `quietline-turn credentials` does.
[[auth.timed]]
secret_file = "keys/turn-secret"
algorithm = "sha1"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::settings;

    fn run(wish: &Setup) -> (Exit, String, String) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let exit = setup(wish, &mut out, &mut errors).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (exit, text(out), text(errors))
    }

    #[test]
    fn what_setup_makes_is_good_and_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let wish = Setup {
            folder: home.path().join("new"),
        };
        let (exit, out, errors) = run(&wish);
        assert_eq!((exit, errors.as_str()), (Exit::Done, ""));
        assert!(
            out.contains("settings made: ") && out.contains("secret made: "),
            "{out}"
        );
        let file = |name: &str| std::fs::read_to_string(wish.folder.join(name)).unwrap();
        let secret = file("keys/turn-secret");
        assert_eq!(secret.trim_end().len(), 64);
        assert!(!out.contains(secret.trim_end()), "the secret stays in its file");
        let machine = Machine::new(vec!["192.0.2.1".parse().unwrap()], vec![]);
        let (_, warnings) = settings::read(&wish.folder.join("turn.toml"), &machine).unwrap();
        assert_eq!(warnings.0, []);

        std::fs::write(wish.folder.join("turn.toml"), "mine").unwrap();
        let (exit, out, _) = run(&wish);
        assert_eq!(exit, Exit::Done);
        assert!(
            out.contains("settings kept: ") && out.contains("secret kept: "),
            "{out}"
        );
        assert_eq!((file("turn.toml").as_str(), file("keys/turn-secret")), ("mine", secret));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("file");
        std::fs::write(&folder, "no folder").unwrap();
        let (exit, _, errors) = run(&Setup { folder });
        assert_eq!(exit, Exit::Failed);
        assert!(errors.contains("turn.toml cannot be written"), "{errors}");
    }
}
