use super::*;
use crate::swarm::NodeList;
use proptest::prelude::*;
use quietline_shared::bencode::Reader;
use std::collections::HashSet;
use std::net::Ipv4Addr;

const K: usize = 3;

// ---- a network that answers, as far as it is told to ------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Good,
    /// Refuses every second record with a code nobody knows.
    Partly,
    /// Refuses every record with a code that is its owner's fault.
    Refuses,
    Silent,
    Garbage,
    Unreachable,
}

#[derive(Default)]
struct Held {
    accounts: HashSet<AccountId>,
}

enum Event {
    Up(NodeKey),
    Down(NodeKey, LinkEnd),
    Reply(NodeKey, u64, Result<Vec<Bytes>, ReplyFault>),
    Records(BatchId, Vec<AccountId>),
}

struct World {
    watch: Watch,
    now: Instant,
    ring: Arc<SwarmRing>,
    moods: HashMap<NodeKey, Mood>,
    links: HashMap<NodeKey, Held>,
    dialing: HashSet<NodeKey>,
    store: BTreeMap<AccountId, usize>,
    store_works: bool,
    events: VecDeque<Event>,
    dials: Vec<(Instant, NodeKey)>,
    hangs: Vec<NodeKey>,
    requests: Vec<(Instant, NodeKey, usize)>,
}

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now() + Duration::from_secs(1_000_000)
}

fn node(swarm: u64, number: u8) -> Node {
    let mut key = [number; 32];
    key[..8].copy_from_slice(&swarm.to_be_bytes());
    Node {
        key: NodeKey(key),
        ip: Ipv4Addr::new(10, 0, 0, number),
        port: 1000 + u16::from(number),
        swarm: SwarmId(swarm),
    }
}

fn swarm(id: u64, nodes: u8) -> Vec<Node> {
    (1..=nodes).map(|number| node(id, number)).collect()
}

fn ring(nodes: Vec<Node>) -> Arc<SwarmRing> {
    Arc::new(SwarmRing::new(&NodeList {
        nodes,
        height: 0,
        block_hash: [0; 32],
    }))
}

fn account(number: u32) -> AccountId {
    let mut bytes = [5u8; 33];
    let mut random = Random(u64::from(number));
    for eight in bytes[1..].chunks_mut(8) {
        eight.copy_from_slice(&random.next().to_be_bytes());
    }
    AccountId::new(bytes)
}

fn record(account: &AccountId) -> Bytes {
    let mut record = Vec::new();
    let mut bytes = vec![account.prefix()];
    bytes.extend_from_slice(account.key());
    quietline_shared::bencode::put_bytes(&mut record, &bytes);
    record.into()
}

fn accounts_in(body: &[u8]) -> Vec<AccountId> {
    let mut reader = Reader::new(body);
    let mut list = reader.list().unwrap();
    let mut accounts = Vec::new();
    while list.has_next().unwrap() {
        accounts.push(AccountId::from_slice(list.value().bytes().unwrap()).unwrap());
    }
    accounts
}

impl World {
    fn new(settings: WatchSettings, nodes: Vec<Node>) -> Self {
        let mut world = Self {
            watch: Watch::new(settings, [7; 32], 42),
            now: start(),
            ring: Arc::default(),
            moods: HashMap::new(),
            links: HashMap::new(),
            dialing: HashSet::new(),
            store: BTreeMap::new(),
            store_works: true,
            events: VecDeque::new(),
            dials: Vec::new(),
            hangs: Vec::new(),
            requests: Vec::new(),
        };
        world.set_nodes(nodes);
        world
    }

    fn with_accounts(settings: WatchSettings, nodes: Vec<Node>, accounts: u32) -> Self {
        let mut world = Self::new(settings, nodes);
        (0..accounts).for_each(|number| world.add(number));
        world.run_for(Duration::from_secs(5));
        world.check_covered();
        world
    }

    fn set_nodes(&mut self, nodes: Vec<Node>) {
        self.ring = ring(nodes);
        self.watch.handle_nodes(Arc::clone(&self.ring), self.now);
        self.act();
    }

    fn add(&mut self, number: u32) {
        let account = account(number);
        self.store.insert(account, 1);
        self.watch
            .handle_account_changed(account, Some(record(&account)), self.now);
        self.act();
    }

