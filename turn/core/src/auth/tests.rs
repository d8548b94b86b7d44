use super::*;
use crate::attributes::{kind, read};
use crate::wire::{Class, Method, TransactionId, Transport};
use base64::engine::general_purpose::STANDARD;
use quietline_shared::timed::TimedAlgorithm;

const REALM: &str = "quietline";
const SECRET: &[u8] = b"0f1e2d3c4b5a69788796a5b4c3d2e1f0";
const OTHER_SECRET: &[u8] = b"f0e1d2c3b4a5968778695a4b3c2d1e0f";

fn secret(bytes: &[u8]) -> Secret<Vec<u8>> {
    Secret::new(bytes.to_vec())
}

fn user(name: &str, password: &str) -> StaticUser {
    StaticUser::new(name, secret(password.as_bytes())).unwrap()
}

fn timed(algorithm: TimedAlgorithm, bytes: &[u8]) -> TimedSecret {
    TimedSecret::new(algorithm, secret(bytes)).unwrap()
}

fn nonces() -> Nonces {
    Nonces::new(Secret::new([7; 32]), NONCE_EPOCH)
}

fn source(port: u16) -> FiveTuple {
    FiveTuple::new(([9, 9, 9, 9], port).into(), Transport::Udp, 0)
}

fn at(seconds: u64) -> Now {
    Now {
        steady: Duration::from_secs(seconds),
        unix_seconds: 1_800_000_000 + seconds,
    }
}

/// What a client writes: attributes, then an integrity made with the key.
fn signed(attributes: &[(u16, &[u8])], integrity: IntegrityKind, key: &Key) -> Vec<u8> {
    let mut buffer = [0; 1024];
    let mut writer = Writer::new(&mut buffer, Method::Allocate, Class::Request, TransactionId([1; 12]));
    for (kind, value) in attributes {
        writer.attribute(*kind, &[value]);
    }
    sign(&mut writer, integrity, key);
    writer.finish().unwrap().to_vec()
}

fn check(bytes: &[u8], credentials: &Credentials, known: Option<(UserId, &Key)>, now: Now) -> Result<Verified, Denied> {
    let message = Message::parse(bytes).unwrap();
    let attributes = read(&message).unwrap();
    authenticate(&message, &attributes, &source(1), credentials, &nonces(), known, now)
}

fn request(name: &str, key: &Key, now: Now) -> Vec<u8> {
    let nonce = nonces().make(&source(1), Features(*b"wAAA"), now);
    let attributes = [
        (kind::USERNAME, name.as_bytes()),
        (kind::REALM, REALM.as_bytes()),
        (kind::NONCE, &nonce),
    ];
    signed(&attributes, IntegrityKind::Sha1, key)
}

fn md5(name: &str, password: &str) -> Key {
    Key::derive(
        PasswordAlgorithm::Md5,
        name.as_bytes(),
        REALM.as_bytes(),
        password.as_bytes(),
    )
}

fn password(algorithm: TimedAlgorithm, bytes: &[u8], name: &str) -> String {
    match algorithm {
        TimedAlgorithm::Sha1 => STANDARD.encode(hmac_sha1(bytes, &[name.as_bytes()])),
        TimedAlgorithm::Sha256 => STANDARD.encode(hmac_sha256(bytes, &[name.as_bytes()])),
    }
}

/// The hexadecimal column of an RFC's vector.
fn vector(text: &str) -> Vec<u8> {
    hex::decode(text.split_whitespace().collect::<String>()).unwrap()
}

#[test]
fn the_key_of_the_rfc_is_made() {
    // RFC 8489 §9.2.2
    let key = Key::derive(PasswordAlgorithm::Md5, b"user", b"realm", b"pass");
    assert_eq!(hex::encode(key.as_bytes()), "8493fbc53ba582fb4c044c456bdc40eb");
}

