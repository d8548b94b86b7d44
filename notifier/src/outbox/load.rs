//! Reads the bodies of wakeups whose turn comes.
//!
//! In: the numbers of entries, and a way to read the file. Out: each body, or that there is none. Never: gives a body up because
//! the file could not be read just now.

use crate::sqlite::SqliteFault;
use notifier_core::outbox::EntryId;
use notifier_core::seal::Sealed;
use std::collections::HashMap;
use std::time::Duration;

/// `None` = the file was read, and has no such row or one that is not a wakeup.
pub type Loaded = Vec<(EntryId, Option<Sealed>)>;

/// The bodies of `ids`. A read that fails is tried again after `pause`, for as long as it takes.
pub async fn load<F>(ids: Vec<EntryId>, read: impl Fn(Vec<EntryId>) -> F, pause: Duration) -> Loaded
where
    F: Future<Output = Result<Loaded, SqliteFault>>,
{
    match read_patiently(&ids, &read, pause).await {
        Some(loaded) => loaded,
        None => {
            // One damaged page fails a whole read: only what fails alone is given up.
            let mut loaded = Vec::with_capacity(ids.len());
            for id in ids {
                let alone = read_patiently(&[id], &read, pause).await;
                loaded.extend(alone.unwrap_or_else(|| vec![(id, None)]));
            }
            loaded
        }
    }
}

/// `None` = the file is damaged where these are.
async fn read_patiently<F>(ids: &[EntryId], read: &impl Fn(Vec<EntryId>) -> F, pause: Duration) -> Option<Loaded>
where
    F: Future<Output = Result<Loaded, SqliteFault>>,
{
    loop {
        match read(ids.to_vec()).await {
            Ok(found) => {
                let mut found: HashMap<EntryId, Option<Sealed>> = found.into_iter().collect();
                return Some(ids.iter().map(|id| (*id, found.remove(id).flatten())).collect());
            }
            Err(fault) => {
                metrics::counter!("outbox_faults_total", "reason" => fault.label()).increment(1);
                if fault == SqliteFault::Damaged {
                    return None;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notifier_core::account::{DeviceToken, Service};
    use notifier_core::seal::{Class, Priority};
    use std::sync::Mutex;

    #[tokio::test]
    async fn a_read_that_fails_for_any_other_cause_is_tried_again_and_gives_nothing_up() {
        let faults = [
            SqliteFault::Internal { code: 7 },
            SqliteFault::Closed,
            SqliteFault::Io,
            SqliteFault::Busy,
            SqliteFault::DiskFull,
        ];
        let left = Mutex::new(faults.to_vec());
        let read = async |ids: Vec<EntryId>| match left.lock().unwrap().pop() {
            Some(fault) => Err(fault),
            None => Ok(healthy(ids)),
        };
        let loaded = load(vec![EntryId(1), EntryId(2)], read, Duration::ZERO);
        let expected = vec![(EntryId(1), Some(wakeup())), (EntryId(2), Some(wakeup()))];
        assert_eq!(loaded.await, expected);
        assert!(left.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn of_a_damaged_file_only_what_fails_alone_is_given_up() {
        let bad = EntryId(3);
        let ids: Vec<_> = (1..=5).map(EntryId).collect();
        let read = async |ids: Vec<EntryId>| match ids.contains(&bad) {
            true => Err(SqliteFault::Damaged),
            false => Ok(healthy(ids)),
        };
        let loaded = load(ids.clone(), read, Duration::ZERO);
        let expected: Vec<_> = ids.into_iter().map(|id| (id, (id != bad).then(wakeup))).collect();
        assert_eq!(loaded.await, expected);
    }

    #[tokio::test]
    async fn a_row_that_is_missing_or_no_wakeup_is_given_up() {
        let read = async |_| Ok(vec![(EntryId(2), None)]);
        let loaded = load(vec![EntryId(1), EntryId(2)], read, Duration::ZERO);
        assert_eq!(loaded.await, [(EntryId(1), None), (EntryId(2), None)]);
    }

    fn healthy(ids: Vec<EntryId>) -> Loaded {
        ids.into_iter().map(|id| (id, Some(wakeup()))).collect()
    }

    fn wakeup() -> Sealed {
        Sealed {
            service: Service::Firebase,
            token: DeviceToken::new(*b"token"),
            body: vec![1; 600].into(),
            fallback: None,
            class: Class::Visible,
            priority: Priority::High,
            expires_at_ms: i64::MAX,
        }
    }
}