    fn add_unread(&mut self, number: u32, records: usize) {
        self.store.insert(account(number), records);
        self.watch.handle_account_changed(account(number), None, self.now);
        self.act();
    }

    fn remove(&mut self, number: u32) {
        self.store.remove(&account(number));
        self.watch.handle_account_removed(&account(number));
    }

    fn mood(&self, key: NodeKey) -> Mood {
        self.moods.get(&key).copied().unwrap_or(Mood::Good)
    }

    /// Everything the watch wants, at once; the answers wait in `events`.
    fn act(&mut self) {
        while let Some(action) = self.watch.poll_action() {
            match action {
                Action::Dial(node) => {
                    assert_eq!(
                        self.ring.node(&node.key),
                        Some(&node),
                        "dialed a node that is not on the list"
                    );
                    assert!(!self.links.contains_key(&node.key) && self.dialing.insert(node.key));
                    self.dials.push((self.now, node.key));
                    self.events.push_back(match self.mood(node.key) {
                        Mood::Unreachable => Event::Down(node.key, LinkEnd::DialFailed),
                        _ => Event::Up(node.key),
                    });
                }
                Action::Hang(key) => {
                    assert!(
                        self.dialing.remove(&key) | self.links.remove(&key).is_some(),
                        "hung up without a link"
                    );
                    self.events.retain(|event| match event {
                        Event::Up(node) | Event::Down(node, _) | Event::Reply(node, ..) => *node != key,
                        Event::Records(..) => true,
                    });
                    self.hangs.push(key);
                }
                Action::Request { node, request, body } => self.ask(node, request, &body),
                Action::NeedRecords { batch, accounts } => self.events.push_back(Event::Records(batch, accounts)),
            }
        }
    }

    fn ask(&mut self, key: NodeKey, request: u64, body: &[u8]) {
        let mood = self.mood(key);
        let accounts = accounts_in(body);
        assert!(!accounts.is_empty() && accounts.len() <= self.watch.shared.settings.records_per_request);
        self.requests.push((self.now, key, accounts.len()));
        let in_charge_of = self.ring.node(&key).expect("asked a node that left").swarm;
        for account in &accounts {
            assert_eq!(
                self.ring.swarm_of(account),
                Some(in_charge_of),
                "asked a node that is not in charge"
            );
            assert!(self.store.contains_key(account), "asked about an account that is gone");
        }
        let held = self.links.get_mut(&key).expect("asked without a link");
        let mut reply = String::from("l");
        for (place, account) in accounts.iter().enumerate() {
            if mood == Mood::Good || (mood == Mood::Partly && place % 2 == 1) {
                held.accounts.insert(*account);
                reply.push_str("d7:successi1ee");
            } else if mood == Mood::Refuses {
                reply.push_str("d7:errcodei4e5:error3:olde");
            } else {
                reply.push_str("d7:errcodei77e5:error4:waite");
            }
        }
        reply.push('e');
        self.events.push_back(Event::Reply(
            key,
            request,
            match mood {
                Mood::Silent => Err(ReplyFault::Timeout),
                Mood::Garbage => Ok(vec![Bytes::from_static(b"x")]),
                _ => Ok(vec![reply.into()]),
            },
        ));
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Up(key) => {
                assert!(self.dialing.remove(&key));
                self.links.insert(key, Held::default());
                self.watch.handle_link_up(key, self.now);
            }
            Event::Down(key, end) => {
                self.dialing.remove(&key);
                self.links.remove(&key);
                self.watch.handle_link_down(key, end, self.now);
            }
            Event::Reply(key, request, result) => {
                if result == Err(ReplyFault::Timeout) {
                    self.now += Duration::from_secs(15);
                }
                let result = result.as_deref().map_err(|fault| *fault);
                self.watch.handle_reply(key, request, result, self.now);
            }
            Event::Records(batch, _) if !self.store_works => self.watch.handle_records_failed(batch, self.now),
            Event::Records(batch, accounts) => {
                let store = &self.store;
                let records = accounts.into_iter().filter_map(|account| {
                    store
                        .get(&account)
                        .map(|count| (account, vec![record(&account); *count]))
                });
                self.watch.handle_records(batch, records.collect(), self.now);
            }
        }
        self.act();
    }

    fn lose(&mut self, key: NodeKey) {
        if self.links.contains_key(&key) {
            self.events
                .retain(|event| !matches!(event, Event::Reply(node, ..) if *node == key));
            self.deliver(Event::Down(key, LinkEnd::Lost));
        }
    }

    fn tick(&mut self) {
        self.watch.handle_timeout(self.now);
        self.act();
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1_000_000 {
            if let Some(event) = self.events.pop_front() {
                self.deliver(event);
                continue;
            }
            match self.watch.poll_timeout() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.tick();
                }
                _ => {
                    self.now = self.now.max(end);
                    return;
                }
            }
        }
        panic!("the watch never comes to rest");
    }

    fn holders(&self, account: &AccountId) -> usize {
        self.links
            .values()
            .filter(|held| held.accounts.contains(account))
            .count()
    }

    fn check_covered(&self) {
        for account in self.store.keys() {
            let swarm = self.ring.swarm_of(account).unwrap();
            let wanted = K.min(self.ring.nodes_of(swarm).len());
            let holders: Vec<NodeKey> = self
                .links
                .iter()
                .filter(|(key, held)| {
                    held.accounts.contains(account) && self.ring.node(key).is_some_and(|node| node.swarm == swarm)
                })
                .map(|(key, _)| *key)
                .collect();
            assert!(
                holders.len() >= wanted,
                "{} of {wanted} nodes hold an account",
                holders.len()
            );
        }
        let coverage = self.watch.coverage();
        assert_eq!(coverage.accounts, self.store.len());
        assert_eq!(coverage.covered, self.store.len());
        assert_eq!(coverage.links_up, coverage.links_wanted);
        assert_eq!(coverage.swarms_linked, coverage.swarms);
        assert_eq!(coverage.requests_in_flight, 0);
        assert_eq!(coverage.pending_bytes, 0);
        assert!(self.links.keys().all(|key| self.ring.node(key).is_some()));
        assert_eq!(self.links.len(), coverage.links_up);
    }

    fn watched(&self) -> Vec<NodeKey> {
        let mut watched: Vec<NodeKey> = self.links.keys().copied().collect();
        watched.sort_unstable();
        watched
    }
}