#[test]
fn the_long_term_vector_of_rfc_5769_verifies() {
    let bytes = vector(
        "00010060 2112a442 78ad3433 c6ad72c0 29da412e 00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000 0015001c
         662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341 0014000b 6578616d 706c652e 6f726700 00080014
         f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666",
    );
    let message = Message::parse(&bytes).unwrap();
    let attributes = read(&message).unwrap();
    let presented = Presented::of(&message, &attributes).unwrap();
    let key = |password: &[u8]| {
        Key::derive(
            PasswordAlgorithm::Md5,
            "マトリックス".as_bytes(),
            b"example.org",
            password,
        )
    };
    assert!(presented.is_made_with(&key(b"TheMatrIX")));
    assert!(!presented.is_made_with(&key(b"TheMatrix")));
    // The nonce is not ours, the user is: a stale nonce, not a wrong password.
    let credentials = Credentials::new("example.org", vec![user("マトリックス", "TheMatrIX")], vec![]).unwrap();
    assert_eq!(check(&bytes, &credentials, None, at(0)).err(), Some(Denied::StaleNonce));
}

#[test]
fn the_sha256_vector_of_rfc_8489_has_our_hashes() {
    // Appendix B.1. Its length counts 20 bytes that it lacks (erratum 6268), so it is no message; its hashes are good all the same.
    let bytes = vector(
        "0001009c 2112a442 78ad3433 c6ad72c0 29da412e 001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2
         05c46e41 407f1704 00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476
         79363473 41000000 0014000b 6578616d 706c652e 6f726700 001c0020 e4686c8f 0edeb590 13e07090 010a93ef ccbccc54
         4c0a45d9 f830aa6d 6f735a01",
    );
    assert_eq!(Message::parse(&bytes).err(), Some(crate::wire::Malformed::BadLength));
    let credentials = Credentials::new("example.org", vec![user("マトリックス", "TheMatrIX")], vec![]).unwrap();
    assert_eq!(credentials.userhash("マトリックス".as_bytes()), bytes[24..56]);
    let key = credentials.by_userhash[&bytes[24..56]].with(PasswordAlgorithm::Sha256);
    assert_eq!(
        IntegrityKind::Sha256.mac(key.as_bytes(), &[&bytes[..120]]),
        bytes[124..]
    );
}

