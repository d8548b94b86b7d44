//! One request of a client: text in, code and text out, the same for direct and onion requests.
//!
//! In: the text, the time, where subscriptions are kept. Out: an [`Answer`] of the form of the request: one object for one item
//! or for a fault of the whole, an array for an array, in its order. Never: knows how the request came, or asks a provider.

use super::limits::SourceLimit;
use super::turn::TurnDesk;
use super::{Clock, Stored, Subscriptions, Tested};
use axum::http::StatusCode;
use futures_util::future::join_all;
use notifier_core::account::Service;
use notifier_core::endpoint::{EndpointFault, PushEndpoint};
use notifier_core::subscription::{self, Body, ErrorKind, ItemError, Subscription, TestWish, Unsubscription};
use notifier_core::webpush::Guard;
use serde_json::{Value, json};
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Subscribe,
    Unsubscribe,
    /// "Is my fast mode working?"
    Test,
    /// Relays for a call.
    Credentials,
}

impl Operation {
    pub const ALL: [Self; 4] = [Self::Subscribe, Self::Unsubscribe, Self::Test, Self::Credentials];

    pub const fn path(self) -> &'static str {
        match self {
            Self::Subscribe => "/subscribe",
            Self::Unsubscribe => "/unsubscribe",
            Self::Test => "/test",
            Self::Credentials => "/turn/credentials",
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Test => "test",
            Self::Credentials => "turn_credentials",
        }
    }
}

/// What a client is told. Inside an onion reply `code` is the inner code, on a direct request the HTTP status.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: StatusCode,
    pub json: String,
}

/// Faults of a whole request, answered with one object even where an array was meant (push.md §3 Q14, Q20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WholeFault {
    TooLarge,
    NoBody,
}

impl WholeFault {
    const fn message(self) -> &'static str {
        match self {
            Self::TooLarge => "Invalid request: request too large",
            Self::NoBody => "Invalid request: request body missing",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NoBody => "no_body",
        }
    }
}

/// Where items go, and what they are judged by.
pub struct Desk<S> {
    pub subscriptions: S,
    pub services: Vec<Service>,
    pub clock: Clock,
    /// Which push servers may be contacted.
    pub guard: Option<Guard>,
    /// Tests of one account.
    pub tests: SourceLimit,
    pub turn: TurnDesk,
}

impl<S: Subscriptions> Desk<S> {
    /// Whether there is such an endpoint.
    pub fn offers(&self, operation: Operation) -> bool {
        operation != Operation::Credentials || self.turn.is_offered()
    }

    pub fn refuse(&self, operation: Operation, fault: WholeFault) -> Answer {
        match (operation, fault) {
            (Operation::Credentials, WholeFault::TooLarge) => return self.turn.refuse_too_large(),
            (Operation::Credentials, WholeFault::NoBody) => return self.credentials(&[]),
            _ => count(operation, fault.label()),
        }
        Answer {
            code: StatusCode::OK,
            json: json!({"error": BAD_INPUT, "message": fault.message()}).to_string(),
        }
    }

    fn credentials(&self, text: &[u8]) -> Answer {
        self.turn
            .answer(text, u64::try_from((self.clock)()).unwrap_or_default())
    }

    /// Answers by `deadline`. What was on its way to the store by then may or may not be stored: a repetition mends it.
    pub async fn answer(&self, operation: Operation, text: &[u8], deadline: Instant) -> Answer {
        if operation == Operation::Credentials {
            return self.credentials(text);
        }
        let work = async {
            match subscription::parse_body(text) {
                Body::Bad(error) => Reply::Whole(Err(error)),
                Body::One(item) => {
                    let checked = self.check(operation, &item);
                    drop(item);
                    Reply::Whole(self.apply(checked).await)
                }
                Body::Many(items) => {
                    let mut checked = Vec::with_capacity(items.len());
                    for item in items {
                        checked.push(self.check(operation, &item));
                        drop(item);
                        // A signature takes 100 µs: other requests get their turn in between.
                        tokio::task::yield_now().await;
                    }
                    // All at once, so that they go into one commit.
                    Reply::Each(join_all(checked.into_iter().map(|wish| self.apply(wish))).await)
                }
            }
        };
        let reply = tokio::time::timeout_at(deadline, work).await;
        reply
            .unwrap_or(Reply::Whole(Err(ItemError::TimedOut)))
            .answer(operation)
    }

    fn check(&self, operation: Operation, item: &Value) -> Result<Wish, ItemError> {
        let now = (self.clock)();
        let on_offer = |name: &str| Service::from_name(name).filter(|service| self.services.contains(service));
        match operation {
            Operation::Subscribe => {
                let new = subscription::subscribe(item, now, &on_offer)?;
                self.check_endpoint(&new)?;
                Ok(Wish::Subscribe(Box::new(new)))
            }
            Operation::Unsubscribe => subscription::unsubscribe(item, now, &on_offer).map(Wish::Unsubscribe),
            Operation::Test => {
                let wish = subscription::test(item, now, &on_offer)?;
                // Only what was signed counts, so that nobody can use up another's tests.
                let allowed = self.tests.take_for(wish.device.account, Instant::now().into_std());
                allowed.map_err(|_| ItemError::TooManyTests)?;
                Ok(Wish::Test(wish))
            }
            // It has one shape, and no items.
            Operation::Credentials => Err(ItemError::Internal),
        }
    }

