//! Pushes beside the outbox: a test that somebody asked for, and the question whether a fresh endpoint lives.
//!
//! In: a stored subscription, or an operator's token. Out: what its provider says. Never: retried, kept, or ahead of a wakeup's limits.

use super::desk::Desk;
use super::unix_ms;
use crate::dispatch::{Apns, Deliver, DispatchSettings, Fcm, Huawei, Push, SettingsFault, Webpush};
use crate::http::Tested;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use notifier_core::account::{AccountId, DeviceToken, Service};
use notifier_core::outbox::{Outcome, PushId};
use notifier_core::seal::{DeviceView, Padding, trial};
use notifier_core::subscription::{DeviceId, Subscription};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

/// Sends one push and says what became of it.
type Sender = Arc<dyn Fn(Push, Instant) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// The ways out that a test can take.
pub struct Trials {
    senders: HashMap<Service, Sender>,
    padding: Padding,
    timeout: Duration,
    checks: Option<mpsc::Sender<Box<DeviceId>>>,
}

impl Trials {
    pub fn new(padding: Padding, timeout: Duration) -> Self {
        Self {
            senders: HashMap::new(),
            padding,
            timeout,
            checks: None,
        }
    }

    /// A test goes the way that the lane's pushes go, with its credential and its limits.
    pub fn add<D: Deliver + 'static>(&mut self, way: &Arc<D>) {
        let way = Arc::clone(way);
        let service = way.service();
        let sender = move |push: Push, deadline| {
            let way = Arc::clone(&way);
            async move { way.push(&push, deadline).await }.boxed()
        };
        self.senders.insert(service, Arc::new(sender));
    }

    /// Endpoints to be asked about arrive at the other end.
    pub fn take_checks(&mut self) -> mpsc::Receiver<Box<DeviceId>> {
        let (checks, inbox) = mpsc::channel(CHECKS_WAITING);
        self.checks = Some(checks);
        inbox
    }

    /// A fresh endpoint. If too many come at once, its first wakeup finds out.
    pub fn check(&self, device: &DeviceId) {
        if let Some(checks) = self.checks.as_ref().filter(|_| device.service == Service::Webpush)
            && checks.try_send(Box::new(device.clone())).is_err()
        {
            metrics::counter!("dispatch_checks_skipped_total", "service" => "webpush").increment(1);
        }
    }

    pub async fn run(&self, subscription: &Subscription) -> Tested {
        let device = &subscription.device;
        let view = DeviceView {
            service: device.service,
            token: &device.token,
            enc_key: subscription.enc_key.expose(),
            want_data: subscription.want_data,
        };
        let (Some(sender), Some(push)) = (
            self.senders.get(&device.service),
            push(device.account, view, self.padding),
        ) else {
            return Tested::Unreachable;
        };
        match sender(push, Instant::now() + self.timeout).await {
            Outcome::Delivered => Tested::Accepted,
            Outcome::Gone { .. } => Tested::Dead,
            Outcome::Refused(_) | Outcome::TryFallback => Tested::Refused,
            Outcome::Retry { .. } | Outcome::Later { .. } | Outcome::Held { .. } | Outcome::Expired => {
                Tested::Unreachable
            }
        }
    }
}

/// `None` without randomness.
fn push(account: AccountId, device: DeviceView<'_>, padding: Padding) -> Option<Push> {
    let (mut random, mut id) = ([0; 80], [0; 16]);
    getrandom::fill(&mut random).ok()?;
    getrandom::fill(&mut id).ok()?;
    Some(Push::alone(
        trial(account, device, padding, unix_ms(), random),
        PushId(id),
    ))
}

/// Asks about each endpoint, some at once and so many a second, and forgets those that are dead.
pub async fn check_endpoints(
    way: Arc<Webpush>,
    mut inbox: mpsc::Receiver<Box<DeviceId>>,
    desk: Arc<Desk>,
    timeout: Duration,
) {
    let room = Arc::new(Semaphore::new(CHECKS_AT_ONCE));
    let mut pace = tokio::time::interval(CHECK_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while let Some(device) = inbox.recv().await {
        pace.tick().await;
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (way, desk) = (Arc::clone(&way), Arc::clone(&desk));
        tokio::spawn(async move {
            let _place = place;
            if let Outcome::Gone { provider_time_ms, .. } = way.check(&device.token, Instant::now() + timeout).await {
                desk.remove_dead(&device, provider_time_ms).await;
            }
        });
    }
}

/// One push for an operator: with a key that nobody has, so that a phone shows its constant text and nothing else.
pub async fn push_once(
    dispatch: &DispatchSettings,
    service: Service,
    token: &DeviceToken,
) -> Result<Outcome, SettingsFault> {
    async fn send(way: impl Deliver, push: Option<Push>, deadline: Instant) -> Outcome {
        match push {
            Some(push) => way.push(&push, deadline).await,
            None => Outcome::Held { pause: Duration::ZERO },
        }
    }
    let timeout = dispatch.timeout;
    let mut enc_key = [0; 32];
    // The system gives randomness, or `push` finds none either.
    let _ = getrandom::fill(&mut enc_key);
    let device = DeviceView {
        service,
        token,
        enc_key: &enc_key,
        want_data: true,
    };
    let push = push(AccountId::new([0; 33]), device, Padding::TwoClasses);
    let deadline = Instant::now() + timeout;
    let missing = SettingsFault {
        service,
        setting: "section",
        fault: crate::dispatch::Fault::Missing,
    };
    let (apns, sandbox) = (dispatch.apns.as_ref(), dispatch.apns_sandbox.as_ref());
    Ok(match service {
        Service::Apns => send(Apns::new(service, apns.ok_or(missing)?, timeout)?, push, deadline).await,
        Service::ApnsSandbox => send(Apns::new(service, sandbox.ok_or(missing)?, timeout)?, push, deadline).await,
        Service::Firebase => {
            let section = dispatch.firebase.as_ref().ok_or(missing)?;
            send(Fcm::new(section, timeout)?, push, deadline).await
        }
        Service::Huawei => {
            let section = dispatch.huawei.as_ref().ok_or(missing)?;
            send(Huawei::new(section, timeout)?, push, deadline).await
        }
        Service::Webpush => {
            let section = dispatch.webpush.as_ref().ok_or(missing)?;
            send(Webpush::new(section)?, push, deadline).await
        }
    })
}

const CHECKS_WAITING: usize = 1_024;
const CHECKS_AT_ONCE: usize = 16;
const CHECK_EVERY: Duration = Duration::from_millis(50);