fn small() -> WatchSettings {
    WatchSettings {
        records_per_request: 10,
        ..WatchSettings::default()
    }
}

// ---- which nodes ------------------------------------------------------------------------------------------------------

#[test]
fn the_first_three_of_the_rendezvous_order_are_watched() {
    let world = World::with_accounts(small(), swarm(0, 7), 30);
    let mut first: Vec<NodeKey> = rendezvous(&[7; 32], SwarmId(0), world.ring.nodes_of(SwarmId(0)))
        .iter()
        .take(K)
        .map(|node| node.key)
        .collect();
    first.sort_unstable();
    assert_eq!(world.watched(), first);
    assert_eq!(world.dials.len(), K);
}

#[test]
fn another_node_stands_in_for_one_that_cannot_be_dialed_until_it_is_back_and_holds_everything() {
    let mut world = World::with_accounts(small(), swarm(0, 7), 30);
    let broken = world.watched()[0];
    world.moods.insert(broken, Mood::Unreachable);
    world.lose(broken);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.links.len(), K);
    world.check_covered();
    let [.., stand_in] = world.dials[..] else { panic!() };

    world.moods.insert(broken, Mood::Partly);
    world.run_for(Duration::from_secs(600));
    assert_eq!(world.links.len(), K + 1, "back, but it does not hold everything");
    world.moods.insert(broken, Mood::Good);
    world.run_for(Duration::from_secs(120));
    assert_eq!(world.links.len(), K);
    assert_eq!(world.hangs, [stand_in.1]);
    world.check_covered();
}

#[test]
fn a_failed_dial_cools_down_for_10_then_30_then_60_then_120_seconds() {
    let mut world = World::new(small(), Vec::new());
    world.moods.insert(node(0, 1).key, Mood::Unreachable);
    world.set_nodes(swarm(0, 1));
    let started = world.now;
    world.run_for(Duration::from_secs(400));
    let dials: Vec<u64> = world
        .dials
        .iter()
        .map(|(at, _)| at.duration_since(started).as_secs())
        .collect();
    assert_eq!(dials, [0, 10, 40, 100, 220, 340]);
}

