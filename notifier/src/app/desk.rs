//! Subscriptions on their way from a request to the store, the index and the watch, and out again.
//!
//! In: verified wishes, dead tokens, expired accounts. Out: answers for http, records for renewals. Never: parses or signs anything.
//!
//! The store comes first: what is answered is durable. One account's changes happen one after the other, so that index and watch end
//! with what the store ends with; they run to their end even if the client has gone.

use super::relay::{Command, Told};
use super::settled::SettledClock;
use super::trial::Trials;
use super::unix_ms;
use crate::http::{Stored, Subscriptions, Tested, Unavailable};
use crate::store::{Put, SubscriptionStore, Unsubscribed, day_of};
use crate::watcher::{self, RecordSource, RecordsUnavailable};
use bytes::Bytes;
use notifier_core::account::{AccountId, Service};
use notifier_core::endpoint::PushEndpoint;
use notifier_core::fanout::{Removed, Upserted};
use notifier_core::subscription::{DeviceId, Subscription, TestWish, Unsubscription, minimal_cover};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

/// Accounts whose changes may happen at the same time. Two that share a place wait for each other, which harms nobody.
const PLACES: usize = 1_024;

pub struct Desk {
    store: Arc<dyn SubscriptionStore>,
    relay: mpsc::Sender<Command>,
    watcher: mpsc::Sender<watcher::Command>,
    order: Vec<Mutex<()>>,
    hasher: RandomState,
    /// Changes under way. A further one waits within its request's time, so that a slow disk cannot pile them up.
    room: Arc<Semaphore>,
    /// Devices in the index, kept by the relay.
    devices: Arc<AtomicUsize>,
    max_devices: usize,
    trials: Trials,
}

/// Changes under way at once.
const UNDER_WAY: usize = 8_192;

/// Endpoints of one account at one push server. Somebody with many devices has ten; each message goes to all of them.
const ENDPOINTS_AT_ONE_SERVER: usize = 16;

impl Desk {
    pub fn new(
        store: Arc<dyn SubscriptionStore>,
        relay: mpsc::Sender<Command>,
        watcher: mpsc::Sender<watcher::Command>,
        devices: Arc<AtomicUsize>,
        max_devices: usize,
        trials: Trials,
    ) -> Self {
        let order = (0..PLACES).map(|_| Mutex::new(())).collect();
        Self {
            store,
            relay,
            watcher,
            order,
            hasher: RandomState::new(),
            room: Arc::new(Semaphore::new(UNDER_WAY)),
            devices,
            max_devices,
            trials,
        }
    }

