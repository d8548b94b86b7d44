//! Random lives of many entries: none is lost, none is sent twice at once, no limit is exceeded.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Accept {
        service: usize,
        token: u8,
        class: usize,
        life: i64,
    },
    Written,
    WriteFailed,
    Send,
    Load,
    Unreadable,
    Answer {
        which: usize,
        outcome: Outcome,
        random: u64,
    },
    Wait(i64),
    NewCredential(usize),
    Withdraw {
        service: usize,
        token: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after = prop::option::of((0u64..200).prop_map(Duration::from_secs));
    let outcome = prop_oneof![
        4 => Just(Outcome::Delivered),
        4 => (0..RetryReason::ALL.len(), after)
            .prop_map(|(reason, after)| Outcome::Retry { after, reason: RetryReason::ALL[reason] }),
        1 => Just(Outcome::TryFallback),
        1 => Just(Outcome::Expired),
        1 => (0u64..5_000).prop_map(|pause| Outcome::Held { pause: Duration::from_millis(pause) }),
        1 => (0u64..5_000).prop_map(|after| Outcome::Later { after: Duration::from_millis(after) }),
        1 => any::<bool>().prop_map(|certain| Outcome::Gone { provider_time_ms: None, certain }),
        1 => Just(Outcome::Refused(Refusal::OurFault)),
    ];
    let step = prop_oneof![
        6 => (0..Service::COUNT, 0..4u8, 0..4usize, 0..2_000_000i64)
            .prop_map(|(service, token, class, life)| Step::Accept { service, token, class, life }),
        5 => Just(Step::Written),
        1 => Just(Step::WriteFailed),
        8 => Just(Step::Send),
        4 => Just(Step::Load),
        1 => Just(Step::Unreadable),
        8 => (any::<usize>(), outcome, any::<u64>())
            .prop_map(|(which, outcome, random)| Step::Answer { which, outcome, random }),
        3 => prop_oneof![0..2000i64, 0..200_000i64].prop_map(Step::Wait),
        1 => (0..Service::COUNT).prop_map(Step::NewCredential),
        1 => (0..Service::COUNT, 0..4u8).prop_map(|(service, token)| Step::Withdraw { service, token }),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every entry that was taken is delivered, dropped with a reason, or still there; and the file is told of each end.
    #[test]
    fn no_entry_is_ever_lost_and_no_limit_exceeded(steps in steps(), memory in 0usize..5000, max_entries in 1usize..40) {
        let settings = OutboxSettings { max_entries, memory, lanes: MOST.map(few) };
        let mut outbox = Outbox::new(settings, Seed::new([1; 16]), EntryId(1));
        let mut world = World::default();
        for step in steps {
            world.apply(&mut outbox, step)?;
        }
        // In the end everything finds its way out.
        for _ in 0..10_000 {
            if outbox.is_empty() {
                break;
            }
            world.apply(&mut outbox, Step::Written)?;
            world.apply(&mut outbox, Step::Load)?;
            world.apply(&mut outbox, Step::Send)?;
            world.apply(&mut outbox, Step::Answer { which: 0, outcome: Outcome::Delivered, random: 0 })?;
            if Service::ALL.into_iter().all(|service| outbox.in_flight(service) == 0)
                && let Some(next) = outbox.next_deadline()
            {
                world.now = world.now.max(next);
                outbox.handle_timeout(world.now);
            }
        }
        prop_assert!(outbox.is_empty(), "{} entries never came out", outbox.len());
        world.check(&mut outbox)?;
        prop_assert_eq!(outbox.memory(), 0);
        prop_assert!(outbox.retries.is_empty());
        prop_assert!(outbox.too_long.is_empty());
        prop_assert!(outbox.resting_tokens.values().all(|resting| resting.is_vacant()));
    }
}

/// Pushes under way at once, by lane.
const MOST: [u32; Service::COUNT] = {
    let mut most = [2; Service::COUNT];
    most[0] = 3;
    most[1] = 1;
    most
};

fn few(concurrency: u32) -> LaneSettings {
    LaneSettings {
        rate: 10,
        breaker_failures: 2,
        stall_after: Duration::from_secs(1_000_000),
        ..LaneSettings::with_concurrency(concurrency)
    }
}

/// The disk, the providers and the clock.
#[derive(Default)]
struct World {
    now: i64,
    unwritten: Vec<EntryId>,
    disk: std::collections::BTreeMap<EntryId, Arc<Sealed>>,
    under_way: Vec<EntryId>,
    accepted: u64,
    /// By service and token: entries with an earlier id wake nobody.
    withdrawn: HashMap<(Service, Vec<u8>), EntryId>,
}

impl World {
    fn apply(&mut self, outbox: &mut Outbox, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Accept {
                service,
                token,
                class,
                life,
            } => {
                let sealed = Sealed {
                    service: Service::ALL[service],
                    expires_at_ms: self.now + life,
                    fallback: (token == 0).then(|| b"short".as_slice().into()),
                    ..wakeup(&[token], Class::ALL[class])
                };
                if let Ok(entry) = outbox.accept(sealed, push_id(0), self.now) {
                    self.accepted += 1;
                    self.unwritten.push(entry.id);
                    self.disk.insert(entry.id, entry.sealed);
                }
            }
            Step::Written => outbox.handle_written(self.unwritten.drain(..)),
            Step::WriteFailed => {
                for id in self.unwritten.drain(..) {
                    outbox.handle_write_failed([id]);
                    self.disk.remove(&id);
                }
            }
            Step::Send => {
                while let Some(push) = outbox.poll_send(self.now) {
                    prop_assert!(push.deadline_ms > self.now);
                    let end = self
                        .withdrawn
                        .get(&(push.sealed.service, push.sealed.token.expose().to_vec()));
                    prop_assert!(
                        end.is_none_or(|end| push.id >= *end),
                        "sent to a device that is withdrawn"
                    );
                    prop_assert!(!self.unwritten.contains(&push.id) && !self.under_way.contains(&push.id));
                    self.under_way.push(push.id);
                }
            }
            Step::Load => {
                for id in outbox.poll_load(8, self.now) {
                    let sealed = self.disk.get(&id).map(|sealed| (**sealed).clone());
                    prop_assert!(sealed.is_some());
                    outbox.handle_loaded(id, sealed.unwrap());
                }
            }
            Step::Unreadable => {
                for id in outbox.poll_load(1, self.now) {
                    outbox.handle_unreadable(id);
                }
            }
            Step::Answer { which, outcome, random } => {
                if !self.under_way.is_empty() {
                    let id = self.under_way.remove(which % self.under_way.len());
                    outbox.handle_outcome(id, outcome, self.now, random);
                }
            }
            Step::Wait(pause) => {
                self.now += pause;
                outbox.handle_timeout(self.now);
            }
            Step::Withdraw { service, token } => {
                let target = Target {
                    service: Service::ALL[service],
                    token: DeviceToken::new([token]),
                };
                outbox.withdraw(std::slice::from_ref(&target), self.now);
                let place = (target.service, vec![token]);
                self.withdrawn.insert(place, EntryId(outbox.next_id));
            }
            Step::NewCredential(service) => outbox.handle_credential_changed(Service::ALL[service], self.now),
        }
        self.check(outbox)
    }

    fn check(&mut self, outbox: &mut Outbox) -> Result<(), TestCaseError> {
        for write in writes(outbox) {
            match write {
                Write::Remove(id) => prop_assert!(self.disk.remove(&id).is_some(), "removed twice"),
                Write::Change { id, .. } => prop_assert!(self.disk.contains_key(&id), "changed after its end"),
            }
        }
        let (mut accepted, mut ended, mut in_flight) = (0, 0, 0);
        for (service, most) in Service::ALL.into_iter().zip(MOST) {
            let counters = outbox.counters(service);
            accepted += counters.accepted;
            ended += counters.delivered
                + DropReason::ALL
                    .iter()
                    .map(|reason| counters.dropped(*reason))
                    .sum::<u64>();
            prop_assert!(outbox.in_flight(service) <= most);
            in_flight += outbox.in_flight(service) as usize;
        }
        prop_assert_eq!(accepted, self.accepted);
        prop_assert_eq!(accepted, ended + outbox.len() as u64);
        prop_assert_eq!(in_flight, self.under_way.len());
        prop_assert_eq!(self.disk.len(), outbox.len());
        prop_assert!(outbox.len() <= outbox.settings.max_entries);
        let counted: usize = self
            .disk
            .keys()
            .filter_map(|id| outbox.entries.find(*id))
            .map(|place| outbox.entries.at(place))
            .filter(|slot| slot.counted)
            .map(|slot| slot.size as usize)
            .sum();
        prop_assert_eq!(counted, outbox.memory());
        // Each lane may hold one body although there is no room for it, and those under way stay.
        let most = outbox.settings.memory + Service::COUNT * (1 + 3) * 500;
        prop_assert!(outbox.memory() <= most);
        Ok(())
    }
}
