//! Tokens that lost a subscription: is there another with the same token?
//!
//! In: devices that go and come, the index. Out: tokens that nobody subscribes any more. Never: looks at more of the index at once than it
//! is told.
//!
//! One phone has a token for all its accounts, and an outbox entry does not know whose it was: only when the last account is gone may
//! what waits for the token be dropped.

use notifier_core::account::{DeviceToken, Service};
use notifier_core::fanout::Index;
use notifier_core::outbox::Target;
use notifier_core::subscription::DeviceId;
use std::collections::HashMap;

/// By service and by what tells one token from another.
type Tokens = HashMap<Service, HashMap<Box<[u8]>, DeviceToken>>;

#[derive(Default)]
pub struct Released {
    /// Looked for in this round.
    searched: Tokens,
    /// For the next one.
    waiting: Tokens,
    /// Where the round goes on; `None` = no round.
    cursor: Option<usize>,
}

impl Released {
    /// The device is gone. Beyond a bound it is let go: what waits for it is sent.
    pub fn add(&mut self, device: DeviceId) {
        let of_service = self.waiting.entry(device.service).or_default();
        if of_service.len() < MOST {
            let identity = device.token.identity(device.service).into();
            of_service.insert(identity, device.token);
        }
    }

    /// The token has a subscription, perhaps again.
    pub fn keep(&mut self, service: Service, token: &DeviceToken) {
        let identity = token.identity(service);
        for tokens in [&mut self.searched, &mut self.waiting] {
            if let Some(of_service) = tokens.get_mut(&service) {
                of_service.remove(identity);
            }
        }
    }

    /// Looks at the next `places` places; at the end of a round gives those that were found nowhere.
    pub fn search(&mut self, index: &Index, places: usize) -> Vec<Target> {
        let from = match self.cursor {
            Some(from) => from,
            None if self.waiting.values().all(HashMap::is_empty) => return Vec::new(),
            None => {
                self.searched = std::mem::take(&mut self.waiting);
                0
            }
        };
        let searched = &self.searched;
        let (found, next) = index.devices_from(from, places, |service, token| {
            let of_service = searched.get(&service);
            of_service.is_some_and(|tokens| tokens.contains_key(DeviceToken::identity_of(service, token)))
        });
        for device in found {
            self.keep_searched(&device);
        }
        self.cursor = next;
        if next.is_some() {
            return Vec::new();
        }
        let targets = std::mem::take(&mut self.searched).into_iter();
        targets
            .flat_map(|(service, tokens)| tokens.into_values().map(move |token| Target { service, token }))
            .collect()
    }

    /// Found in this round: it may still be released again before the next.
    fn keep_searched(&mut self, device: &DeviceId) {
        if let Some(of_service) = self.searched.get_mut(&device.service) {
            of_service.remove(device.token.identity(device.service));
        }
    }
}

/// Tokens of a service in one round.
const MOST: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;
    use notifier_core::account::{AccountId, Namespace, NamespaceSet};
    use notifier_core::seeded::Seed;
    use notifier_core::subscription::Subscription;
    use quietline_shared::redact::Secret;

    fn subscription(account: u8, token: &[u8]) -> Subscription {
        Subscription {
            device: DeviceId {
                account: AccountId::new([account; 33]),
                service: Service::Firebase,
                token: DeviceToken::new(token),
            },
            session_ed25519: None,
            subaccount: None,
            namespaces: NamespaceSet::new(vec![Namespace(0)]).unwrap(),
            want_data: true,
            sig_ts: 1_800_000_000,
            signature: [2; 64],
            enc_key: Secret::new([3; 32]),
            is_bound: false,
        }
    }

    #[test]
    fn a_token_is_given_back_only_when_no_account_has_it() {
        let mut index = Index::new(Seed::new([1; 16]));
        let phone = subscription(1, b"phone");
        let group = subscription(2, b"phone");
        let other = subscription(3, b"other");
        for one in [&phone, &group, &other] {
            index.upsert(one);
        }
        let mut released = Released::default();
        index.remove(&phone.device);
        released.add(phone.device.clone());
        assert_eq!(released.search(&index, 100), [], "its group has it");
        index.remove(&group.device);
        released.add(group.device.clone());
        assert_eq!(released.search(&index, 1), [], "a round takes its time");
        let rest: Vec<_> = (0..3).flat_map(|_| released.search(&index, 1)).collect();
        let target = Target {
            service: Service::Firebase,
            token: group.device.token.clone(),
        };
        assert_eq!(rest, [target]);
        assert_eq!(released.search(&index, 100), [], "told once");
    }

    #[test]
    fn a_token_that_comes_back_during_the_search_is_kept() {
        let mut index = Index::new(Seed::new([1; 16]));
        for account in 0..4 {
            index.upsert(&subscription(account, &[account]));
        }
        let back = subscription(1, &[1]);
        let mut released = Released::default();
        index.remove(&back.device);
        released.add(back.device.clone());
        assert_eq!(released.search(&index, 2), []);
        // At a place that the search has passed.
        index.upsert(&back);
        released.keep(back.device.service, &back.device.token);
        assert_eq!(released.search(&index, 100), []);
    }
}