#[test]
fn a_lost_link_is_dialed_again_at_once_and_subscribed_at_once() {
    let mut world = World::with_accounts(small(), swarm(0, 3), 30);
    world.run_for(Duration::from_secs(100));
    let (lost, lost_at) = (world.watched()[0], world.now);
    world.requests.clear();
    world.lose(lost);
    assert_eq!(world.dials.last(), Some(&(lost_at, lost)));
    while let Some(event) = world.events.pop_front() {
        world.deliver(event);
    }
    assert_eq!(world.now, lost_at);
    world.check_covered();
    assert!(
        world
            .requests
            .iter()
            .all(|(at, node, _)| *at == lost_at && *node == lost)
    );
}

#[test]
fn a_link_that_is_lost_young_again_and_again_is_dialed_after_a_second_then_two() {
    let mut world = World::with_accounts(small(), swarm(0, 1), 5);
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let lost_at = world.now;
        world.lose(node(0, 1).key);
        world.run_for(Duration::from_secs(3));
        let [.., (dialed_at, _)] = world.dials[..] else {
            panic!()
        };
        pauses.push(dialed_at.duration_since(lost_at).as_secs_f64());
        world.check_covered();
    }
    let [first, second, rest @ ..] = &pauses[..] else {
        panic!()
    };
    assert_eq!(*first, 0.0);
    assert!((0.5..=1.1).contains(second), "{second}");
    assert!(rest.iter().all(|pause| (1.0..=2.1).contains(pause)), "{rest:?}");
    assert_eq!(world.dials.len(), 21);
}

#[test]
fn a_link_that_is_lost_young_cools_down_only_when_its_dial_fails() {
    let mut world = World::with_accounts(small(), swarm(0, 1), 5);
    let key = node(0, 1).key;
    world.lose(key);
    world.run_for(Duration::from_secs(3));
    world.moods.insert(key, Mood::Unreachable);
    world.dials.clear();
    world.lose(key);
    world.run_for(Duration::from_secs(45));
    let [(first, _), (second, _), (third, _)] = world.dials[..] else {
        panic!()
    };
    assert_eq!(second.duration_since(first), Duration::from_secs(10));
    assert_eq!(third.duration_since(second), Duration::from_secs(30));
}

#[test]
fn another_node_stands_in_for_one_that_drops_every_link_until_one_lives() {
    let mut world = World::with_accounts(small(), swarm(0, 5), 30);
    let fickle = world.watched()[0];
    for _ in 0..60 {
        world.run_for(Duration::from_secs(1));
        world.lose(fickle);
    }
    assert_eq!(world.links.len(), K);
    assert!(!world.links.contains_key(&fickle));
    world.check_covered();
    world.run_for(Duration::from_secs(70));
    assert_eq!(world.links.len(), K);
    assert!(world.links.contains_key(&fickle));
    world.check_covered();
}

#[test]
fn links_are_dialed_at_the_pace_of_the_settings() {
    let nodes: Vec<Node> = (0..100).flat_map(|id| swarm(id << 40, 5)).collect();
    let mut world = World::new(
        WatchSettings {
            dials_per_second: 50,
            ..small()
        },
        nodes,
    );
    let started = world.now;
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.dials.len(), 300);
    for second in 0..7 {
        let from = started + Duration::from_secs(second);
        let count = world
            .dials
            .iter()
            .filter(|(at, _)| (from..from + Duration::from_secs(1)).contains(at))
            .count();
        assert!(count <= 52, "{count} dials in a second");
    }
    assert!(
        world
            .dials
            .iter()
            .all(|(at, _)| *at <= started + Duration::from_secs(6))
    );
}

