use super::fakes::{FakeNode, FakeOxend};
use super::*;
use notifier_core::swarm::NodeList;
use quietline_shared::bencode::put_bytes;
use quietline_shared::redact::Secret;
use std::collections::HashSet;
use tempfile::TempDir;

fn account(number: u8) -> AccountId {
    let mut bytes = [number; 33];
    bytes[0] = 5;
    AccountId::new(bytes)
}

fn record(account: &AccountId) -> Bytes {
    let mut bytes = vec![account.prefix()];
    bytes.extend_from_slice(account.key());
    let mut record = Vec::new();
    put_bytes(&mut record, &bytes);
    record.into()
}

/// A store that has a record for everybody.
struct Everybody;

impl RecordSource for Everybody {
    async fn records(&self, accounts: Vec<AccountId>) -> Result<Vec<(AccountId, Vec<Bytes>)>, RecordsUnavailable> {
        Ok(accounts
            .into_iter()
            .map(|account| (account, vec![record(&account)]))
            .collect())
    }
}

struct Setup {
    watcher: Watcher,
    stream: Stream,
    incoming: mpsc::Receiver<Incoming>,
    nodes: Vec<FakeNode>,
    oxend: FakeOxend,
    _folder: TempDir,
}

fn list(nodes: &[FakeNode]) -> Vec<u8> {
    let nodes = nodes.iter().map(|node| node.node.clone()).collect();
    NodeList {
        nodes,
        height: 1,
        block_hash: [0; 32],
    }
    .to_json()
}

async fn setup(nodes: usize) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let nodes: Vec<FakeNode> = (0..nodes).map(|_| FakeNode::start(0)).collect();
    let path = folder.path().join("oxend");
    let oxend = FakeOxend::start(&path, list(&nodes));
    let (sender, incoming) = mpsc::channel(16);
    let (watcher, stream) = spawn(Parts {
        watch: WatchSettings::default(),
        link: LinkSettings::default(),
        identity: Arc::new(Identity::new(Secret::new([9; 32]))),
        oxends: vec![format!("ipc://{}", path.display()).parse().unwrap()],
        seeds: Vec::new(),
        node_list_file: folder.path().join("nodes.json"),
        keys: watch::channel(Arc::new(Keyring::new(vec![Secret::new([1; 32])]).unwrap())).1,
        refresh_interval: Duration::from_secs(600),
        max_list_change: 1.0,
        records: Everybody,
        incoming: sender,
    });
    Setup {
        watcher,
        stream,
        incoming,
        nodes,
        oxend,
        _folder: folder,
    }
}

impl Setup {
    async fn stream(&self, numbers: std::ops::Range<u8>) {
        for number in numbers {
            self.stream
                .send((account(number), record(&account(number))))
                .await
                .unwrap();
        }
    }

    async fn covered(&mut self, accounts: usize, links: usize) {
        let done = |coverage: &Coverage| {
            coverage.accounts == accounts && coverage.covered == accounts && coverage.links_up == links
        };
        let wait = self.watcher.coverage.wait_for(done);
        timeout(Duration::from_secs(30), wait).await.unwrap().unwrap();
    }

    fn holders(&self, account: AccountId) -> Vec<&FakeNode> {
        self.nodes
            .iter()
            .filter(|node| node.was_asked_about(&record(&account)))
            .collect()
    }
}

#[test]
fn complaints_about_the_wrong_swarm_are_heard_once_a_minute() {
    let mut complaints = Complaints::default();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    assert!(!complaints.are_due(0, at(0)));
    assert!(complaints.are_due(1, at(1)));
    assert!(!complaints.are_due(500, at(2)));
    assert!(!complaints.are_due(900, at(60)));
    assert!(complaints.are_due(900, at(61)), "what came meanwhile is not forgotten");
    assert!(!complaints.are_due(900, at(200)));
}

