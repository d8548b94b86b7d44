//! `quietline-lab`: starts both servers with a whole world around them, and shows a message and a relayed packet travelling.
//!
//! In: the command line. Out: plain lines; exit code 0 if nothing was lost. Never: reaches beyond this machine.

mod screen;

use clap::{Args, Parser, Subcommand};
use quietline_lab::lab::{Lab, LabError, LabSettings, OxendKind, Sent};
use quietline_lab::ledger::Ledger;
use quietline_lab::notifier::NotifierError;
use quietline_lab::phone::{Phone, PhoneBody, PushService};
use quietline_lab::settings::turn_server;
use quietline_lab::sodium;
use quietline_lab::turn::call::{Call, Ends};
use quietline_lab::turn::client::{Packet, Who, arrived};
use quietline_lab::turn::relay::{Relay, RelayError, peer};
use quietline_lab::turn::server::Transport;
use quietline_lab::turn::stun::attribute;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A subscription must have reached its nodes, and a message its provider, within this time.
const PATIENCE: Duration = Duration::from_secs(20);
/// Messages of the stream live as long as the clients' do.
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);
/// And those of a call as long as it may ring.
const RING: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(
    version,
    about = "A push relay, a call relay and everything around them, on this machine",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Start fakes, phones and both servers, and watch messages and calls arrive until Ctrl-C (the default)
    Run(RunArguments),
}

#[derive(Args)]
struct RunArguments {
    /// Where keys, settings, databases and the notifier's log go
    #[arg(long, default_value = "run")]
    folder: PathBuf,
    /// The quietline-notifier to run; without it the one beside this program
    #[arg(long)]
    notifier: Option<PathBuf>,
    /// The quietline-turn to run; without it the one beside this program
    #[arg(long)]
    relay: Option<PathBuf>,
    /// End by itself after so many seconds of the stream
    #[arg(long)]
    seconds: Option<u64>,
    /// Messages a second in the stream
    #[arg(long, default_value_t = 25)]
    rate: u32,
    /// Phones, each with its own account
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    phones: u32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=300))]
    swarms: u32,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    nodes_per_swarm: u32,
}