#[test]
fn a_node_that_leaves_is_hung_up_and_another_takes_its_place() {
    let mut world = World::with_accounts(small(), swarm(0, 7), 30);
    let gone = world.watched()[1];
    let rest = swarm(0, 7).into_iter().filter(|node| node.key != gone).collect();
    world.set_nodes(rest);
    assert_eq!(world.hangs, [gone]);
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

#[test]
fn a_node_with_a_new_address_is_hung_up_and_dialed_there() {
    let mut world = World::with_accounts(small(), swarm(0, 3), 30);
    let mut nodes = swarm(0, 3);
    nodes[0].port = 999;
    world.set_nodes(nodes.clone());
    assert_eq!(world.hangs, [nodes[0].key]);
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

#[test]
fn accounts_follow_a_swarm_that_splits_and_one_that_dissolves() {
    let one = swarm(0, 5);
    let mut two = one.clone();
    two.extend(swarm(1 << 63, 5));
    let mut world = World::with_accounts(small(), one.clone(), 100);
    world.set_nodes(two);
    world.run_for(Duration::from_secs(1));
    world.check_covered();
    assert_eq!(world.links.len(), 2 * K);
    let moved = world
        .store
        .keys()
        .filter(|account| world.ring.swarm_of(account) == Some(SwarmId(1 << 63)))
        .count();
    assert!((20..80).contains(&moved));
    world.set_nodes(one);
    world.run_for(Duration::from_secs(1));
    world.check_covered();
    assert_eq!(world.links.len(), K);
}

#[test]
fn a_node_that_changes_its_swarm_is_hung_up_before_it_is_dialed_for_the_other() {
    let mut nodes = swarm(0, 3);
    nodes.extend(swarm(1 << 63, 3));
    let mut world = World::with_accounts(small(), nodes.clone(), 60);
    nodes[0].swarm = SwarmId(1 << 63);
    world.set_nodes(nodes.clone());
    assert_eq!(world.hangs.first(), Some(&nodes[0].key));
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

#[test]
fn accounts_that_come_before_the_first_list_are_watched_after_it() {
    let mut world = World::new(small(), Vec::new());
    (0..30).for_each(|number| world.add(number));
    assert_eq!(world.watch.coverage().accounts, 30);
    assert_eq!(world.watch.coverage().covered, 0);
    world.remove(3);
    world.set_nodes(swarm(0, 5));
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

#[test]
fn an_empty_list_takes_the_watch_down_and_the_next_brings_it_back() {
    let mut world = World::with_accounts(small(), swarm(0, 5), 30);
    world.set_nodes(Vec::new());
    assert!(world.links.is_empty());
    world.set_nodes(swarm(0, 5));
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

// ---- which requests ---------------------------------------------------------------------------------------------------

#[test]
fn a_new_account_is_out_within_a_second_in_a_small_request() {
    let mut world = World::with_accounts(WatchSettings::default(), swarm(0, 5), 2000);
    world.requests.clear();
    let asked = world.now;
    world.add(5000);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.holders(&account(5000)), K);
    assert_eq!(world.requests.len(), K);
    assert!(
        world
            .requests
            .iter()
            .all(|(at, _, records)| at.duration_since(asked) <= DELTA_PATIENCE && *records == 1)
    );
}

const DELTA_PATIENCE: Duration = Duration::from_millis(200);

#[test]
fn a_changed_account_without_its_record_is_read_first() {
    let mut world = World::with_accounts(WatchSettings::default(), swarm(0, 5), 20);
    world.requests.clear();
    world.add_unread(7, 2);
    world.run_for(Duration::from_secs(1));
    assert_eq!(
        world
            .requests
            .iter()
            .map(|(_, _, records)| *records)
            .collect::<Vec<_>>(),
        [2; K]
    );
}

#[test]
fn changes_of_one_moment_share_a_request() {
    let mut world = World::with_accounts(WatchSettings::default(), swarm(0, 5), 20);
    world.requests.clear();
    (100..200).for_each(|number| world.add(number));
    world.run_for(Duration::from_secs(1));
    assert_eq!(
        world
            .requests
            .iter()
            .map(|(_, _, records)| *records)
            .collect::<Vec<_>>(),
        [100; K]
    );
}

#[test]
fn a_cold_start_with_records_never_goes_back_to_the_store() {
    let nodes: Vec<Node> = (0..4u64).flat_map(|id| swarm(id << 62, 7)).collect();
    let world = World::with_accounts(WatchSettings::default(), nodes, 20_000);
    assert_eq!(world.watch.counters().loads, 0);
    let sent: usize = world.requests.iter().map(|(_, _, records)| records).sum();
    assert_eq!(sent, 20_000 * K, "each record once to each node");
    assert!(world.requests.len() <= K * (20_000 / 500 + 2 * 4));
}

#[test]
fn every_account_is_renewed_after_45_to_55_minutes_and_read_once_for_all_nodes() {
    let mut world = World::with_accounts(WatchSettings::default(), swarm(0, 7), 3000);
    let loads_before = world.watch.counters().loads;
    let started = world.now;
    world.requests.clear();
    world.run_for(Duration::from_secs(44 * 60));
    assert_eq!(world.requests.len(), 0);
    world.run_for(Duration::from_secs(11 * 60 + 30));
    let renewed: usize = world.requests.iter().map(|(_, _, records)| records).sum();
    assert_eq!(renewed, 3000 * K);
    let chunks = world.requests.len() / K;
    assert_eq!(
        world.watch.counters().loads - loads_before,
        u64::try_from(chunks).unwrap()
    );
    let minutes: HashSet<u64> = world
        .requests
        .iter()
        .map(|(at, ..)| at.duration_since(started).as_secs() / 60)
        .collect();
    assert!(minutes.len() > 2, "renewals are spread");
    world.check_covered();
}

#[test]
fn a_removed_account_is_never_renewed() {
    let mut world = World::with_accounts(small(), swarm(0, 5), 40);
    (0..40).step_by(2).for_each(|number| world.remove(number));
    // `ask` refuses whatever is not in the store.
    world.run_for(Duration::from_secs(2 * 3600));
    world.check_covered();
    (1..40).step_by(2).for_each(|number| world.remove(number));
    world.requests.clear();
    world.run_for(Duration::from_secs(2 * 3600));
    assert_eq!(world.requests.len(), 0);
}

#[test]
fn an_account_removed_before_its_delta_is_sent_is_never_sent() {
    let mut world = World::with_accounts(small(), swarm(0, 5), 5);
    world.requests.clear();
    world.add(50);
    world.remove(50);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.requests.len(), 0);
}

#[test]
fn a_partly_refused_request_is_tried_again_in_seconds() {
    let mut world = World::with_accounts(small(), swarm(0, 3), 5);
    let node = world.watched()[0];
    world.moods.insert(node, Mood::Partly);
    world.add(50);
    world.add(51);
    world.run_for(Duration::from_millis(200));
    world.moods.insert(node, Mood::Good);
    world.run_for(Duration::from_secs(3));
    world.check_covered();
}

#[test]
fn what_a_node_refuses_for_a_moment_it_is_asked_again_in_seconds() {
    let mut world = World::with_accounts(small(), swarm(0, 3), 5);
    world.run_for(Duration::from_secs(100));
    let refuses = world.watched()[0];
    world.moods.insert(refuses, Mood::Refuses);
    world.add(50);
    let lost = world.watched()[0];
    world.lose(lost);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.links.len(), K);
    assert!(world.watch.coverage().covered < 6);
    world.moods.clear();
    world.run_for(Duration::from_secs(3));
    world.check_covered();
}

#[test]
fn what_is_refused_again_and_again_waits_for_the_next_renewal() {
    let mut world = World::with_accounts(small(), swarm(0, 1), 2);
    let key = node(0, 1).key;
    world.moods.insert(key, Mood::Refuses);
    // As a delta.
    world.requests.clear();
    world.add(50);
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.requests.len(), 4);
    assert_eq!(world.watch.counters().records_refused[3], 4);
    world.run_for(Duration::from_secs(40 * 60));
    assert_eq!(world.requests.len(), 4);
    // As a chunk.
    world.lose(key);
    world.requests.clear();
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.requests.len(), 4);
    world.run_for(Duration::from_secs(40 * 60));
    assert_eq!(world.requests.len(), 4);
    world.moods.clear();
    world.run_for(Duration::from_secs(20 * 60));
    assert_eq!(world.requests.len(), 5);
    world.check_covered();
}

