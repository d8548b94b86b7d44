use super::*;
use crate::sqlite::ERASE_AFTER;
use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use notifier_core::subscription::BINDING_MARK;
use quietline_shared::redact::Secret;
use sqlx::Connection;
use std::collections::HashSet;
use std::path::Path;
use tempfile::TempDir;

const NOW: i64 = 1_760_000_000;

#[tokio::test]
async fn a_subscription_comes_back_as_it_was_stored() {
    let (store, _folder) = empty_store().await;
    assert_eq!(store.put(&subscription(1, NOW), NOW).await, Ok(Put::New));
    let found = store.load(vec![device(1), device(2)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(1, NOW)]));
    assert_eq!(store.count().await, Ok(1));
}

#[tokio::test]
async fn an_older_signature_never_overwrites_a_newer_one() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW - 1), NOW).await, Ok(Put::KeptNewer));
    assert_eq!(store.put(&subscription(1, NOW + 1), NOW).await, Ok(Put::Renewed));
    let found = store.load(vec![device(1)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(1, NOW + 1)]));
}

#[tokio::test]
async fn of_two_with_the_same_time_the_later_request_wins() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW), NOW).await, Ok(Put::Unchanged));
    let other = || Subscription {
        want_data: false,
        ..subscription(1, NOW)
    };
    assert_eq!(store.put(&other(), NOW).await, Ok(Put::Renewed));
    assert_eq!(rows(&store.load(vec![device(1)]).await.unwrap()), rows(&[other()]));
}

#[tokio::test]
async fn changes_of_one_device_take_effect_in_their_order_within_a_group() {
    let (store, _folder) = empty_store().await;
    let one = device(1);
    // Polled in this order before the writing task runs, so they share a group.
    let answers = tokio::join!(
        biased;
        store.put(&subscription(1, NOW), NOW),
        store.put(&subscription(1, NOW - 5), NOW),
        store.remove(&one),
        store.put(&subscription(1, NOW - 5), NOW),
        store.put(&subscription(2, NOW), NOW),
    );
    assert_eq!(
        answers,
        (Ok(Put::New), Ok(Put::KeptNewer), Ok(true), Ok(Put::New), Ok(Put::New))
    );
    let found = store.load(vec![device(1), device(2)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(1, NOW - 5), subscription(2, NOW)]));
    // Removal and renewal of stored rows in one group take the script with both.
    let answers = tokio::join!(biased; store.remove(&one), store.put(&subscription(2, NOW + 1), NOW));
    assert_eq!(answers, (Ok(true), Ok(Put::Renewed)));
    assert_eq!(rows(&all(&store).await), rows(&[subscription(2, NOW + 1)]));
}

#[tokio::test]
async fn a_dead_token_does_not_remove_a_row_signed_later() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    assert_eq!(store.remove_if_older(&device(1), NOW * 1_000).await, Ok(false));
    assert_eq!(store.remove_if_older(&device(1), NOW * 1_000 + 1).await, Ok(true));
    assert_eq!(store.remove_if_older(&device(1), NOW * 1_000 + 1).await, Ok(false));
    assert_eq!(store.count().await, Ok(0));
}