    /// By account and not by device: whether an account is watched hangs on all its devices.
    async fn turn(&self, account: &AccountId) -> tokio::sync::MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(account) as usize % PLACES;
        self.order.get(place).expect("within its length").lock().await
    }

    /// Whether the index has room for the device, or has it.
    async fn has_room(&self, device: &DeviceId) -> bool {
        if self.devices.load(Ordering::Relaxed) < self.max_devices {
            return true;
        }
        let known = self.devices_of(device.account).await;
        known.is_some_and(|known| known.contains(device))
    }

    /// Whether the account has as many endpoints at this push server as it may have: its messages may not become a flood there.
    async fn has_too_many_there(&self, device: &DeviceId) -> bool {
        let endpoint_of = |device: &DeviceId| match device.service {
            Service::Webpush => PushEndpoint::of_token(&device.token),
            _ => None,
        };
        let Some(endpoint) = endpoint_of(device) else {
            return false;
        };
        let identity = device.token.identity(Service::Webpush);
        let known = self.devices_of(device.account).await.unwrap_or_default();
        let others = known.iter().filter_map(|known| Some((known, endpoint_of(known)?)));
        let there = others.filter(|(_, other)| other.origin() == endpoint.origin());
        let (mut count, mut is_known) = (0, false);
        for (known, _) in there {
            count += 1;
            is_known |= known.token.identity(Service::Webpush) == identity;
        }
        !is_known && count >= ENDPOINTS_AT_ONE_SERVER
    }

    async fn devices_of(&self, account: AccountId) -> Option<Vec<DeviceId>> {
        let (done, devices) = oneshot::channel();
        let ask = Command::Devices {
            accounts: vec![account],
            done,
        };
        self.relay.send(ask).await.ok()?;
        devices.await.ok()
    }

    async fn put(&self, subscription: Subscription) -> Result<Stored, Unavailable> {
        let device = subscription.device.clone();
        let _turn = self.turn(&device.account).await;
        if !self.has_room(&device).await {
            metrics::counter!("fanout_no_room_total").increment(1);
            return Err(Unavailable);
        }
        if self.has_too_many_there(&device).await {
            metrics::counter!("fanout_full_accounts_total").increment(1);
            return Ok(Stored::Full);
        }
        let mut record = Vec::with_capacity(320);
        subscription.monitor_record(&mut record);
        let put = self.store.put(&subscription, unix_ms() / 1000).await.map_err(|fault| {
            metrics::counter!("store_failed_total", "reason" => fault.label()).increment(1);
            Unavailable
        })?;
        metrics::counter!("store_put_total", "outcome" => put_label(put)).increment(1);
        match put {
            Put::KeptNewer => return Ok(Stored::Updated),
            Put::BindingRequired => return Ok(Stored::BindingRequired),
            Put::New | Put::Renewed | Put::Unchanged => {}
        }
        let (done, upserted) = oneshot::channel();
        self.relay
            .send(Command::Put {
                subscription: Box::new(subscription),
                done,
            })
            .await
            .map_err(|_| Unavailable)?;
        let watch_now = match upserted.await.map_err(|_| Unavailable)? {
            Upserted::Added => true,
            Upserted::Changed { watch_changed } => watch_changed,
            Upserted::Renewed | Upserted::Kept => false,
            Upserted::Full => {
                metrics::counter!("fanout_full_accounts_total").increment(1);
                let _ = self.store.remove(&device).await;
                return Ok(Stored::Full);
            }
        };
        if watch_now {
            let change = watcher::Command::AccountChanged {
                account: Box::new(device.account),
                record: Some(Bytes::from(record)),
            };
            self.watcher.send(change).await.map_err(|_| Unavailable)?;
        }
        Ok(if put == Put::New {
            self.trials.check(&device);
            Stored::Added
        } else {
            Stored::Updated
        })
    }

    /// Whether it was there and is not any more.
    async fn remove(&self, wish: &Unsubscription) -> Result<bool, Unavailable> {
        let _turn = self.turn(&wish.device.account).await;
        let outcome = self.store.unsubscribe(wish, unix_ms() / 1000).await.map_err(|fault| {
            metrics::counter!("store_failed_total", "reason" => fault.label()).increment(1);
            Unavailable
        })?;
        metrics::counter!("store_unsubscribe_total", "outcome" => unsubscribed_label(outcome)).increment(1);
        match outcome {
            Unsubscribed::KeptNewer => return Ok(false),
            Unsubscribed::Removed | Unsubscribed::NotThere => {}
        }
        self.forget(&wish.device).await;
        Ok(outcome == Unsubscribed::Removed)
    }

    pub async fn remove_dead(&self, device: &DeviceId, provider_time_ms: Option<i64>) {
        let _turn = self.turn(&device.account).await;
        let removed = match provider_time_ms {
            Some(since) => self.store.remove_if_older(device, since).await,
            None => self.store.remove(device).await,
        };
        match removed {
            Ok(true) => {
                metrics::counter!("store_dead_devices_total").increment(1);
                self.forget(device).await;
            }
            // Registered again since, or gone already.
            Ok(false) => {}
            Err(fault) => metrics::counter!("store_failed_total", "reason" => fault.label()).increment(1),
        }
    }

    async fn test(&self, device: DeviceId) -> Result<Tested, Unavailable> {
        let mut found = self.store.load(vec![device]).await.map_err(|fault| {
            metrics::counter!("store_failed_total", "reason" => fault.label()).increment(1);
            Unavailable
        })?;
        let now = unix_ms() / 1000;
        match found.pop().filter(|subscription| subscription.expires_at() > now) {
            Some(subscription) => Ok(self.trials.run(&subscription).await),
            None => Ok(Tested::NotSubscribed),
        }
    }

    /// Takes a device that is stored no more out of the index, and its account out of the watch if it was the last.
    async fn forget(&self, device: &DeviceId) {
        let (done, removed) = oneshot::channel();
        if self
            .relay
            .send(Command::Remove {
                device: Box::new(device.clone()),
                done,
            })
            .await
            .is_err()
        {
            return;
        }
        if removed.await == Ok(Removed::LastDevice) {
            let gone = watcher::Command::AccountRemoved {
                account: Box::new(device.account),
            };
            // The watcher is gone only when everything ends.
            let _ = self.watcher.send(gone).await;
        }
    }

    /// An account whose last device expired, unless it has subscribed again since.
    async fn account_gone(&self, account: AccountId) {
        let _turn = self.turn(&account).await;
        if self.devices_of(account).await.is_some_and(|devices| devices.is_empty()) {
            // The watcher is gone only when everything ends.
            let account = Box::new(account);
            let _ = self.watcher.send(watcher::Command::AccountRemoved { account }).await;
        }
    }

    /// Whether it was done.
    async fn remove_expired(&self, now: i64) -> bool {
        match self.store.remove_expired(now).await {
            Ok(count) => {
                if count > 0 {
                    metrics::counter!("store_expired_total").increment(count);
                    tracing::info!(count, "expired subscriptions removed");
                }
                true
            }
            Err(fault) => {
                metrics::counter!("store_failed_total", "reason" => fault.label()).increment(1);
                false
            }
        }
    }

    /// What the relay tells, and expired rows: they go when their day is over.
    pub async fn keep_house(self: Arc<Self>, mut told: mpsc::Receiver<Told>, first_after: Duration) {
        // Not at once: a clock that is wrong at the start is often mended soon after.
        let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + first_after, LOOK_AT_DAY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut clock = SettledClock::new(Instant::now(), unix_ms() / 1000);
        let mut cleared_day = None;
        loop {
            tokio::select! {
                told = told.recv() => match told {
                    Some(Told::AccountGone(account)) => self.account_gone(*account).await,
                    Some(Told::Dead { device, provider_time_ms }) => self.remove_dead(&device, provider_time_ms).await,
                    None => return,
                },
                _ = rounds.tick() => {
                    let now = clock.now_s(Instant::now(), unix_ms() / 1000);
                    let today = Some(day_of(now));
                    // All rows are looked at, so only when a further day has ended.
                    if cleared_day != today && self.remove_expired(now).await {
                        cleared_day = today;
                    }
                }
            }
        }
    }
}