#[test]
fn commands_and_what_links_say_print_nothing_private() {
    let commands = [
        Command::AccountChanged {
            account: Box::new(account(213)),
            record: Some(Bytes::from("canary")),
        },
        Command::AccountRemoved {
            account: Box::new(account(213)),
        },
    ];
    let said = [
        FromLink::Up,
        FromLink::Reply {
            request: 1,
            result: Ok(vec![Bytes::from("canary")]),
        },
        FromLink::Down(link::DownReason::DialTimeout),
        FromLink::BlockNotify,
    ];
    let printed = format!("{commands:?} {commands:#?} {said:?} {said:#?}");
    assert!(!printed.contains("canary") && !printed.contains("213"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_too_large_is_dropped_and_the_link_lives_on() {
    let mut setup = setup(1).await;
    setup.stream(0..1).await;
    setup.covered(1, 1).await;
    setup.nodes[0].notify(&vec![7; notifier_core::event::MAX_NOTIFICATION + 1]);
    setup.nodes[0].notify(b"small");
    let notification = timeout(Duration::from_secs(10), setup.incoming.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&notification.body[..], b"small");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_watched_at_three_nodes_and_notifications_come_with_their_sender() {
    let mut setup = setup(5).await;
    setup.stream(0..10).await;
    setup.covered(10, 3).await;
    for number in 0..10 {
        assert_eq!(setup.holders(account(number)).len(), 3);
    }
    let sender = setup.holders(account(0))[0].node.key;
    setup.holders(account(0))[0].notify(b"d1:@33:xe");
    let notification = timeout(Duration::from_secs(10), setup.incoming.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((notification.node, notification.swarm), (sender, SwarmId(0)));
    assert!(notification.second_link_up);
    assert_eq!(&notification.body[..], b"d1:@33:xe");
    assert_eq!(setup.watcher.ring.borrow().swarm_of(&account(0)), Some(SwarmId(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_account_reaches_the_nodes_with_and_without_its_record() {
    let mut setup = setup(3).await;
    setup.stream(0..3).await;
    setup.covered(3, 3).await;
    let changed = Command::AccountChanged {
        account: Box::new(account(50)),
        record: Some(record(&account(50))),
    };
    setup.watcher.commands.send(changed).await.unwrap();
    setup
        .watcher
        .commands
        .send(Command::AccountChanged {
            account: Box::new(account(51)),
            record: None,
        })
        .await
        .unwrap();
    setup.covered(5, 3).await;
    assert_eq!(setup.holders(account(50)).len(), 3);
    assert_eq!(setup.holders(account(51)).len(), 3);
    setup
        .watcher
        .commands
        .send(Command::AccountRemoved {
            account: Box::new(account(51)),
        })
        .await
        .unwrap();
    setup.covered(4, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_replaced_and_its_accounts_are_read_from_the_store() {
    let mut setup = setup(4).await;
    setup.stream(0..10).await;
    setup.covered(10, 3).await;
    let before: HashSet<NodeKey> = setup.holders(account(0)).iter().map(|node| node.node.key).collect();
    let place = setup
        .nodes
        .iter()
        .position(|node| before.contains(&node.node.key))
        .unwrap();
    drop(setup.nodes.remove(place));
    let fourth = setup
        .nodes
        .iter()
        .position(|node| !before.contains(&node.node.key))
        .unwrap();
    while !(0..10).all(|number| setup.nodes[fourth].was_asked_about(&record(&account(number)))) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    setup.covered(10, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_left_the_list_is_hung_up_and_heard_no_more() {
    let mut setup = setup(4).await;
    setup.stream(0..5).await;
    setup.covered(5, 3).await;
    let gone = setup.holders(account(0))[0].node.key;
    let place = setup.nodes.iter().position(|node| node.node.key == gone).unwrap();
    let gone = setup.nodes.remove(place);
    *setup.oxend.list.lock().unwrap() = list(&setup.nodes);
    setup.oxend.announce_block();
    let ring = setup.watcher.ring.wait_for(|ring| ring.nodes().len() == 3);
    timeout(Duration::from_secs(20), ring).await.unwrap().unwrap();
    while setup.holders(account(0)).len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gone.notify(b"from one that left");
    setup.nodes[0].notify(b"from one in charge");
    let notification = timeout(Duration::from_secs(10), setup.incoming.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&notification.body[..], b"from one in charge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_gave_before_it_was_hung_up_still_comes_with_its_old_swarm() {
    let mut setup = setup(3).await;
    setup.stream(0..1).await;
    setup.covered(1, 3).await;
    let sender = setup.nodes[0].node.key;
    // More than the app takes, fewer than stop the link.
    for number in 0..200u32 {
        setup.nodes[0].notify(&number.to_be_bytes());
    }
    // Two answers that came behind them, so all of them are here: the node may have been answering the first when it was told to push.
    for further in 1..=2 {
        setup.stream(further..further + 1).await;
        setup.covered(usize::from(further) + 1, 3).await;
    }
    for node in &mut setup.nodes {
        node.asked.lock().unwrap().clear();
        node.node.swarm = SwarmId(7);
    }
    *setup.oxend.list.lock().unwrap() = list(&setup.nodes);
    setup.oxend.announce_block();
    // Who is asked for the new swarm has been hung up for the old one.
    while setup.holders(account(0)).len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for number in 0..200u32 {
        let notification = timeout(Duration::from_secs(10), setup.incoming.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((notification.node, notification.swarm), (sender, SwarmId(0)));
        assert_eq!(&notification.body[..], number.to_be_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_the_app_is_busy() {
    let mut setup = setup(1).await;
    setup.stream(0..1).await;
    setup.covered(1, 1).await;
    for number in 0..5000u32 {
        setup.nodes[0].notify(&number.to_be_bytes());
    }
    // More than all channels hold, before the first is taken.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for number in 0..5000u32 {
        let notification = timeout(Duration::from_secs(10), setup.incoming.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&notification.body[..], number.to_be_bytes());
    }
}