#[tokio::test]
async fn an_unsubscription_leaves_what_was_signed_later() {
    let (store, _folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    assert_eq!(
        store.unsubscribe(&gone(1, NOW - 1), NOW).await,
        Ok(Unsubscribed::KeptNewer)
    );
    assert_eq!(store.unsubscribe(&gone(2, NOW), NOW).await, Ok(Unsubscribed::NotThere));
    assert_eq!(rows(&all(&store).await), rows(&[subscription(1, NOW)]));
    assert_eq!(store.unsubscribe(&gone(1, NOW), NOW).await, Ok(Unsubscribed::Removed));
    assert_eq!(store.unsubscribe(&gone(1, NOW), NOW).await, Ok(Unsubscribed::NotThere));
    assert_eq!(store.count().await, Ok(0));
    // Off and on again, and the first request takes the longer way: in one group as well.
    let (off, on) = (gone(1, NOW + 1), subscription(1, NOW + 2));
    let answers = tokio::join!(biased; store.put(&on, NOW), store.unsubscribe(&off, NOW));
    assert_eq!(answers, (Ok(Put::New), Ok(Unsubscribed::KeptNewer)));
    assert_eq!(rows(&all(&store).await), rows(&[on]));
}

#[tokio::test]
async fn a_signature_from_the_future_gives_way_to_what_is_signed_by_a_clock_that_is_right() {
    let (store, _folder) = empty_store().await;
    let (fast, kept) = (NOW + 3 * 3_600, Ok(Unsubscribed::KeptNewer));
    store.put(&subscription(1, fast), NOW).await.unwrap();
    // An old request again, one of a clock that is still fast, and one that says the same a moment too late or too early.
    for sig_ts in [NOW - 3_600, fast - 1, NOW - 61, NOW + 61] {
        assert_eq!(store.unsubscribe(&gone(1, sig_ts), NOW).await, kept, "{}", sig_ts - NOW);
    }
    for sig_ts in [NOW - 60, NOW, NOW + 60] {
        store.put(&subscription(1, fast), NOW).await.unwrap();
        assert_eq!(
            store.unsubscribe(&gone(1, sig_ts), NOW).await,
            Ok(Unsubscribed::Removed)
        );
    }
    // And what is signed on again.
    store.put(&subscription(1, fast), NOW).await.unwrap();
    for sig_ts in [NOW - 3_600, fast - 1, NOW - 61, NOW + 61] {
        let answer = store.put(&subscription(1, sig_ts), NOW).await;
        assert_eq!(answer, Ok(Put::KeptNewer), "{}", sig_ts - NOW);
    }
    assert_eq!(store.put(&subscription(1, NOW - 60), NOW).await, Ok(Put::Renewed));
    assert_eq!(rows(&all(&store).await), rows(&[subscription(1, NOW - 60)]));
    // A minute ahead is a clock that is right.
    store.put(&subscription(1, NOW + 60), NOW).await.unwrap();
    assert_eq!(store.unsubscribe(&gone(1, NOW + 59), NOW).await, kept);
    assert_eq!(
        store.unsubscribe(&gone(1, NOW + 59), NOW - 1).await,
        Ok(Unsubscribed::Removed)
    );
}

#[tokio::test]
async fn who_bound_a_subscription_once_must_bind_each_after_it() {
    let (store, folder) = empty_store().await;
    let bound = |number, sig_ts| Subscription {
        is_bound: true,
        ..subscription(number, sig_ts)
    };
    // Rows of before stay, and whoever never bound anything goes on as ever.
    assert_eq!(store.put(&subscription(1, NOW), NOW).await, Ok(Put::New));
    assert_eq!(store.put(&bound(1, NOW), NOW).await, Ok(Put::Unchanged));
    let thief = Subscription {
        enc_key: Secret::new([66; 32]),
        ..subscription(1, NOW + 1)
    };
    assert_eq!(store.put(&thief, NOW).await, Ok(Put::BindingRequired));
    let mut new_token = subscription(1, NOW + 1);
    new_token.device.token = DeviceToken::new(*b"the thief's own");
    assert_eq!(store.put(&new_token, NOW).await, Ok(Put::BindingRequired));
    assert_eq!(store.put(&bound(1, NOW + 1), NOW).await, Ok(Put::Renewed));
    assert_eq!(
        store.put(&subscription(2, NOW), NOW).await,
        Ok(Put::New),
        "another account"
    );
    // Not even without a device, nor after a restart.
    assert_eq!(store.remove(&device(1)).await, Ok(true));
    store.close().await;
    let store = open(folder.path(), KEY, &ring(&[1])).await.unwrap();
    assert_eq!(store.put(&new_token, NOW).await, Ok(Put::BindingRequired));
    // Signed by a delegate it is another signer's.
    let delegated = Subscription {
        subaccount: Some(notifier_core::subscription::Subaccount {
            tag: [7; 36],
            signature: [8; 64],
        }),
        ..new_token
    };
    assert_eq!(store.put(&delegated, NOW).await, Ok(Put::New));
    assert_eq!(store.count().await, Ok(2), "a mark is no subscription");
    assert_eq!(
        keys(&store).await.iter().map(|(_, rows)| rows).sum::<u64>(),
        3,
        "and looks like one"
    );
}

#[tokio::test]
async fn a_binding_is_needed_as_long_as_a_bound_signature_counts() {
    let (store, _folder) = empty_store().await;
    let bound = Subscription {
        is_bound: true,
        ..subscription(1, NOW)
    };
    let both = tokio::join!(biased; store.put(&bound, NOW), store.put(&subscription(1, NOW + 1), NOW));
    assert_eq!(both, (Ok(Put::New), Ok(Put::BindingRequired)), "in one group");
    let day = 86_400;
    store.remove_expired(NOW + 14 * day).await.unwrap();
    assert_eq!(
        store.put(&subscription(1, NOW + 1), NOW).await,
        Ok(Put::BindingRequired)
    );
    store.remove_expired(NOW + 15 * day).await.unwrap();
    assert_eq!(store.put(&subscription(1, NOW + 15 * day), NOW).await, Ok(Put::New));
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
    let again = open(crashed.path(), KEY, &ring(&[1])).await.unwrap();
    assert_eq!(again.count().await, Ok(200));
}

#[tokio::test]
async fn a_wal_cut_in_the_middle_of_a_commit_keeps_the_commits_before() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    store.put(&subscription(2, NOW), NOW).await.unwrap();
    let wal = std::fs::read(folder.path().join("subscriptions.db-wal")).unwrap();
    let crashed = TempDir::new().unwrap();
    std::fs::copy(
        folder.path().join("subscriptions.db"),
        crashed.path().join("subscriptions.db"),
    )
    .unwrap();
    std::fs::write(crashed.path().join("subscriptions.db-wal"), &wal[..wal.len() - 100]).unwrap();
    let again = open(crashed.path(), KEY, &ring(&[1])).await.unwrap();
    assert_eq!(rows(&all(&again).await), rows(&[subscription(1, NOW)]));
}