    /// A client hears at once that its push server cannot be used from here, but not why.
    fn check_endpoint(&self, new: &Subscription) -> Result<(), ItemError> {
        let (Service::Webpush, Some(guard)) = (new.device.service, &self.guard) else {
            return Ok(());
        };
        let not_allowed = ItemError::InvalidEndpoint(EndpointFault::NotAllowed);
        let endpoint = PushEndpoint::of_token(&new.device.token).ok_or(not_allowed.clone())?;
        guard.check(endpoint.origin()).map_err(|_| not_allowed)
    }

    async fn apply(&self, wish: Result<Wish, ItemError>) -> Result<Done, ItemError> {
        let unavailable = |_| ItemError::Unavailable;
        match wish? {
            Wish::Subscribe(new) => match self.subscriptions.subscribe(*new).await.map_err(unavailable)? {
                Stored::Added => Ok(Done::Added),
                Stored::Updated => Ok(Done::Updated),
                Stored::Full => Err(ItemError::TooManyDevices),
                Stored::BindingRequired => Err(ItemError::BindingRequired),
            },
            Wish::Unsubscribe(old) => match self.subscriptions.unsubscribe(old).await.map_err(unavailable)? {
                true => Ok(Done::Removed),
                false => Ok(Done::Absent),
            },
            Wish::Test(wish) => Ok(Done::Tested(self.subscriptions.test(wish).await.map_err(unavailable)?)),
        }
    }
}

enum Wish {
    Subscribe(Box<Subscription>),
    Unsubscribe(Unsubscription),
    Test(TestWish),
}

#[derive(Clone, Copy)]
enum Done {
    Tested(Tested),
    Added,
    Updated,
    Removed,
    Absent,
}

impl Done {
    /// The texts are upstream's (push.md §3 Q12), but for tests, which it has not.
    fn json(self) -> Value {
        match self {
            Self::Tested(tested) => {
                let accepted = tested == Tested::Accepted;
                json!({"success": true, "accepted": accepted, "result": tested.label(), "message": tested.message()})
            }
            Self::Added => json!({"success": true, "added": true, "message": "Subscription successful"}),
            Self::Updated => json!({"success": true, "updated": true, "message": "Resubscription successful"}),
            Self::Removed => {
                json!({"success": true, "removed": true, "message": "Device unsubscribed from push notifications"})
            }
            Self::Absent => {
                json!({"success": true, "removed": false, "message": "Device was not subscribed to push notifications"})
            }
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Tested(tested) => tested.label(),
            Self::Added => "added",
            Self::Updated => "updated",
            Self::Removed => "removed",
            Self::Absent => "absent",
        }
    }
}

enum Reply {
    Whole(Result<Done, ItemError>),
    Each(Vec<Result<Done, ItemError>>),
}

impl Reply {
    fn answer(self, operation: Operation) -> Answer {
        let each = match &self {
            Self::Whole(item) => std::slice::from_ref(item),
            Self::Each(items) => items,
        };
        for item in each {
            count(
                operation,
                item.as_ref().map_or_else(ItemError::label, |done| done.label()),
            );
        }
        let code = code_for(each);
        let json = match self {
            Self::Whole(item) => item_json(&item),
            Self::Each(items) => items.iter().map(item_json).collect(),
        };
        Answer {
            code,
            json: json.to_string(),
        }
    }
}

fn item_json(item: &Result<Done, ItemError>) -> Value {
    match item {
        Ok(done) => done.json(),
        Err(error) => json!({"error": error.code(), "message": error.message()}),
    }
}

/// Android takes any answer with code 200 for success and asks again only after a week (push.md §0.8). So what a retry can mend
/// is 503, which both clients repeat soon, and a clock that is off is 425, which makes both set it and repeat. Repeating a batch
/// does no harm. Never 403: Android gives up for good.
fn code_for(items: &[Result<Done, ItemError>]) -> StatusCode {
    let any = |kind: ErrorKind| {
        items
            .iter()
            .any(|item| item.as_ref().is_err_and(|error| error.kind() == kind))
    };
    if any(ErrorKind::Retryable) {
        StatusCode::SERVICE_UNAVAILABLE
    } else if any(ErrorKind::Clock) {
        StatusCode::TOO_EARLY
    } else {
        StatusCode::OK
    }
}

pub(super) fn count(operation: Operation, outcome: &'static str) {
    metrics::counter!("http_items_total", "operation" => operation.label(), "outcome" => outcome).increment(1);
}

/// Upstream's BAD_INPUT and SERVICE_NOT_AVAILABLE (push.md §3 Q12).
pub(super) const BAD_INPUT: u8 = 1;
pub(super) const SERVICE_NOT_AVAILABLE: u8 = 2;
