use super::*;
use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use quietline_shared::redact::Secret;
use std::collections::HashSet;
use std::path::Path;
use tempfile::TempDir;

const NOW: i64 = 1_760_000_000;

#[tokio::test]
async fn a_subscription_comes_back_as_it_was_stored() {
    let (store, _folder) = empty_store().await;
    assert_eq!(store.put(&subscription(1, NOW)).await, Ok(Put::New));
    let found = store.load(vec![device(1), device(2)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(1, NOW)]));
    assert_eq!(store.count().await, Ok(1));
}

#[tokio::test]
async fn an_older_signature_never_overwrites_a_newer_one() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW - 1)).await, Ok(Put::KeptNewer));
    assert_eq!(store.put(&subscription(1, NOW + 1)).await, Ok(Put::Renewed));
    let found = store.load(vec![device(1)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(1, NOW + 1)]));
}

#[tokio::test]
async fn of_two_with_the_same_time_the_later_request_wins() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW)).await, Ok(Put::Unchanged));
    let other = || Subscription {
        want_data: false,
        ..subscription(1, NOW)
    };
    assert_eq!(store.put(&other()).await, Ok(Put::Renewed));
    assert_eq!(rows(&store.load(vec![device(1)]).await.unwrap()), rows(&[other()]));
}

#[tokio::test]
async fn changes_of_one_device_take_effect_in_their_order_within_a_group() {
    let (store, _folder) = empty_store().await;
    let one = device(1);
    // Polled in this order before the writing task runs, so they share a group.
    let answers = tokio::join!(
        biased;
        store.put(&subscription(1, NOW)),
        store.put(&subscription(1, NOW - 5)),
        store.remove(&one),
        store.put(&subscription(1, NOW - 5)),
        store.put(&subscription(2, NOW)),
    );
    assert_eq!(
        answers,
        (Ok(Put::New), Ok(Put::KeptNewer), Ok(true), Ok(Put::New), Ok(Put::New))
    );
    let found = store.load(vec![device(1), device(2)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(1, NOW - 5), subscription(2, NOW)]));
    // Removal and renewal of stored rows in one group take the script with both.
    let answers = tokio::join!(biased; store.remove(&one), store.put(&subscription(2, NOW + 1)));
    assert_eq!(answers, (Ok(true), Ok(Put::Renewed)));
    assert_eq!(rows(&all(&store).await), rows(&[subscription(2, NOW + 1)]));
}

#[tokio::test]
async fn a_dead_token_does_not_remove_a_row_signed_later() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    assert_eq!(store.remove_if_older(&device(1), NOW * 1_000).await, Ok(false));
    assert_eq!(store.remove_if_older(&device(1), NOW * 1_000 + 1).await, Ok(true));
    assert_eq!(store.remove_if_older(&device(1), NOW * 1_000 + 1).await, Ok(false));
    assert_eq!(store.count().await, Ok(0));
}

#[tokio::test]
async fn who_bound_a_subscription_once_must_bind_each_after_it() {
    let (store, folder) = empty_store().await;
    let bound = |number, sig_ts| Subscription {
        is_bound: true,
        ..subscription(number, sig_ts)
    };
    // Rows of before stay, and whoever never bound anything goes on as ever.
    assert_eq!(store.put(&subscription(1, NOW)).await, Ok(Put::New));
    assert_eq!(store.put(&bound(1, NOW)).await, Ok(Put::Unchanged));
    let thief = Subscription {
        enc_key: Secret::new([66; 32]),
        ..subscription(1, NOW + 1)
    };
    assert_eq!(store.put(&thief).await, Ok(Put::BindingRequired));
    let mut new_token = subscription(1, NOW + 1);
    new_token.device.token = DeviceToken::new(*b"the thief's own");
    assert_eq!(store.put(&new_token).await, Ok(Put::BindingRequired));
    assert_eq!(store.put(&bound(1, NOW + 1)).await, Ok(Put::Renewed));
    assert_eq!(store.put(&subscription(2, NOW)).await, Ok(Put::New), "another account");
    // Not even without a device, nor after a restart.
    assert_eq!(store.remove(&device(1)).await, Ok(true));
    store.close().await;
    let store = open(folder.path(), KEY).await.unwrap();
    assert_eq!(store.put(&new_token).await, Ok(Put::BindingRequired));
    // Signed by a delegate it is another signer's.
    let delegated = Subscription {
        subaccount: Some(notifier_core::subscription::Subaccount {
            tag: [7; 36],
            signature: [8; 64],
        }),
        ..new_token
    };
    assert_eq!(store.put(&delegated).await, Ok(Put::New));
    assert_eq!(store.count().await, Ok(2), "a mark is no subscription");
    assert_eq!(all(&store).await.len(), 2);
}