#[tokio::test]
async fn a_closed_store_opens_again_with_everything_and_an_empty_wal() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    store.close().await;
    assert_eq!(store.put(&subscription(2, NOW), NOW).await, Err(StoreError::Closed));
    assert!(!folder.path().join("subscriptions.db-wal").exists());
    let again = open(folder.path(), KEY, &ring(&[1])).await.unwrap();
    assert_eq!(again.count().await, Ok(1));
}

#[tokio::test]
async fn a_second_notifier_on_the_same_file_is_refused() {
    let (_store, folder) = empty_store().await;
    assert_eq!(
        open(folder.path(), KEY, &ring(&[1])).await.err(),
        Some(StoreError::InUse)
    );
}

#[tokio::test]
async fn another_lookup_key_is_refused() {
    let (store, folder) = empty_store().await;
    store.put(&subscription(1, NOW), NOW).await.unwrap();
    store.close().await;
    assert_eq!(
        open(folder.path(), [8; 32], &ring(&[1])).await.err(),
        Some(StoreError::ForeignLookupKey)
    );
}

#[tokio::test]
async fn a_damaged_row_hides_no_other_and_gives_way_to_a_renewal() {
    let (file, mut writer, folder) = claimed().await;
    for (lookup, row) in [(lookup(&key().name(&device(1))), &b"?"[..]), (9, b"")] {
        sqlx::query("INSERT INTO subscription VALUES (?, 99999, 1, ?)")
            .bind(lookup)
            .bind(row)
            .execute(&mut writer.connection)
            .await
            .unwrap();
    }
    let store = started(file, writer, &folder).await;
    store.put(&subscription(2, NOW), NOW).await.unwrap();
    assert_eq!(rows(&all(&store).await), rows(&[subscription(2, NOW)]));
    assert_eq!(store.put(&subscription(1, NOW), NOW).await, Ok(Put::Renewed));
    assert_eq!(all(&store).await.len(), 2);
}