/// How soon after the end of a day its rows go.
const LOOK_AT_DAY: Duration = Duration::from_secs(30);

impl Subscriptions for Arc<Desk> {
    fn subscribe(&self, subscription: Subscription) -> impl Future<Output = Result<Stored, Unavailable>> + Send {
        let desk = Arc::clone(self);
        async move {
            let room = Arc::clone(&desk.room).acquire_owned().await.map_err(|_| Unavailable)?;
            let work = async move {
                let _room = room;
                desk.put(subscription).await
            };
            tokio::spawn(work).await.unwrap_or(Err(Unavailable))
        }
    }

    fn unsubscribe(&self, wish: Unsubscription) -> impl Future<Output = Result<bool, Unavailable>> + Send {
        let desk = Arc::clone(self);
        async move {
            let room = Arc::clone(&desk.room).acquire_owned().await.map_err(|_| Unavailable)?;
            let work = async move {
                let _room = room;
                desk.remove(&wish).await
            };
            tokio::spawn(work).await.unwrap_or(Err(Unavailable))
        }
    }

    /// Given up with its request: a test changes nothing.
    fn test(&self, wish: TestWish) -> impl Future<Output = Result<Tested, Unavailable>> + Send {
        let desk = Arc::clone(self);
        async move { Desk::test(&desk, wish.device).await }
    }
}