#[tokio::test]
async fn a_binding_is_needed_as_long_as_a_bound_signature_counts() {
    let (store, _folder) = empty_store().await;
    let bound = Subscription {
        is_bound: true,
        ..subscription(1, NOW)
    };
    let both = tokio::join!(biased; store.put(&bound), store.put(&subscription(1, NOW + 1)));
    assert_eq!(both, (Ok(Put::New), Ok(Put::BindingRequired)), "in one group");
    let day = 86_400;
    store.remove_expired(NOW + 14 * day).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW + 1)).await, Ok(Put::BindingRequired));
    store.remove_expired(NOW + 15 * day).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW + 15 * day)).await, Ok(Put::New));
}

#[tokio::test]
async fn expired_rows_go_the_day_after() {
    let (store, _folder) = empty_store().await;
    let day = 86_400;
    let last_day = subscription(0, NOW).expires_at() / day * day;
    put_many(&store, (0..1_500).map(|n| subscription(n, NOW))).await;
    put_many(&store, (1_500..1_600).map(|n| subscription(n, NOW + 2 * day))).await;
    assert_eq!(store.remove_expired(last_day + day - 1).await, Ok(0));
    assert_eq!(store.remove_expired(last_day + day).await, Ok(1_500));
    assert_eq!(store.count().await, Ok(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_are_all_stored_and_scanned() {
    let (store, _folder) = empty_store().await;
    put_many(&store, (0..3_000).map(|n| subscription(n, NOW))).await;
    let devices: HashSet<DeviceId> = all(&store).await.into_iter().map(|found| found.device).collect();
    assert_eq!(devices, (0..3_000).map(device).collect());
    let found = store.load((0..1_200).map(device).collect()).await.unwrap();
    assert_eq!(found.len(), 1_200);
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_crash() {
    let (store, folder) = empty_store().await;
    put_many(&store, (0..200).map(|n| subscription(n, NOW))).await;
    // What a crash leaves: the files as they are, without close or checkpoint.
    let crashed = TempDir::new().unwrap();
    for name in ["subscriptions.db", "subscriptions.db-wal"] {
        std::fs::copy(folder.path().join(name), crashed.path().join(name)).unwrap();
    }
    let again = open(crashed.path(), KEY).await.unwrap();
    assert_eq!(again.count().await, Ok(200));
}

#[tokio::test]
async fn a_wal_cut_in_the_middle_of_a_commit_keeps_the_commits_before() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    store.put(&subscription(2, NOW)).await.unwrap();
    let wal = std::fs::read(folder.path().join("subscriptions.db-wal")).unwrap();
    let crashed = TempDir::new().unwrap();
    std::fs::copy(
        folder.path().join("subscriptions.db"),
        crashed.path().join("subscriptions.db"),
    )
    .unwrap();
    std::fs::write(crashed.path().join("subscriptions.db-wal"), &wal[..wal.len() - 100]).unwrap();
    let again = open(crashed.path(), KEY).await.unwrap();
    assert_eq!(rows(&all(&again).await), rows(&[subscription(1, NOW)]));
}

#[tokio::test]
async fn a_closed_store_opens_again_with_everything_and_an_empty_wal() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    store.close().await;
    assert_eq!(store.put(&subscription(2, NOW)).await, Err(StoreError::Closed));
    assert!(!folder.path().join("subscriptions.db-wal").exists());
    let again = open(folder.path(), KEY).await.unwrap();
    assert_eq!(again.count().await, Ok(1));
}

#[tokio::test]
async fn a_second_notifier_on_the_same_file_is_refused() {
    let (_store, folder) = empty_store().await;
    assert_eq!(open(folder.path(), KEY).await.err(), Some(StoreError::InUse));
}

#[tokio::test]
async fn another_lookup_key_is_refused() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    store.close().await;
    assert_eq!(
        open(folder.path(), [8; 32]).await.err(),
        Some(StoreError::ForeignLookupKey)
    );
}

#[tokio::test]
async fn a_damaged_row_hides_no_other_and_gives_way_to_a_renewal() {
    let (file, mut writer, folder) = claimed().await;
    for (lookup, row) in [(key().lookup(&device(1)), &b"?"[..]), ([9; 32], b"")] {
        sqlx::query("INSERT INTO subscription VALUES (?, 99999, 0, ?)")
            .bind(lookup.as_slice())
            .bind(row)
            .execute(&mut writer.connection)
            .await
            .unwrap();
    }
    let store = SqliteStore::start(file, writer, key()).await.unwrap();
    store.put(&subscription(2, NOW)).await.unwrap();
    assert_eq!(rows(&all(&store).await), rows(&[subscription(2, NOW)]));
    assert_eq!(store.put(&subscription(1, NOW)).await, Ok(Put::Renewed));
    assert_eq!(all(&store).await.len(), 2);
    drop(folder);
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_store_recovers_when_there_is_space() {
    let (file, mut writer, _folder) = claimed().await;
    sqlx::query("PRAGMA max_page_count = 20")
        .execute(&mut writer.connection)
        .await
        .unwrap();
    let store = SqliteStore::start(file, writer, key()).await.unwrap();
    let mut stored = 0;
    let error = loop {
        match store.put(&subscription(stored, NOW)).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, StoreError::DiskFull);
    assert!(error.is_retryable());
    assert_eq!(store.count().await, Ok(u64::from(stored)));

    for n in 0..stored {
        assert_eq!(store.remove(&device(n)).await, Ok(true));
    }
    assert_eq!(store.put(&subscription(stored, NOW)).await, Ok(Put::New));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("subscriptions.db"), [b'x'; 5_000]).unwrap();
    assert_eq!(open(folder.path(), KEY).await.err(), Some(StoreError::Damaged));
}

#[tokio::test]
async fn nothing_of_a_removed_subscription_stays_in_the_files() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW)).await.unwrap();
    store.remove(&device(1)).await.unwrap();
    store.close().await;
    let file = std::fs::read(folder.path().join("subscriptions.db")).unwrap();
    let token = b"a-token-of-some-length";
    assert!(!file.windows(token.len()).any(|bytes| bytes == token));
}