#[tokio::test]
async fn rows_that_changed_places_days_or_keys_are_refused_and_the_others_stay() {
    for tampering in [
        // Another's row in the place of two.
        "UPDATE subscription SET row = (SELECT row FROM subscription ORDER BY lookup DESC LIMIT 1)
         WHERE lookup IN (SELECT lookup FROM subscription ORDER BY lookup LIMIT 2)",
        "UPDATE subscription SET expires_day = expires_day + 1
         WHERE lookup IN (SELECT lookup FROM subscription ORDER BY lookup LIMIT 2)",
        "UPDATE subscription SET key_id = key_id + 1 WHERE lookup IN (SELECT lookup FROM subscription ORDER BY lookup LIMIT 2)",
        "UPDATE subscription SET lookup = lookup + 1 WHERE lookup IN (SELECT lookup FROM subscription ORDER BY lookup LIMIT 2)",
        "UPDATE subscription SET row = substr(row, 1, 100) || x'00' || substr(row, 102)
         WHERE lookup IN (SELECT lookup FROM subscription WHERE substr(row, 101, 1) != x'00' ORDER BY lookup LIMIT 2)",
    ] {
        let (store, folder) = empty_store().await;
        put_many(&store, (0..5).map(|n| subscription(n, NOW))).await;
        store.close().await;
        change(folder.path(), tampering).await;
        let store = open(folder.path(), KEY, &ring(&[1])).await.unwrap();
        assert_eq!(all(&store).await.len(), 3, "{tampering}");
        // Nothing was deleted, and who renews has a row again.
        for n in 0..5 {
            store.put(&subscription(n, NOW + 1), NOW).await.unwrap();
        }
        assert_eq!(all(&store).await.len(), 5, "{tampering}");
    }
}

#[tokio::test]
async fn a_wrong_row_key_is_refused_and_harms_nothing() {
    let (store, folder) = empty_store().await;
    put_many(&store, (0..5).map(|n| subscription(n, NOW))).await;
    store.close().await;
    let before = std::fs::read(folder.path().join("subscriptions.db")).unwrap();
    let refused = open(folder.path(), KEY, &ring(&[2])).await.err();
    assert_eq!(refused, Some(StoreError::ForeignRowKey));
    assert!(StoreError::ForeignRowKey.is_of_settings());
    assert_eq!(std::fs::read(folder.path().join("subscriptions.db")).unwrap(), before);
    let store = open(folder.path(), KEY, &ring(&[1])).await.unwrap();
    assert_eq!(all(&store).await.len(), 5);
    // A running store keeps its ring as well.
    assert_eq!(store.use_keys(&ring(&[2])).await, Err(StoreError::ForeignRowKey));
    assert_eq!(store.put(&subscription(9, NOW), NOW).await, Ok(Put::New));
    assert_eq!(all(&store).await.len(), 6);
}

