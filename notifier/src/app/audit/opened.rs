//! What the rows of the store are, which only its keys tell.
//!
//! In: the file, its keys. Out: counts by kind and key. Never: gives a row away, or counts what does not open for what it says it is.

use crate::keyring::{Keyring, Sealer};
use crate::sqlite::SqliteFault;
use crate::store::sqlite::sealed::{self, Columns, PURPOSE};
use notifier_core::subscription::{BINDING_MARK, Subscription};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::collections::BTreeMap;
use std::path::Path;

/// What a row turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Subscription,
    /// Of an account whose subscriptions need a binding.
    BindingMark,
    /// Read without any key.
    Plain,
    /// No key that we have opens it, or nothing that we know stands in it.
    Unopened,
}

/// How many rows of each kind name which key.
pub type Counts = BTreeMap<(Kind, i64), u64>;

/// Opens every row, a batch at a time: a few seconds for a million.
pub async fn count(path: &Path, keys: &Keyring) -> Result<Counts, SqliteFault> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.disable_statement_logging().connect().await?;
    let sealer = keys.sealer(PURPOSE);
    let mut counts = Counts::new();
    let mut after = -1;
    loop {
        let rows: Vec<Columns> = sqlx::query_as(NEXT)
            .bind(after)
            .bind(BATCH)
            .fetch_all(&mut connection)
            .await?;
        let Some((last, ..)) = rows.last() else { break };
        after = *last;
        for row in rows {
            let (_, _, key_id, _) = row;
            *counts.entry((kind_of(&sealer, row), key_id)).or_default() += 1;
        }
    }
    let _ = connection.close().await;
    Ok(counts)
}

fn kind_of(sealer: &Sealer, row: Columns) -> Kind {
    let (_, _, _, content) = &row;
    if Subscription::decode_row(content).is_ok() {
        return Kind::Plain;
    }
    match sealed::open(sealer, row) {
        Some(open) if open.content() == BINDING_MARK => Kind::BindingMark,
        Some(open) if open.subscription().is_some() => Kind::Subscription,
        _ => Kind::Unopened,
    }
}

/// By the name of the row, in which it was made for its place: nobody else's row may lie there.
const NEXT: &str = "SELECT lookup, expires_day, key_id, row FROM subscription WHERE lookup > ? ORDER BY lookup LIMIT ?";

const BATCH: i64 = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use quietline_shared::redact::Secret;

    fn ring(key: u8) -> Keyring {
        Keyring::new(vec![Secret::new([key; 32])]).unwrap()
    }

    #[tokio::test]
    async fn rows_are_counted_for_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut file = options.connect().await.unwrap();
        sqlx::raw_sql(
            "CREATE TABLE subscription (lookup INTEGER PRIMARY KEY, expires_day INTEGER, key_id INTEGER, row BLOB)",
        )
        .execute(&mut file)
        .await
        .unwrap();
        let (ours, foreign) = (ring(1).sealer(PURPOSE), ring(2).sealer(PURPOSE));
        let name = |first: u8| [first; 32];
        let subscription = subscription();
        let mut add = async |sealer: &Sealer, first: u8, content: &[u8]| {
            let row = sealed::seal(sealer, &name(first), 7, content).unwrap();
            insert(&mut file, sealed::lookup(&name(first)), sealer.newest().column(), row).await;
        };
        add(&ours, 1, &subscription).await;
        add(&ours, 2, &subscription).await;
        add(&ours, 3, BINDING_MARK).await;
        add(&ours, 4, b"something else").await;
        add(&foreign, 5, &subscription).await;
        insert(&mut file, 6, 0, subscription.clone()).await;
        // Sealed for another place.
        let moved = sealed::seal(&ours, &name(8), 7, &subscription).unwrap();
        insert(&mut file, 7, ours.newest().column(), moved).await;

        let (one, two) = (ours.newest().column(), foreign.newest().column());
        let expected = [
            ((Kind::Subscription, one), 2),
            ((Kind::BindingMark, one), 1),
            ((Kind::Plain, 0), 1),
            ((Kind::Unopened, one), 2),
            ((Kind::Unopened, two), 1),
        ];
        assert_eq!(count(&path, &ring(1)).await.unwrap(), Counts::from(expected));
    }

    async fn insert(file: &mut sqlx::SqliteConnection, lookup: i64, key_id: i64, row: Vec<u8>) {
        sqlx::query("INSERT INTO subscription VALUES (?, 7, ?, ?)")
            .bind(lookup)
            .bind(key_id)
            .bind(row)
            .execute(file)
            .await
            .unwrap();
    }

    fn subscription() -> Vec<u8> {
        use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
        use notifier_core::subscription::DeviceId;
        let subscription = Subscription {
            device: DeviceId {
                account: AccountId::new([5; 33]),
                service: Service::Apns,
                token: DeviceToken::new([6; 32]),
            },
            session_ed25519: Some([1; 32]),
            subaccount: None,
            namespaces: NamespaceSet::new(vec![Namespace(0)]).unwrap(),
            want_data: true,
            sig_ts: 1_800_000_000,
            signature: [2; 64],
            enc_key: Secret::new([3; 32]),
            is_bound: false,
        };
        subscription.encode_row()
    }
}