/// Records for renewals: which devices from the index, their signatures from the store.
pub struct Records {
    pub store: Arc<dyn SubscriptionStore>,
    pub relay: mpsc::Sender<Command>,
}

impl RecordSource for Records {
    async fn records(&self, accounts: Vec<AccountId>) -> Result<Vec<(AccountId, Vec<Bytes>)>, RecordsUnavailable> {
        let (done, devices) = oneshot::channel();
        self.relay
            .send(Command::Devices { accounts, done })
            .await
            .map_err(|_| RecordsUnavailable)?;
        let devices = devices.await.map_err(|_| RecordsUnavailable)?;
        let subscriptions = self.store.load(devices).await.map_err(|_| RecordsUnavailable)?;
        let mut by_account: HashMap<AccountId, Vec<Subscription>> = HashMap::new();
        for subscription in subscriptions {
            by_account
                .entry(subscription.device.account)
                .or_default()
                .push(subscription);
        }
        let now = unix_ms() / 1000;
        Ok(by_account
            .into_iter()
            .map(|(account, all)| (account, records_of(all, now)))
            .collect())
    }
}

/// The fewest records that ask for all of these, of one account.
///
/// Signatures that ran out at `now` (Unix seconds) are among them: the clock may be wrong for a moment, the index lets go of them in time,
/// and a node refuses them one by one. But they stand in for no other, of which a node that refuses them would report nothing.
fn records_of(all: Vec<Subscription>, now: i64) -> Vec<Bytes> {
    let (good, ran_out): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|subscription| subscription.expires_at() > now);
    let cover = minimal_cover(&good);
    let is_covered = |old: &Subscription| cover.iter().any(|kept| kept.covers(old));
    let rest = minimal_cover(&ran_out).into_iter().filter(|old| !is_covered(old));
    let record = |subscription: &Subscription| {
        let mut record = Vec::with_capacity(320);
        subscription.monitor_record(&mut record);
        Bytes::from(record)
    };
    cover.iter().copied().chain(rest).map(record).collect()
}

fn put_label(put: Put) -> &'static str {
    match put {
        Put::New => "new",
        Put::Renewed => "renewed",
        Put::Unchanged => "unchanged",
        Put::KeptNewer => "kept_newer",
        Put::BindingRequired => "binding_required",
    }
}