#[tokio::test]
async fn rows_tell_neither_by_look_nor_by_length_nor_by_place_whose_they_are() {
    let (store, folder) = empty_store().await;
    // One token under fifty accounts, in the order in which an app brings them, a delegate and a mark among them.
    for n in 0..50 {
        let mut subscription = subscription(n, NOW);
        subscription.device.token = DeviceToken::new(*b"one token of one telephone");
        subscription.is_bound = n == 7;
        if n % 2 == 0 {
            subscription.namespaces = NamespaceSet::new((0..60).map(Namespace).collect::<Vec<_>>()).unwrap();
        }
        store.put(&subscription, NOW).await.unwrap();
    }
    store.close().await;
    let mut file = look(folder.path()).await;
    let rows: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as("SELECT lookup, key_id, row FROM subscription ORDER BY rowid")
        .fetch_all(&mut file)
        .await
        .unwrap();
    assert_eq!(rows.len(), 51);
    assert!(
        rows.is_sorted_by_key(|(lookup, ..)| *lookup),
        "they lie in the order of a hash"
    );
    assert!(
        rows.iter()
            .all(|(_, key_id, row)| (row.len(), *key_id) == (rows[0].2.len(), rows[0].1))
    );
    let pieces = rows.iter().flat_map(|(.., row)| row.chunks(16));
    let different: HashSet<&[u8]> = pieces.clone().collect();
    assert_eq!(different.len(), pieces.count(), "no two pieces of any rows are alike");
    let indices: (i64,) =
        sqlx::query_as("SELECT count(*) FROM sqlite_master WHERE type = 'index' AND tbl_name = 'subscription'")
            .fetch_one(&mut file)
            .await
            .unwrap();
    assert_eq!(indices, (0,));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_takes_over_beside_puts_scans_and_removals() {
    let (store, folder) = empty_store().await;
    put_many(&store, (0..3_000).map(|n| subscription(n, NOW))).await;
    let (before, after) = (ring(&[1]), ring(&[2, 1]));
    let busy = async {
        for n in 0..600 {
            assert_eq!(store.put(&subscription(n, NOW + 1), NOW).await, Ok(Put::Renewed));
            assert_eq!(store.put(&subscription(3_000 + n, NOW), NOW).await, Ok(Put::New));
            assert_eq!(store.remove(&device(2_000 + n)).await, Ok(true));
            assert_eq!(store.load(vec![device(n), device(1_500)]).await.unwrap().len(), 2);
        }
    };
    let (moved, ()) = tokio::join!(store.use_keys(&after), busy);
    assert!((1..=3_000).contains(&moved.unwrap()));
    assert_eq!(keys(&store).await, [(after.ids()[0], 3_000)]);
    assert_eq!(store.use_keys(&after).await, Ok(0));
    // The old key is not needed any more.
    assert_eq!(store.use_keys(&ring(&[2])).await, Ok(0));
    assert_eq!(all(&store).await.len(), 3_000);
    store.close().await;
    assert_eq!(
        open(folder.path(), KEY, &before).await.err(),
        Some(StoreError::ForeignRowKey)
    );
    let again = open(folder.path(), KEY, &ring(&[2])).await.unwrap();
    assert_eq!(all(&again).await.len(), 3_000);
}

#[tokio::test]
async fn a_change_of_keys_that_was_killed_goes_on_after_the_next_start() {
    let (store, folder) = empty_store().await;
    put_many(&store, (0..1_200).map(|n| subscription(n, NOW))).await;
    let both = ring(&[2, 1]);
    // One step of three, and the power goes.
    let sealer = Arc::new(both.sealer(PURPOSE));
    assert_eq!(store.ask(|done| Job::UseKeys { sealer, done }).await, Ok(true));
    let end = end_of_step(&store.readers, 0).await.unwrap().unwrap();
    assert_eq!(store.ask(|done| Job::Reseal { start: 0, end, done }).await, Ok(512));
    let crashed = copy_of(folder.path());

    for alone in [ring(&[1]), ring(&[2])] {
        let refused = open(crashed.path(), KEY, &alone).await.err();
        assert_eq!(refused, Some(StoreError::ForeignRowKey), "both keys are needed");
    }
    let again = open(crashed.path(), KEY, &both).await.unwrap();
    assert_eq!(all(&again).await.len(), 1_200);
    assert_eq!(keys(&again).await.len(), 2);
    assert_eq!(again.use_keys(&both).await, Ok(1_200 - 512));
    again.close().await;
    assert_eq!(change_keys(&settings(crashed.path()), &ring(&[2])).await, Ok(0));
    // Without a notifier the command does the same.
    drop(store);
    while SqliteFile::claim(&folder.path().join("subscriptions.db"), WAL_PAGES, ERASE_AFTER).is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(change_keys(&settings(folder.path()), &both).await, Ok(1_200 - 512));
    assert_eq!(
        all(&open(folder.path(), KEY, &ring(&[2])).await.unwrap()).await.len(),
        1_200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_key_is_left_only_when_nothing_under_it_is_in_the_wal() {
    let (store, folder) = empty_store().await;
    put_many(&store, (0..300).map(|n| subscription(n, NOW))).await;
    let path = folder.path().join("subscriptions.db");
    let mut reader = look(folder.path()).await;
    // Whoever reads the WAL, or copies it, is in the way of its end.
    sqlx::query("BEGIN").execute(&mut reader).await.unwrap();
    let sealed: Vec<(Vec<u8>,)> = sqlx::query_as("SELECT row FROM subscription")
        .fetch_all(&mut reader)
        .await
        .unwrap();
    let (both, store) = (ring(&[2, 1]), Arc::new(store));
    let new = both.ids()[0];
    let moving = {
        let (store, both) = (Arc::clone(&store), ring(&[2, 1]));
        tokio::spawn(async move { store.use_keys(&both).await })
    };
    while keys(&store).await != [(new, 300)] {
        tokio::task::yield_now().await;
    }
    let too_early = tokio::time::sleep(std::time::Duration::from_millis(200));
    tokio::pin!(moving, too_early);
    tokio::select! {
        left = &mut moving => panic!("{left:?} while the WAL is read"),
        () = &mut too_early => {}
    }
    assert_eq!(keys::entered_in(&path).await.unwrap().len(), 2, "the old key is needed");
    sqlx::query("COMMIT").execute(&mut reader).await.unwrap();
    assert_eq!(moving.await.unwrap(), Ok(300));
    assert_eq!(keys::entered_in(&path).await.unwrap(), [new]);
    let wal = std::fs::read(folder.path().join("subscriptions.db-wal")).unwrap();
    let pieces: HashSet<&[u8]> = sealed.iter().flat_map(|(row,)| row.chunks_exact(64)).collect();
    let left = wal.windows(64).filter(|window| pieces.contains(window)).count();
    assert_eq!(left, 0, "pieces of rows under the old key");
}

#[tokio::test]
async fn what_an_earlier_version_left_in_plain_is_sealed_and_gone() {
    let (folder, _) = plain_file(2_500).await;
    let store = open(folder.path(), KEY, &ring(&[1])).await.unwrap();
    assert_eq!(all(&store).await.len(), 2_500);
    let found = store.load(vec![device(17)]).await.unwrap();
    assert_eq!(rows(&found), rows(&[subscription(17, NOW)]));
    // The mark of a signer came along.
    assert_eq!(
        store.put(&subscription(3, NOW + 1), NOW).await,
        Ok(Put::BindingRequired)
    );
    assert_eq!(keys(&store).await, [(ring(&[1]).ids()[0], 2_501)]);
    assert_eq!(leaks(folder.path(), 17), Vec::<String>::new());
    let mut file = look(folder.path()).await;
    let (free,): (i64,) = sqlx::query_as("PRAGMA freelist_count")
        .fetch_one(&mut file)
        .await
        .unwrap();
    assert!(free < 10, "the file was written anew: {free} pages are free");
}

#[tokio::test]
async fn sealing_what_was_plain_goes_on_after_a_kill_at_any_step() {
    let (folder, lookups) = plain_file(2_500).await;
    let settings = settings(folder.path());
    let (file, mut writer) = super::claim(&settings).await.unwrap();
    let sealer = ring(&[1]).sealer(PURPOSE);
    crate::sqlite::keys::claim(&mut writer, &sealer).await.unwrap();
    // As a kill after the first batch leaves it: some rows have arrived, all plain ones are there.
    let mut first: Vec<_> = lookups.clone();
    first.sort_unstable();
    for name in &first[..1_024] {
        let (day, content): (i64, Vec<u8>) =
            sqlx::query_as("SELECT expires_day, row FROM plain_subscription WHERE lookup = ?")
                .bind(name.as_slice())
                .fetch_one(&mut writer.connection)
                .await
                .unwrap();
        let row = sealed::seal(&sealer, name, day, &content).unwrap();
        sqlx::query("INSERT INTO subscription VALUES (?, ?, ?, ?)")
            .bind(lookup(name))
            .bind(day)
            .bind(sealer.newest().column())
            .bind(row)
            .execute(&mut writer.connection)
            .await
            .unwrap();
    }
    let half_way = copy_of(folder.path());
    // And as one leaves it between the last row and the end.
    plain::seal_plain_rows(&mut writer, &sealer).await.unwrap();
    writer
        .run("CREATE TABLE plain_subscription (lookup BLOB PRIMARY KEY, expires_day, key_id, row)")
        .await
        .unwrap();
    let nearly_done = copy_of(folder.path());
    drop((file, writer));
    for folder in [half_way, nearly_done] {
        let store = open(folder.path(), KEY, &ring(&[1])).await.unwrap();
        assert_eq!(all(&store).await.len(), 2_500);
        assert_eq!(leaks(folder.path(), 17), Vec::<String>::new());
        assert_eq!(keys(&store).await, [(ring(&[1]).ids()[0], 2_501)]);
    }
}

#[tokio::test]
async fn nothing_in_the_files_names_anybody() {
    let (store, folder) = empty_store().await;
    put_many(&store, (0..200).map(|n| subscription(n, NOW))).await;
    assert_eq!(leaks(folder.path(), 17), Vec::<String>::new());
    // The search does find what is there.
    let plain = TempDir::new().unwrap();
    std::fs::write(plain.path().join("a-wal"), subscription(17, NOW).encode_row()).unwrap();
    std::fs::write(plain.path().join("b"), hex::encode(subscription(17, NOW).encode_row())).unwrap();
    assert_eq!(leaks(plain.path(), 17).len(), 6);
}

#[tokio::test]
async fn what_is_removed_is_gone_from_file_wal_and_free_pages_when_its_time_is_over() {
    let folder = TempDir::new().unwrap();
    let settings = StoreSettings {
        erase_after: std::time::Duration::from_millis(50),
        ..settings(folder.path())
    };
    let key = LookupKey::new(Secret::new(KEY));
    let store = SqliteStore::open(&settings, key, &ring(&[1])).await.unwrap();
    put_many(&store, (0..400).map(|n| subscription(n, NOW))).await;
    let mut file = look(folder.path()).await;
    let sealed: Vec<(Vec<u8>,)> = sqlx::query_as("SELECT row FROM subscription")
        .fetch_all(&mut file)
        .await
        .unwrap();
    file.close().await.unwrap();
    // Unsubscribed, dead, renewed and expired, so that all of the rows of before are deleted.
    for n in 0..100 {
        assert_eq!(store.remove(&device(n)).await, Ok(true));
        assert_eq!(store.remove_if_older(&device(100 + n), i64::MAX).await, Ok(true));
        assert_eq!(
            store.put(&subscription(200 + n, NOW + 86_400), NOW).await,
            Ok(Put::Renewed)
        );
    }
    let last_day = subscription(0, NOW).expires_at() / 86_400;
    assert_eq!(store.remove_expired((last_day + 1) * 86_400).await, Ok(100));
    // The writing task empties the WAL by itself.
    let wal = folder.path().join("subscriptions.db-wal");
    while std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        tokio::task::yield_now().await;
    }
    let files = ["subscriptions.db", "subscriptions.db-wal", "subscriptions.db-shm"];
    let bytes: Vec<u8> = files
        .iter()
        .flat_map(|name| std::fs::read(folder.path().join(name)).unwrap_or_default())
        .collect();
    let pieces: HashSet<&[u8]> = sealed.iter().flat_map(|(row,)| row.chunks_exact(64)).collect();
    let left = bytes.windows(64).filter(|window| pieces.contains(window)).count();
    assert_eq!(left, 0, "pieces of deleted rows");
    assert_eq!(all(&store).await.len(), 100);
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_store_recovers_when_there_is_space() {
    let (file, mut writer, _folder) = claimed().await;
    sqlx::query("PRAGMA max_page_count = 20")
        .execute(&mut writer.connection)
        .await
        .unwrap();
    let store = started(file, writer, &_folder).await;
    let mut stored = 0;
    let error = loop {
        match store.put(&subscription(stored, NOW), NOW).await {
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
    assert_eq!(store.put(&subscription(stored, NOW), NOW).await, Ok(Put::New));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("subscriptions.db"), [b'x'; 5_000]).unwrap();
    assert_eq!(
        open(folder.path(), KEY, &ring(&[1])).await.err(),
        Some(StoreError::Damaged)
    );
}

const KEY: [u8; 32] = [7; 32];

fn key() -> LookupKey {
    LookupKey::new(Secret::new(KEY))
}

fn ring(keys: &[u8]) -> Keyring {
    Keyring::new(keys.iter().map(|key| Secret::new([*key; 32])).collect()).unwrap()
}

fn settings(folder: &Path) -> StoreSettings {
    StoreSettings::in_file(folder.join("subscriptions.db"))
}

async fn open(folder: &Path, key: [u8; 32], keys: &Keyring) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(&settings(folder), LookupKey::new(Secret::new(key)), keys).await
}

async fn empty_store() -> (SqliteStore, TempDir) {
    let folder = TempDir::new().unwrap();
    (open(folder.path(), KEY, &ring(&[1])).await.unwrap(), folder)
}

async fn claimed() -> (SqliteFile, Writer, TempDir) {
    let folder = TempDir::new().unwrap();
    let (file, writer) = super::claim(&settings(folder.path())).await.unwrap();
    (file, writer, folder)
}

async fn started(file: SqliteFile, writer: Writer, folder: &TempDir) -> SqliteStore {
    let path = folder.path().join("subscriptions.db");
    SqliteStore::start(file, writer, key(), &ring(&[1]), path)
        .await
        .unwrap()
}

/// A file of the first version with so many rows and a mark, written as that version wrote it, and the names of its rows.
async fn plain_file(count: u32) -> (TempDir, Vec<Name>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("subscriptions.db");
    let file = SqliteFile::claim(&path, WAL_PAGES, ERASE_AFTER).unwrap();
    let first = sqlx::migrate::Migrator::with_migrations(vec![MIGRATIONS.iter().next().unwrap().clone()]);
    let mut writer = file.writer(&first).await.unwrap();
    writer.run("BEGIN").await.unwrap();
    let mut names = Vec::new();
    let rows = (0..count).map(|n| (key().name(&device(n)), subscription(n, NOW).encode_row()));
    for (name, row) in rows.chain([(key().binding_mark(&subscription(3, NOW)), BINDING_MARK.to_vec())]) {
        sqlx::query("INSERT INTO subscription (lookup, expires_day, key_id, row) VALUES (?, ?, 0, ?)")
            .bind(name.as_slice())
            .bind(expires_day(&subscription(0, NOW)))
            .bind(row)
            .execute(&mut writer.connection)
            .await
            .unwrap();
        names.push(name);
    }
    writer.run("COMMIT").await.unwrap();
    // A renewal leaves pages behind in the WAL, and a removal free ones in the file.
    writer.truncate().await;
    writer
        .run("UPDATE subscription SET expires_day = expires_day + 1")
        .await
        .unwrap();
    writer
        .run("UPDATE subscription SET expires_day = expires_day - 1")
        .await
        .unwrap();
    assert!(!leaks(folder.path(), 17).is_empty(), "the file is in plain");
    // Closed without emptying the WAL, as by a kill.
    let crashed = copy_of(folder.path());
    (crashed, names)
}

/// What a crash leaves: the files as they are.
fn copy_of(folder: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in ["subscriptions.db", "subscriptions.db-wal"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    copy
}

async fn look(folder: &Path) -> sqlx::SqliteConnection {
    let path = folder.join("subscriptions.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    sqlx::ConnectOptions::connect(&options).await.unwrap()
}

async fn change(folder: &Path, sql: &'static str) {
    let mut file = look(folder).await;
    assert_eq!(
        sqlx::query(sql).execute(&mut file).await.unwrap().rows_affected(),
        2,
        "{sql}"
    );
    file.close().await.unwrap();
}

async fn keys(store: &SqliteStore) -> Vec<(crate::keyring::KeyId, u64)> {
    let uses = store.keys().await.unwrap();
    uses.into_iter().map(|known| (known.key.unwrap(), known.rows)).collect()
}

/// Account, token and wakeup key of a subscription, in every spelling, found anywhere in the files of a folder.
fn leaks(folder: &Path, n: u32) -> Vec<String> {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let subscription = subscription(n, NOW);
    let mut found = Vec::new();
    let secrets: [(&str, &[u8]); 3] = [
        ("account", subscription.device.account.expose()),
        ("token", subscription.device.token.expose()),
        ("wakeup key", subscription.enc_key.expose()),
    ];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let lower = bytes.to_ascii_lowercase();
        for (what, secret) in secrets {
            let reversed: Vec<u8> = secret.iter().rev().copied().collect();
            let wide: Vec<u8> = secret.iter().flat_map(|byte| [*byte, 0]).collect();
            let mut spellings = vec![secret.to_vec(), reversed, wide, hex::encode(secret).into_bytes()];
            // Base64 of the middle, whatever stands before it.
            for skipped in 0..3 {
                for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                    let whole = secret[skipped..].len() / 3 * 3;
                    spellings.push(engine.encode(&secret[skipped..skipped + whole]).into_bytes());
                }
            }
            let is_there = |spelling: &Vec<u8>| {
                let text = spelling.as_slice();
                let within = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text);
                within(&bytes) || within(&lower)
            };
            if spellings.iter().any(is_there) {
                found.push(format!("{what} in {}", path.file_name().unwrap().to_string_lossy()));
            }
        }
    }
    found
}

async fn put_many(store: &SqliteStore, subscriptions: impl Iterator<Item = Subscription>) {
    let puts = futures_util::stream::iter(subscriptions.map(|subscription| store.put(&subscription, NOW)));
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

fn gone(n: u32, sig_ts: i64) -> Unsubscription {
    Unsubscription {
        device: device(n),
        sig_ts,
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
        // Unlike anything that a page of a database holds.
        enc_key: Secret::new(std::array::from_fn(|place| (place as u8).wrapping_mul(37) ^ 0xA5)),
        is_bound: false,
    }
}