#[test]
fn the_short_term_vectors_of_rfc_5769_verify() {
    let responses = [
        "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643
         00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7 80280004 c07d4c96",
        "01010048 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200014 0002a147 0113a9fa
         a5d3f179 bc25f4b5 bed2b9d9 00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c",
        "00010058 2112a442 b7e7a701 bc34d686 fa87dfae 80220010 5354554e 20746573 7420636c 69656e74 00240004 6e0001ff
         80290008 932ff9b1 51263b36 00060009 6576746a 3a683676 59202020 00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249
         c1b571a2 80280004 e57a3bcf",
    ];
    for text in responses {
        let bytes = vector(text);
        let message = Message::parse(&bytes).unwrap();
        let attributes = read(&message).unwrap();
        assert!(attributes.has_fingerprint);
        let presented = Presented::of(&message, &attributes).unwrap();
        let (kind, length, rest) = presented.covered;
        let mac = presented.kind.mac(b"VOkJxbRl1RmTxUk/WvJxBt", &[kind, &length, rest]);
        assert_eq!(&mac[..20], presented.mac);
    }
    let mapped: Vec<_> = responses[..2]
        .iter()
        .map(|text| {
            let bytes = vector(text);
            let message = Message::parse(&bytes).unwrap();
            let value = message
                .attributes()
                .find(|a| a.kind == kind::XOR_MAPPED_ADDRESS)
                .unwrap()
                .value;
            crate::attributes::read_xor_address(value, &message.transaction)
                .unwrap()
                .to_string()
        })
        .collect();
    assert_eq!(
        mapped,
        ["192.0.2.1:32853", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"]
    );
}

#[test]
fn a_static_user_is_known_by_name_and_by_hash_and_with_both_algorithms() {
    let credentials = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    let nonce = nonces().make(&source(1), credentials.features(), at(5));
    let hash = credentials.userhash(b"alice");
    let names: [(u16, &[u8]); 2] = [(kind::USERNAME, b"alice"), (kind::USERHASH, &hash)];
    let mut users = Vec::new();
    for name in names {
        for (number, algorithm) in [(1u8, PasswordAlgorithm::Md5), (2, PasswordAlgorithm::Sha256)] {
            for integrity in [IntegrityKind::Sha1, IntegrityKind::Sha256] {
                let key = Key::derive(algorithm, b"alice", REALM.as_bytes(), b"wonderland");
                let bytes = signed(
                    &[
                        name,
                        (kind::REALM, REALM.as_bytes()),
                        (kind::NONCE, &nonce),
                        (kind::PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS),
                        (kind::PASSWORD_ALGORITHM, &[0, number, 0, 0]),
                    ],
                    integrity,
                    &key,
                );
                let verified = check(&bytes, &credentials, None, at(5)).ok().unwrap();
                assert_eq!(verified.answer, IntegrityKind::Sha256);
                assert_eq!(verified.timed_until, None);
                users.push(verified.user);
            }
        }
    }
    assert!(users.iter().all(|user| *user == users[0]));
}

#[test]
fn without_an_algorithm_the_answer_is_sha1_and_the_key_md5() {
    let credentials = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    let verified = check(
        &request("alice", &md5("alice", "wonderland"), at(5)),
        &credentials,
        None,
        at(5),
    );
    assert_eq!(verified.ok().unwrap().answer, IntegrityKind::Sha1);
}

#[test]
fn a_wrong_password_and_an_unknown_user_or_hash_are_one_denial() {
    let credentials = Credentials::new(
        REALM,
        vec![user("alice", "wonderland")],
        vec![timed(TimedAlgorithm::Sha1, SECRET)],
    )
    .unwrap();
    for (name, key) in [
        ("alice", md5("alice", "wrong")),
        ("bob", md5("bob", "wonderland")),
        // The key of nobody is no key.
        ("", Key::derive(PasswordAlgorithm::Md5, b"", b"", b"")),
        ("alice", Key::derive(PasswordAlgorithm::Md5, b"", b"", b"")),
        ("bob", Key::derive(PasswordAlgorithm::Md5, b"", b"", b"")),
        // A name without a time is no timed name, whatever its password.
        ("bob", md5("bob", &password(TimedAlgorithm::Sha1, SECRET, "bob"))),
    ] {
        let denied = check(&request(name, &key, at(5)), &credentials, None, at(5))
            .err()
            .unwrap();
        let expected = if name.is_empty() {
            Denied::Incomplete
        } else {
            Denied::Credential
        };
        assert_eq!(denied, expected);
    }
    let nonce = nonces().make(&source(1), credentials.features(), at(5));
    let bytes = signed(
        &[
            (kind::USERHASH, &[3; 32]),
            (kind::REALM, REALM.as_bytes()),
            (kind::NONCE, &nonce),
        ],
        IntegrityKind::Sha1,
        &md5("alice", "wonderland"),
    );
    assert_eq!(check(&bytes, &credentials, None, at(5)).err(), Some(Denied::Credential));
}

#[test]
fn timed_names_are_checked_against_every_secret() {
    let secrets = || {
        vec![
            timed(TimedAlgorithm::Sha1, SECRET),
            timed(TimedAlgorithm::Sha256, OTHER_SECRET),
        ]
    };
    let credentials = Credentials::new(REALM, vec![], secrets()).unwrap();
    for (algorithm, bytes) in [(TimedAlgorithm::Sha1, SECRET), (TimedAlgorithm::Sha256, OTHER_SECRET)] {
        for name in ["1800000600", "1800000600:ca3f"] {
            let key = md5(name, &password(algorithm, bytes, name));
            let verified = check(&request(name, &key, at(5)), &credentials, None, at(5))
                .ok()
                .unwrap();
            assert_eq!(verified.timed_until, Some(1_800_000_600));
        }
    }
    // What is given out is made with the first.
    let given = credentials.timed_password(b"1800000600:ca3f").unwrap();
    let first = password(TimedAlgorithm::Sha1, SECRET, "1800000600:ca3f");
    assert_eq!(given.expose(), &first);
    let none = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    assert!(none.timed_password(b"1800000600").is_none());
    // Each secret has one algorithm.
    let name = "1800000600";
    let key = md5(name, &password(TimedAlgorithm::Sha256, SECRET, name));
    assert_eq!(
        check(&request(name, &key, at(5)), &credentials, None, at(5)).err(),
        Some(Denied::Credential)
    );
}

#[test]
fn an_allocations_own_key_stays_good_when_its_user_is_gone() {
    let before = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    let after = Credentials::new(REALM, vec![user("bob", "builder")], vec![]).unwrap();
    let bytes = request("alice", &md5("alice", "wonderland"), at(5));
    let verified = check(&bytes, &before, None, at(5)).ok().unwrap();
    assert_eq!(check(&bytes, &after, None, at(5)).err(), Some(Denied::Credential));
    assert!(check(&bytes, &after, Some((verified.user, &verified.key)), at(5)).is_ok());
    // Another user cannot use it.
    let other = request("carol", &md5("alice", "wonderland"), at(5));
    assert_eq!(
        check(&other, &after, Some((verified.user, &verified.key)), at(5)).err(),
        Some(Denied::Credential)
    );
}

#[test]
fn whoever_bids_down_is_refused() {
    let credentials = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    let nonce = nonces().make(&source(1), credentials.features(), at(5));
    let denied = |extra: &[(u16, &[u8])]| {
        let mut attributes: Vec<(u16, &[u8])> = vec![
            (kind::USERNAME, b"alice"),
            (kind::REALM, REALM.as_bytes()),
            (kind::NONCE, &nonce),
        ];
        attributes.extend_from_slice(extra);
        check(
            &signed(&attributes, IntegrityKind::Sha1, &md5("alice", "wonderland")),
            &credentials,
            None,
            at(5),
        )
        .err()
    };
    let list = &PASSWORD_ALGORITHMS;
    assert_eq!(denied(&[]), None);
    assert_eq!(
        denied(&[
            (kind::PASSWORD_ALGORITHMS, list),
            (kind::PASSWORD_ALGORITHM, &[0, 1, 0, 0])
        ]),
        None
    );
    assert_eq!(
        denied(&[(kind::PASSWORD_ALGORITHM, &[0, 1, 0, 0])]),
        Some(Denied::Algorithms)
    );
    assert_eq!(denied(&[(kind::PASSWORD_ALGORITHMS, list)]), Some(Denied::Algorithms));
    assert_eq!(
        denied(&[
            (kind::PASSWORD_ALGORITHMS, &[0, 1, 0, 0]),
            (kind::PASSWORD_ALGORITHM, &[0, 1, 0, 0])
        ]),
        Some(Denied::Algorithms)
    );
    assert_eq!(
        denied(&[
            (kind::PASSWORD_ALGORITHMS, list),
            (kind::PASSWORD_ALGORITHM, &[0, 3, 0, 0])
        ]),
        Some(Denied::Algorithms)
    );
}

#[test]
fn a_truncated_integrity_is_none() {
    let credentials = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    let nonce = nonces().make(&source(1), credentials.features(), at(5));
    let key = md5("alice", "wonderland");
    for (length, expected) in [
        (32, None),
        (28, Some(Denied::Credential)),
        (16, Some(Denied::Credential)),
    ] {
        let mut buffer = [0; 512];
        let mut writer = Writer::new(&mut buffer, Method::Allocate, Class::Request, TransactionId([1; 12]));
        writer.attribute(kind::USERNAME, &[b"alice"]);
        writer.attribute(kind::REALM, &[REALM.as_bytes()]);
        writer.attribute(kind::NONCE, &[&nonce]);
        let mac = hmac_sha256(key.as_bytes(), &[writer.covered(4 + length)]);
        writer.attribute(kind::MESSAGE_INTEGRITY_SHA256, &[&mac[..length]]);
        let bytes = writer.finish().unwrap().to_vec();
        assert_eq!(check(&bytes, &credentials, None, at(5)).err(), expected);
    }
}

#[test]
fn a_nonce_is_good_for_its_source_and_two_epochs() {
    let nonces = nonces();
    let features = Features(*b"wAAA");
    let nonce = nonces.make(&source(1), features, at(1799));
    assert!(nonce.starts_with(b"obMatJos2wAAA"));
    assert!(nonces.accepts(&nonce, &source(1), at(1799)));
    assert!(nonces.accepts(&nonce, &source(1), at(1800)));
    assert!(nonces.accepts(&nonce, &source(1), at(3599)));
    assert!(!nonces.accepts(&nonce, &source(1), at(3600)));
    assert!(!nonces.accepts(&nonce, &source(2), at(1799)));
    let tcp = FiveTuple::new(source(1).client(), Transport::Tcp, 0);
    assert!(!nonces.accepts(&nonce, &tcp, at(1799)));
    // A bit cleared on the way is a nonce that nobody made.
    let mut cleared = nonce;
    cleared[9] = b'g';
    assert!(!nonces.accepts(&cleared, &source(1), at(1799)));
    for bad in [
        b"".as_slice(),
        b"obMatJos2",
        &nonce[..34],
        &[nonce.as_slice(), b"A"].concat(),
    ] {
        assert!(!nonces.accepts(bad, &source(1), at(1799)));
    }
    assert_ne!(nonce, nonces.make(&source(2), features, at(1799)));
    let other_key = Nonces::new(Secret::new([8; 32]), NONCE_EPOCH);
    assert!(!other_key.accepts(&nonce, &source(1), at(1799)));
}

#[test]
fn anonymity_is_offered_only_where_a_hash_can_be_known() {
    let with_users = Credentials::new(REALM, vec![user("alice", "wonderland")], vec![]).unwrap();
    let timed_only = Credentials::new(REALM, vec![], vec![timed(TimedAlgorithm::Sha1, SECRET)]).unwrap();
    assert_eq!(with_users.features(), Features(*b"wAAA"));
    assert_eq!(timed_only.features(), Features(*b"gAAA"));
    assert_eq!(STANDARD.decode("wAAA").unwrap(), [0xC0, 0, 0]);
    assert_eq!(STANDARD.decode("gAAA").unwrap(), [0x80, 0, 0]);
}

#[test]
fn weak_settings_are_refused_by_name() {
    let static_fault = |name: &str, password: &str| StaticUser::new(name, secret(password.as_bytes())).err().unwrap();
    assert_eq!(static_fault("", "wonderland"), CredentialFault::EmptyName);
    assert_eq!(static_fault(&"a".repeat(509), "wonderland"), CredentialFault::LongName);
    assert_eq!(static_fault("alice", ""), CredentialFault::EmptyPassword);
    for password in [
        "password",
        "Secret",
        "alice",
        "xxxxxxxx",
        "CHANGEME",
        "please-change-me",
    ] {
        assert_eq!(
            static_fault("alice", password),
            CredentialFault::Placeholder,
            "{password}"
        );
    }
    let fault = |realm: &str, users| Credentials::new(realm, users, vec![]).err().unwrap();
    assert_eq!(fault(REALM, vec![]), CredentialFault::NoCredentials);
    assert_eq!(
        fault("", vec![user("alice", "wonderland")]),
        CredentialFault::EmptyRealm
    );
    assert_eq!(
        fault("a\"b", vec![user("alice", "wonderland")]),
        CredentialFault::BadRealm
    );
    assert_eq!(
        fault(&"r".repeat(65), vec![user("alice", "wonderland")]),
        CredentialFault::BadRealm
    );
    assert_eq!(
        fault(REALM, vec![user("alice", "wonderland"), user("alice", "w2")]),
        CredentialFault::UserTwice
    );
}

#[test]
fn the_oracle_verifies_what_we_sign_and_signs_what_we_verify() {
    use stun_types::message::{IntegrityAlgorithm, LongTermKeyCredentials, MessageIntegrityCredentials};
    let theirs: MessageIntegrityCredentials =
        LongTermKeyCredentials::new("alice".into(), "wonderland".into(), REALM.into()).into();
    for (ours, algorithm, oracle) in [
        (IntegrityKind::Sha1, PasswordAlgorithm::Md5, IntegrityAlgorithm::Sha1),
        (
            IntegrityKind::Sha256,
            PasswordAlgorithm::Sha256,
            IntegrityAlgorithm::Sha256,
        ),
    ] {
        let key = Key::derive(algorithm, b"alice", REALM.as_bytes(), b"wonderland");
        let bytes = signed(&[(kind::USERNAME, b"alice")], ours, &key);
        let message = stun_types::message::Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.validate_integrity(&theirs).unwrap(), oracle);

        use stun_types::message::{MessageWrite, MessageWriteExt, MessageWriteVec};
        let mut builder =
            stun_types::message::Message::builder_request(turn_types::message::ALLOCATE, MessageWriteVec::new());
        builder.add_message_integrity(&theirs, oracle).unwrap();
        builder.add_fingerprint().unwrap();
        let bytes = builder.finish();
        let message = Message::parse(&bytes).unwrap();
        let attributes = read(&message).unwrap();
        assert!(Presented::of(&message, &attributes).unwrap().is_made_with(&key));
        assert!(attributes.has_fingerprint);
    }
}