#[test]
fn a_node_that_answers_rubbish_is_tried_with_growing_pauses() {
    let mut world = World::with_accounts(small(), swarm(0, 1), 5);
    world.moods.insert(node(0, 1).key, Mood::Garbage);
    world.requests.clear();
    world.add(50);
    world.run_for(Duration::from_secs(600));
    assert!(
        (12..40).contains(&world.requests.len()),
        "{} requests in ten minutes",
        world.requests.len()
    );
    world.moods.clear();
    world.run_for(Duration::from_secs(61));
    world.check_covered();
}

#[test]
fn a_node_that_never_answers_is_hung_up_and_another_stands_in() {
    let mut world = World::with_accounts(small(), swarm(0, 5), 5);
    let deaf = world.watched()[0];
    world.moods.insert(deaf, Mood::Silent);
    world.add(50);
    world.run_for(Duration::from_secs(120));
    assert!(world.hangs.contains(&deaf));
    assert!(world.holders(&account(50)) >= K);
}

#[test]
fn a_store_that_fails_is_asked_again() {
    let mut world = World::with_accounts(small(), swarm(0, 5), 50);
    world.run_for(Duration::from_secs(100));
    world.store_works = false;
    let lost = world.watched()[0];
    world.lose(lost);
    world.add_unread(60, 1);
    world.run_for(Duration::from_secs(30));
    assert!(world.watch.coverage().covered < 51);
    world.store_works = true;
    world.run_for(Duration::from_secs(61));
    world.check_covered();
}