/// Why a run ended badly.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{0}")]
    Lab(#[from] LabError),
    #[error("signals: {0}")]
    Signals(std::io::Error),
    #[error("the notifier refused a subscription")]
    Refused,
    #[error("a subscription did not reach enough storage nodes in time")]
    NotWatched,
    #[error("the message did not reach its provider in time")]
    NotDelivered,
    #[error("the phone read something else than what was sent")]
    WrongText,
    #[error("{0}")]
    Relay(#[from] RelayError),
    #[error("a socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("the relay refused a client: {0}")]
    RelayRefused(&'static str),
    #[error("the notifier gave no credentials for a call")]
    NotTold,
    #[error("a relayed packet did not arrive")]
    NotRelayed,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let arguments = match arguments.command {
        Some(Command::Run(arguments)) => arguments,
        None => arguments.run,
    };
    match run(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            screen::say(&format!("\nThe lab gave up: {error}"));
            let has_no_binary = matches!(
                error,
                RunError::Lab(LabError::Notifier(NotifierError::NoBinary)) | RunError::Relay(RelayError::NoBinary)
            );
            if has_no_binary {
                screen::say(
                    "Build all with: cargo build --bin quietline-notifier --bin quietline-turn --bin quietline-lab",
                );
            } else {
                for (server, log) in [("notifier", "notifier.log"), ("relay", "turn.log")] {
                    let log = arguments.folder.join(log);
                    screen::say(&format!("What the {server} said is in {}", log.display()));
                }
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &RunArguments) -> Result<bool, RunError> {
    screen::say(
        "Quietline lab: a push relay, a call relay and everything around them, on this machine. Nothing leaves it.\n",
    );
    let mut stop = Stop::new().map_err(RunError::Signals)?;
    let settings = LabSettings {
        binary: arguments.notifier.clone(),
        swarms: arguments.swarms as usize,
        nodes_per_swarm: arguments.nodes_per_swarm as usize,
        oxend: OxendKind::Ipc,
        ..LabSettings::in_folder(&arguments.folder)
    };
    let mut lab = Lab::surround(settings)?;
    let mut relay = Relay::prepare(&arguments.folder, arguments.relay.as_deref(), |_| ())?;
    let told = turn_server("the lab", &[relay.url()], "keys/turn-secret");
    let told = ("turn.server".to_owned(), toml::Value::Array(vec![told]));
    lab.settings.overrides.push(told);
    lab.write_settings()?;
    screen::world(&lab, arguments.phones);
    let started = Instant::now();
    tokio::select! {
        ready = lab.start_notifier() => ready?,
        () = stop.asked() => return Ok(true),
    }
    screen::notifier(&lab, started.elapsed());
    let started = Instant::now();
    tokio::task::block_in_place(|| relay.start(PATIENCE))?;
    screen::relay(&relay, started.elapsed());

    let finished = tokio::select! {
        finished = show(&lab, &relay, arguments) => Some(finished),
        () = stop.asked() => None,
    };
    let (ledger, phones, call) = match finished {
        Some(shown) => shown?,
        None => {
            screen::say("\nStopping before the stream began.");
            lab.stop_notifier(PATIENCE).await?;
            return Ok(true);
        }
    };
    let mut world = World {
        lab,
        relay,
        ledger,
        phones,
        call,
    };
    stream(&mut world, arguments, &mut stop).await;
    close(world, &mut stop).await
}

/// Everything that runs while messages and packets flow.
struct World {
    lab: Lab,
    relay: Relay,
    ledger: Arc<Ledger>,
    phones: Vec<Phone>,
    call: Call,
}

/// One message and one call step by step, then everybody subscribes.
async fn show(lab: &Lab, relay: &Relay, arguments: &RunArguments) -> Result<(Arc<Ledger>, Vec<Phone>, Call), RunError> {
    let phone = lab.phone(PushService::Apns);
    journey(lab, &phone).await?;
    let call_journey = screen::RelayJourney::begin();
    let callers = ring(lab, &phone, &call_journey).await?;
    let call = Call::begin(tokio::task::block_in_place(|| {
        relayed_journey(relay, &call_journey, callers)
    })?);

    let ledger = Arc::new(Ledger::default());
    ledger.know(&phone);
    let books = Arc::clone(&ledger);
    lab.deliveries.observe(move |delivery| books.note_delivery(delivery));
    lab.deliveries.count_only(true);

    let started = Instant::now();
    let mut phones = vec![phone];
    for number in 1..arguments.phones as usize {
        let phone = lab.phone(PushService::ALL[number % PushService::ALL.len()]);
        if !lab.subscribe(&phone).await?.is_success() {
            return Err(RunError::Refused);
        }
        ledger.know(&phone);
        phones.push(phone);
    }
    for phone in &phones {
        lab.wait_watched(phone, enough(lab), PATIENCE)
            .await
            .ok_or(RunError::NotWatched)?;
    }
    screen::everybody(phones.len(), started.elapsed(), arguments.rate);
    Ok((ledger, phones, call))
}

/// Somebody calls the phone; what its two ends are told of the relay.
async fn ring(lab: &Lab, phone: &Phone, journey: &screen::RelayJourney) -> Result<[Who; 2], RunError> {
    let sent = lab.send(phone, 0, b"an offer of a call", RING);
    let (delivery, _) = lab.next_delivery(phone, PATIENCE).await.ok_or(RunError::NotDelivered)?;
    journey.rung(delivery.at.saturating_duration_since(sent.at));
    let mut callers = Vec::new();
    let mut bytes = 0;
    for _ in 0..2 {
        let reply = lab.credentials().await?;
        bytes = reply.reply.as_ref().map_or(0, |reply| reply.body.len());
        let answer = reply.json().ok_or(RunError::NotTold)?;
        let server = &answer["iceServers"][0];
        let text = |name: &str| server[name].as_str().ok_or(RunError::NotTold);
        callers.push(Who::new(text("username")?, text("credential")?));
    }
    journey.told(bytes);
    callers.try_into().map_err(|_| RunError::NotTold)
}

/// A packet to a peer and back, then from client to client; the call that is left over.
fn relayed_journey(
    relay: &Relay,
    journey: &screen::RelayJourney,
    [caller, called]: [Who; 2],
) -> Result<Ends, RunError> {
    let text = b"Can you hear me?";
    let mut caller = relay.client(Transport::Udp, caller)?;
    let outside = peer()?;
    let at = outside.local_addr()?;
    let challenge = caller.challenge().ok_or(RunError::RelayRefused("no challenge"))?;
    journey.challenged(challenge.bytes.len());
    let answer = caller.allocate_with(|request| request);
    let relayed = answer.and_then(|answer| answer.address(attribute::XOR_RELAYED_ADDRESS));
    let relayed = relayed.ok_or(RunError::RelayRefused("no relayed address"))?;
    journey.allocated(relayed);
    if caller.bind(CHANNEL_OUT, at) != 0 {
        return Err(RunError::RelayRefused("no channel to the peer"));
    }
    journey.bound(at, CHANNEL_OUT);
    let sent = Instant::now();
    caller.send_on(CHANNEL_OUT, text);
    let (from, came) = arrived(&outside, PATIENCE).ok_or(RunError::NotRelayed)?;
    if from != relayed || came != text {
        return Err(RunError::NotRelayed);
    }
    journey.at_peer(text.len(), sent.elapsed(), from);
    let sent = Instant::now();
    outside.send_to(text, from)?;
    if caller.next_within(PATIENCE) != Some(Packet::Channel(CHANNEL_OUT, text.to_vec())) {
        return Err(RunError::NotRelayed);
    }
    journey.back(text.len(), sent.elapsed());

    let mut called = relay.client(Transport::Tls, called)?;
    let answer = called.allocate_with(|request| request);
    let other = answer.and_then(|answer| answer.address(attribute::XOR_RELAYED_ADDRESS));
    let other = other.ok_or(RunError::RelayRefused("no relayed address over TLS"))?;
    let ends = Ends::join([caller, called], [relayed, other]);
    let mut ends = ends.ok_or(RunError::RelayRefused("no channel to another client"))?;
    journey.joined();
    let took = ends.pass(false, text).ok_or(RunError::NotRelayed)?;
    let took_back = ends.pass(true, text).ok_or(RunError::NotRelayed)?;
    journey.within(took, took_back);
    Ok(ends)
}

/// The channel of the peer that is no client.
const CHANNEL_OUT: u16 = 0x4001;

async fn journey(lab: &Lab, phone: &Phone) -> Result<(), RunError> {
    let text = "Are you coming tonight?";
    let journey = screen::Journey::begin();
    let answer = lab.subscribe(phone).await?;
    if !answer.is_success() {
        return Err(RunError::Refused);
    }
    journey.subscribed();
    let watchers = lab
        .wait_watched(phone, enough(lab), PATIENCE)
        .await
        .ok_or(RunError::NotWatched)?;
    journey.watched(watchers.len(), lab.settings.nodes_per_swarm);
    let before = lab.fleet.counts().pushed;
    let sent = lab.send(phone, 0, text.as_bytes(), FORTNIGHT);
    journey.stored(sent.nodes.len(), sent.at);
    let (delivery, message) = lab.next_delivery(phone, PATIENCE).await.ok_or(RunError::NotDelivered)?;
    // The nodes have certainly pushed by now; their threads count a moment later.
    lab.fleet.settle().map_err(LabError::from)?;
    journey.notified(lab.fleet.counts().pushed - before);
    journey.sealed(delivery.enc_payload.len(), text.len());
    journey.delivered(&delivery);
    if message.body != PhoneBody::Data(text.as_bytes().to_vec()) || message.hash != sent.hash {
        return Err(RunError::WrongText);
    }
    journey.decrypted(text, delivery.at.saturating_duration_since(sent.at));
    Ok(())
}

/// How many nodes a notifier watches with its default settings.
fn enough(lab: &Lab) -> usize {
    lab.settings.nodes_per_swarm.min(3)
}

/// Messages at an even pace, one line a second, until the time is over or somebody stops it.
async fn stream(world: &mut World, arguments: &RunArguments, stop: &mut Stop) {
    screen::head();
    let started = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut sent, mut lines) = (0_u64, 0_u64);
    loop {
        tokio::select! {
            () = stop.asked() => return,
            _ = pace.tick() => {}
        }
        let elapsed = started.elapsed();
        let is_over = arguments
            .seconds
            .is_some_and(|seconds| elapsed >= Duration::from_secs(seconds));
        let due = (elapsed.as_secs_f64() * f64::from(arguments.rate)) as u64;
        while sent < due && !is_over {
            send_one(&world.lab, &world.ledger, &world.phones);
            sent += 1;
        }
        if elapsed.as_secs() > lines {
            lines = elapsed.as_secs();
            let memory = [world.lab.notifier().resident_bytes(), world.relay.resident_bytes()];
            screen::second(lines, &world.ledger, &world.call, memory);
        }
        if is_over {
            return;
        }
    }
}

/// To one phone by chance, short or long by chance; one in twenty is too long to be carried.
fn send_one(lab: &Lab, ledger: &Ledger, phones: &[Phone]) -> Option<Sent> {
    let [a, b, c, d] = sodium::random::<4>();
    let phone = phones.get(usize::from(u16::from_be_bytes([a, b])) % phones.len())?;
    let length = if c < 13 { 2_600 } else { 40 + usize::from(d) * 8 };
    let mut data = sodium::random::<2_600>().to_vec();
    data.truncate(length);
    let hash = quietline_lab::node::message_hash(phone.account(), 0, &data);
    ledger.note_sent(phone, hash);
    Some(lab.send(phone, 0, &data, FORTNIGHT))
}

/// Waits for what is on the way, ends both servers, sums up. `true` if all is well.
async fn close(world: World, stop: &mut Stop) -> Result<bool, RunError> {
    let World {
        mut lab,
        mut relay,
        ledger,
        call,
        ..
    } = world;
    let deadline = Instant::now() + PATIENCE;
    while ledger.on_the_way() > 0 && Instant::now() < deadline {
        tokio::select! {
            () = stop.asked() => break,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let lost = ledger.on_the_way();
    // With its last call a relay that was asked to end has nothing left to wait for.
    let ((relayed, unheard), relay_ended_well) = tokio::task::block_in_place(|| {
        let counts = call.end();
        relay.ask_to_end();
        (counts, relay.wait(PATIENCE))
    });
    let relay_ended_well = relay_ended_well?;
    let relay_ended_well = relay_ended_well.is_none_or(|status| status.success());
    let status = lab.stop_notifier(Duration::from_secs(60)).await?;
    let ended_well = status.is_none_or(|status| status.success());
    let complaints = lab.deliveries.complaints();
    screen::summary(&ledger, lost, ended_well, &complaints);
    screen::relay_summary(relayed, unheard, relay_ended_well);
    let totals = ledger.totals();
    let is_well = lost == 0 && totals.strange == 0 && complaints.is_empty() && ended_well;
    Ok(is_well && unheard == 0 && relay_ended_well)
}

/// Ctrl-C, or SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
