//! A burst of 20,000 messages, each stored at every node of its swarm at once, counted where the phones would get them.

#[path = "support/report.rs"]
mod report;
#[path = "support/world.rs"]
mod world;

use quietline_lab::lab::Lab;
use report::Goal;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MESSAGES: usize = 20_000;

fn main() {
    // 252 nodes, as elsewhere here: each keeps its share of the burst, 556 messages of the 1,000 that OxenMQ lets wait.
    world::runtime().block_on(burst(36, Goal::AtMost(0.0)));
    // Three swarms: what one node has to send is several times what it may keep for one connection, and it sends as fast as it can
    // compute. What is lost then is lost inside the nodes.
    world::runtime().block_on(burst(3, Goal::None));
}

async fn burst(swarms: usize, goal: Goal) {
    let settings = world::settings("burst", swarms);
    let mut lab = Lab::start(settings).await.expect("the lab starts");
    let phones = world::phones(MESSAGES);
    world::subscribe_all(&lab, &phones).await;
    let map = world::Swarms::of(&lab);
    lab.deliveries.count_only(true);
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let noted = Arc::clone(&seen);
    lab.deliveries.observe(move |delivery| {
        let mut seen = noted.lock().expect("nobody panics while holding it");
        *seen.entry(delivery.token.clone()).or_default() += 1;
    });
    let before = lab.fleet.counts();
    let cpu = lab.notifier().processor_time().unwrap_or_default();
    let began = Instant::now();
    for (number, phone) in phones.iter().enumerate() {
        lab.fleet.store(
            map.nodes(phone.account()).iter().copied(),
            &world::message(phone, number as u64),
        );
    }
    lab.fleet.settle().expect("the nodes live");
    let pushed_in = began.elapsed();
    let mut last = (0, Instant::now());
    let found = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let found = seen.lock().expect("nobody panics while holding it").len();
        if found != last.0 {
            last = (found, Instant::now());
        }
        if found >= MESSAGES || last.1.elapsed() > Duration::from_secs(15) {
            break found;
        }
    };
    let took = last.1.duration_since(began);
    let cpu = lab.notifier().processor_time().unwrap_or_default().saturating_sub(cpu);
    let counts = lab.fleet.counts();
    let twice = seen
        .lock()
        .expect("nobody panics while holding it")
        .values()
        .filter(|times| **times > 1)
        .count();
    let (pushed, lost) = (counts.pushed - before.pushed, counts.lost - before.lost);
    report::figure(
        &format!("burst: messages lost of 20,000 in {swarms} swarms"),
        (MESSAGES - found) as f64,
        "messages",
        goal,
        &[],
    );
    report::figure(
        "burst: messages from node to provider",
        found as f64 / took.as_secs_f64(),
        "/s",
        Goal::None,
        &[("the fakes' own pushing", MESSAGES as f64 / pushed_in.as_secs_f64())],
    );
    report::note(&format!(
        "the nodes pushed {pushed} copies and lost {lost} because a queue was full; delivered twice: {twice}; {} of the \
             notifier's processor time a message",
        report::each(cpu, MESSAGES as u64)
    ));
}