#[test]
fn an_account_that_joins_others_without_records_reaches_the_node_that_was_down() {
    let mut world = World::with_accounts(small(), swarm(0, 3), 0);
    let down = world.watched()[0];
    world.moods.insert(down, Mood::Unreachable);
    (0..3).for_each(|number| world.add_unread(number, 0));
    world.lose(down);
    let other = world.watched()[1];
    world.lose(other);
    world.run_for(Duration::from_secs(1));
    world.add(9);
    world.run_for(Duration::from_secs(1));
    world.moods.clear();
    (0..3).for_each(|number| world.remove(number));
    world.run_for(Duration::from_secs(60));
    world.check_covered();
}

#[test]
fn a_chunk_with_more_records_than_a_request_may_have_is_split() {
    let mut world = World::new(small(), swarm(0, 3));
    (0..9).for_each(|number| world.add_unread(number, 4));
    world.run_for(Duration::from_secs(2));
    let lost = world.watched()[0];
    world.lose(lost);
    // `ask` refuses more than ten records.
    world.run_for(Duration::from_secs(2 * 3600));
    world.check_covered();
}

#[test]
fn a_start_without_links_is_congested_until_they_are_up() {
    let settings = WatchSettings {
        pending_bytes: 10_000,
        ..small()
    };
    let mut world = World::new(settings, swarm(0, 3));
    for number in 0..2000 {
        world.add(number);
        assert!(world.watch.shared.delta_bytes <= 3 * 10_000);
    }
    assert!(world.watch.is_congested());
    world.run_for(Duration::from_secs(5));
    assert!(!world.watch.is_congested());
    world.check_covered();
}