fn unsubscribed_label(outcome: Unsubscribed) -> &'static str {
    match outcome {
        Unsubscribed::Removed => "removed",
        Unsubscribed::NotThere => "not_there",
        Unsubscribed::KeptNewer => "kept_newer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Keyring;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{LookupKey, StoreSettings};
    use notifier_core::account::{DeviceToken, Namespace, NamespaceSet};
    use notifier_core::seal::Padding;
    use notifier_core::subscription::SIGNATURE_LIFETIME_SECONDS;
    use quietline_shared::redact::Secret;

    const ACCOUNT: AccountId = AccountId::new([5; 33]);

    fn subscription(token: &[u8]) -> Subscription {
        Subscription {
            device: DeviceId {
                account: ACCOUNT,
                service: Service::Firebase,
                token: DeviceToken::new(token),
            },
            session_ed25519: Some([1; 32]),
            subaccount: None,
            namespaces: NamespaceSet::new(vec![Namespace(0)]).unwrap(),
            want_data: true,
            sig_ts: unix_ms() / 1000,
            signature: [2; 64],
            enc_key: Secret::new([3; 32]),
            is_bound: false,
        }
    }

    /// Signed in the same second.
    fn gone(subscription: &Subscription) -> Unsubscription {
        Unsubscription {
            device: subscription.device.clone(),
            sig_ts: subscription.sig_ts,
        }
    }

    fn record(subscription: &Subscription) -> Bytes {
        let mut record = Vec::new();
        subscription.monitor_record(&mut record);
        record.into()
    }

    /// Answers as the relay does, from an index of its own.
    async fn relay(mut commands: mpsc::Receiver<Command>) {
        let mut index = notifier_core::fanout::Index::new(notifier_core::seeded::Seed::new([1; 16]));
        while let Some(command) = commands.recv().await {
            match command {
                Command::Put { subscription, done } => drop(done.send(index.upsert(&subscription)).is_ok()),
                Command::Remove { device, done } => drop(done.send(index.remove(&device)).is_ok()),
                Command::Devices { accounts, done } => {
                    let devices = accounts.iter().flat_map(|account| index.devices(account)).collect();
                    drop(done.send(devices));
                }
                Command::Load { .. } | Command::LoadEnded => {}
            }
        }
    }

    async fn desk() -> (tempfile::TempDir, Arc<Desk>, mpsc::Receiver<watcher::Command>) {
        let folder = tempfile::tempdir().unwrap();
        let settings = StoreSettings::in_file(folder.path().join("store.db"));
        let rows = Keyring::new(vec![Secret::new([2; 32])]).unwrap();
        let key = LookupKey::new(Secret::new([1; 32]));
        let store: Arc<dyn SubscriptionStore> = Arc::new(SqliteStore::open(&settings, key, &rows).await.unwrap());
        let (commands, inbox) = mpsc::channel(64);
        tokio::spawn(relay(inbox));
        let (watcher, told) = mpsc::channel(4_096);
        let trials = Trials::new(Padding::TwoClasses, Duration::ZERO);
        let desk = Desk::new(store, commands, watcher, Arc::default(), 100, trials);
        (folder, Arc::new(desk), told)
    }

    #[tokio::test]
    async fn rows_whose_day_is_over_go_and_others_stay() {
        let (_folder, desk, _told) = desk().await;
        let mut old = subscription(b"old");
        old.sig_ts -= SIGNATURE_LIFETIME_SECONDS + 86_400;
        for stored in [&old, &subscription(b"new")] {
            assert_eq!(desk.store.put(stored, stored.sig_ts).await, Ok(Put::New));
        }
        let (_teller, told) = mpsc::channel(1);
        let housekeeping = tokio::spawn(Arc::clone(&desk).keep_house(told, Duration::from_millis(1)));
        while desk.store.count().await != Ok(1) {
            tokio::task::yield_now().await;
        }
        let left = desk
            .store
            .load(vec![subscription(b"new").device, old.device])
            .await
            .unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].device.token, subscription(b"new").device.token);
        housekeeping.abort();
    }

    #[tokio::test]
    async fn an_unsubscription_that_comes_late_leaves_a_newer_subscription_in_store_index_and_watch() {
        let (_folder, desk, mut told) = desk().await;
        let new = subscription(b"token");
        let (mut late, in_time) = (gone(&new), gone(&new));
        desk.subscribe(new).await.unwrap();
        late.sig_ts -= 1;
        assert_eq!(desk.unsubscribe(late).await, Ok(false));
        assert_eq!(desk.store.count().await, Ok(1));
        assert_eq!(desk.devices_of(ACCOUNT).await.map(|devices| devices.len()), Some(1));
        assert!(matches!(told.try_recv(), Ok(watcher::Command::AccountChanged { .. })));
        assert!(told.try_recv().is_err(), "it is watched still");
        assert_eq!(desk.unsubscribe(in_time).await, Ok(true));
        assert_eq!(desk.devices_of(ACCOUNT).await.map(|devices| devices.len()), Some(0));
        assert!(matches!(told.try_recv(), Ok(watcher::Command::AccountRemoved { .. })));
    }

    #[tokio::test]
    async fn a_phone_whose_clock_was_fast_can_still_be_logged_out() {
        let (_folder, desk, _told) = desk().await;
        let mut fast = subscription(b"token");
        fast.sig_ts += 3 * 3_600;
        let right = gone(&subscription(b"token"));
        desk.subscribe(fast).await.unwrap();
        assert_eq!(desk.unsubscribe(right).await, Ok(true));
        assert_eq!(desk.devices_of(ACCOUNT).await.map(|devices| devices.len()), Some(0));
    }

    #[tokio::test]
    async fn a_device_of_the_index_is_asked_for_though_the_wall_clock_says_that_its_signature_ran_out() {
        let (_folder, desk, _told) = desk().await;
        let mut old = subscription(b"token");
        old.sig_ts -= SIGNATURE_LIFETIME_SECONDS + 60;
        let record = record(&old);
        desk.subscribe(old).await.unwrap();
        let records = Records {
            store: Arc::clone(&desk.store),
            relay: desk.relay.clone(),
        };
        assert_eq!(records.records(vec![ACCOUNT]).await, Ok(vec![(ACCOUNT, vec![record])]));
    }

    #[test]
    fn a_signature_that_ran_out_stands_in_for_no_other_and_is_left_out_where_another_asks_for_the_same() {
        let now = 2 * SIGNATURE_LIFETIME_SECONDS;
        let one = |namespaces: &[i16], sig_ts| Subscription {
            namespaces: NamespaceSet::new(namespaces.iter().copied().map(Namespace).collect::<Vec<_>>()).unwrap(),
            sig_ts,
            ..subscription(b"token")
        };
        let ran_out = |namespaces| one(namespaces, now - SIGNATURE_LIFETIME_SECONDS);
        let (fresh, wide) = (one(&[0], now), ran_out(&[0, 1]));
        let both = vec![record(&fresh), record(&wide)];
        assert_eq!(records_of(vec![wide, one(&[0], now)], now), both);
        assert_eq!(records_of(vec![ran_out(&[0]), fresh], now), both[..1]);
        assert_eq!(records_of(vec![ran_out(&[0]), ran_out(&[0, 1])], now), both[1..]);
    }

    #[tokio::test]
    async fn an_account_has_sixteen_endpoints_at_one_push_server_at_most() {
        let (_folder, desk, _told) = desk().await;
        let public = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
        let put = async |url: &str, auth: &str| {
            let endpoint = PushEndpoint::parse(url, public, auth).unwrap();
            let mut one = subscription(endpoint.token().expose());
            one.device.service = Service::Webpush;
            desk.subscribe(one).await.unwrap()
        };
        let (auth, other_auth) = ("BTBZMqHH6r4Tts7J_aSIgg", "AAAAAAAAAAAAAAAAAAAAAA");
        for number in 0..16 {
            let url = format!("https://push.example.org/{number}");
            assert_eq!(put(&url, auth).await, Stored::Added);
        }
        assert_eq!(put("https://push.example.org/16", auth).await, Stored::Full);
        assert_eq!(put("https://push.example.org/7", other_auth).await, Stored::Updated);
        assert_eq!(put("https://elsewhere.example.org/16", auth).await, Stored::Added);
        assert_eq!(desk.subscribe(subscription(b"token")).await, Ok(Stored::Added));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_account_whose_token_changes_is_never_left_unwatched() {
        let (_folder, desk, mut told) = desk().await;
        desk.subscribe(subscription(b"0")).await.unwrap();
        for round in 0..200 {
            let (old, new) = (round.to_string(), (round + 1).to_string());
            let gone = gone(&subscription(old.as_bytes()));
            let (removed, put) = tokio::join!(desk.unsubscribe(gone), desk.subscribe(subscription(new.as_bytes())));
            assert_eq!((removed, put), (Ok(true), Ok(Stored::Added)));
            let mut watched = true;
            while let Ok(command) = told.try_recv() {
                watched = matches!(command, watcher::Command::AccountChanged { .. });
            }
            assert!(watched, "round {round}: the account has a device and nobody watches it");
        }
    }
}