const KEY: [u8; 32] = [7; 32];

fn key() -> LookupKey {
    LookupKey::new(Secret::new(KEY))
}

async fn open(folder: &Path, key: [u8; 32]) -> Result<SqliteStore, StoreError> {
    let settings = StoreSettings {
        path: folder.join("subscriptions.db"),
        lookup_key_file: "unused".into(),
    };
    SqliteStore::open(&settings, LookupKey::new(Secret::new(key))).await
}

async fn empty_store() -> (SqliteStore, TempDir) {
    let folder = TempDir::new().unwrap();
    (open(folder.path(), KEY).await.unwrap(), folder)
}

async fn claimed() -> (SqliteFile, Writer, TempDir) {
    let folder = TempDir::new().unwrap();
    let file = SqliteFile::claim(&folder.path().join("subscriptions.db"), WAL_PAGES).unwrap();
    let writer = file.writer(&MIGRATIONS).await.unwrap();
    (file, writer, folder)
}

async fn put_many(store: &SqliteStore, subscriptions: impl Iterator<Item = Subscription>) {
    let puts = futures_util::stream::iter(subscriptions.map(|subscription| store.put(&subscription)));
    futures_util::StreamExt::for_each_concurrent(puts, 50, async |put| assert_eq!(put.await, Ok(Put::New))).await;
}

async fn all(store: &SqliteStore) -> Vec<Subscription> {
    let mut batches = store.scan();
    let mut found = Vec::new();
    while let Some(batch) = batches.recv().await {
        found.extend(batch.unwrap());
    }
    found
}

/// Subscriptions have no equality (they hold a key); their rows do.
fn rows(subscriptions: &[Subscription]) -> HashSet<Vec<u8>> {
    subscriptions.iter().map(Subscription::encode_row).collect()
}

fn device(n: u32) -> DeviceId {
    let mut account = [5; 33];
    account[1..5].copy_from_slice(&n.to_be_bytes());
    DeviceId {
        account: AccountId::new(account),
        service: Service::Firebase,
        token: DeviceToken::new(format!("a-token-of-some-length-{n:08}").into_bytes()),
    }
}

fn subscription(n: u32, sig_ts: i64) -> Subscription {
    Subscription {
        device: device(n),
        session_ed25519: Some([3; 32]),
        subaccount: None,
        namespaces: NamespaceSet::new([Namespace(0), Namespace(3)]).unwrap(),
        want_data: true,
        sig_ts,
        signature: [9; 64],
        enc_key: Secret::new([1; 32]),
        is_bound: false,
    }
}