#[test]
fn bodies_that_wait_for_a_slow_node_stay_within_their_bound_and_go_after_a_moment() {
    let settings = WatchSettings {
        pending_bytes: 200_000,
        ..WatchSettings::default()
    };
    let mut world = World::with_accounts(settings, swarm(0, 3), 10_000);
    let slow = world.watched()[0];
    for key in world.watched() {
        world.lose(key);
    }
    let (mut most, mut kept_back) = (0, Vec::new());
    let started = world.now;
    while world.now < started + Duration::from_secs(60) {
        match world.events.pop_front() {
            Some(Event::Reply(key, request, result)) if key == slow => kept_back.push((request, result)),
            Some(event) => world.deliver(event),
            None => {
                world.now = world.watch.poll_timeout().unwrap();
                world.tick();
            }
        }
        most = most.max(world.watch.shared.body_bytes);
    }
    assert!(most > 0 && most <= 200_000, "{most}");
    assert_eq!(kept_back.len(), 3);
    assert_eq!(world.watch.shared.body_bytes, 0, "the others are served");
    for (request, result) in kept_back {
        world.events.push_back(Event::Reply(slow, request, result));
    }
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

#[test]
fn no_more_than_four_requests_are_under_way_at_a_node() {
    let mut world = World::with_accounts(small(), swarm(0, 1), 200);
    world.run_for(Duration::from_secs(100));
    world.lose(node(0, 1).key);
    while let Some(event) = world.events.pop_front() {
        world.deliver(event);
        assert!(world.watch.coverage().requests_in_flight <= 4);
    }
    world.run_for(Duration::from_secs(1));
    world.check_covered();
}

#[test]
fn a_second_link_is_one_to_another_node_of_the_swarm() {
    let mut world = World::with_accounts(small(), swarm(0, 2), 1);
    let [a, b] = world.watched()[..] else { panic!() };
    assert!(world.watch.swarm_has_second_link(SwarmId(0), a));
    world.moods.insert(b, Mood::Unreachable);
    world.lose(b);
    assert!(!world.watch.swarm_has_second_link(SwarmId(0), a));
    assert!(world.watch.swarm_has_second_link(SwarmId(0), b));
}

#[test]
fn an_account_costs_less_than_a_hundred_bytes() {
    let mut chunks = Chunks::default();
    let now = start();
    for number in 0..50_000 {
        let renewal = Renewal { since: now, at: now };
        chunks.insert(
            account(number),
            500,
            || (vec![chunk::Lease::Held { renew_at: now }; K], renewal),
            |_| renewal,
        );
    }
    let bytes: usize = chunks
        .list
        .iter()
        .map(|chunk| {
            size_of_val(chunk) + chunk.accounts.capacity() * 33 + chunk.leases.capacity() * size_of::<chunk::Lease>()
        })
        .sum();
    assert!(bytes / 50_000 < 100, "{} bytes", bytes / 50_000);
}

#[test]
fn an_action_prints_nothing_private() {
    let actions = [
        Action::Dial(node(0, 213)),
        Action::Hang(NodeKey([213; 32])),
        Action::Request {
            node: NodeKey([213; 32]),
            request: 1,
            body: Bytes::from("canary 213"),
        },
        Action::NeedRecords {
            batch: BatchId(1),
            accounts: vec![AccountId::new([213; 33])],
        },
    ];
    let printed = format!("{actions:?} {actions:#?}");
    assert!(!printed.contains("canary") && !printed.contains("213"), "{printed}");
}

// ---- any order of events ----------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Add(u32),
    AddUnread(u32, usize),
    Remove(u32),
    Mood(u64, u8, Mood),
    Lose(u64, u8),
    Nodes(Vec<(u64, u8)>),
    Deliver(usize),
    Wait(u64),
    Store(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let swarm = (0..4u64).prop_map(|id| id << 62);
    let mood = prop_oneof![
        Just(Mood::Good),
        Just(Mood::Partly),
        Just(Mood::Silent),
        Just(Mood::Garbage),
        Just(Mood::Unreachable)
    ];
    let nodes = proptest::collection::vec((swarm.clone(), 0..6u8), 0..5);
    prop_oneof![
        8 => (0..60u32).prop_map(Step::Add),
        2 => ((0..60u32), (0..4usize)).prop_map(|(number, records)| Step::AddUnread(number, records)),
        3 => (0..60u32).prop_map(Step::Remove),
        3 => (swarm.clone(), 1..7u8, mood).prop_map(|(swarm, node, mood)| Step::Mood(swarm, node, mood)),
        3 => (swarm, 1..7u8).prop_map(|(swarm, node)| Step::Lose(swarm, node)),
        1 => nodes.prop_map(Step::Nodes),
        6 => (1..20usize).prop_map(Step::Deliver),
        4 => (1..5000u64).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Store),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// `World` itself refuses a request to a node not in charge, about an account that is gone, or too large.
    #[test]
    fn whatever_happens_every_account_ends_up_with_k_nodes_of_its_swarm(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new(WatchSettings { records_per_request: 5, pending_bytes: 2000, ..WatchSettings::default() }, swarm(0, 5));
        for step in steps {
            match step {
                Step::Add(number) => world.add(number),
                Step::AddUnread(number, records) => world.add_unread(number, records),
                Step::Remove(number) => world.remove(number),
                Step::Mood(id, number, mood) => _ = world.moods.insert(node(id, number).key, mood),
                Step::Lose(id, number) => world.lose(node(id, number).key),
                Step::Nodes(swarms) => {
                    let mut sizes: BTreeMap<u64, u8> = BTreeMap::new();
                    sizes.extend(swarms);
                    world.set_nodes(sizes.into_iter().flat_map(|(id, size)| swarm(id, size)).collect());
                }
                Step::Deliver(count) => {
                    for _ in 0..count {
                        if let Some(event) = world.events.pop_front() {
                            world.deliver(event);
                        }
                    }
                }
                Step::Wait(milliseconds) => {
                    world.now += Duration::from_millis(milliseconds);
                    world.tick();
                }
                Step::Store(works) => world.store_works = works,
            }
        }
        world.moods.clear();
        world.store_works = true;
        if world.ring.nodes().is_empty() {
            world.set_nodes(swarm(0, 5));
        }
        world.store.retain(|_, records| *records > 0);
        for number in 0..60 {
            if !world.store.contains_key(&account(number)) {
                world.watch.handle_account_removed(&account(number));
            }
        }
        world.run_for(Duration::from_secs(400));
        world.check_covered();
        world.run_for(Duration::from_secs(3600));
        world.check_covered();
    }
}
