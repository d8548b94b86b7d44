//! `quietline-lab`: starts a notifier with a whole world around it, and shows a message travelling.
//!
//! In: the command line. Out: plain lines; exit code 0 if nothing was lost. Never: reaches beyond this machine.

mod screen;

use clap::{Args, Parser, Subcommand};
use quietline_lab::lab::{Lab, LabError, LabSettings, OxendKind, Sent};
use quietline_lab::ledger::Ledger;
use quietline_lab::notifier::NotifierError;
use quietline_lab::phone::{Phone, PhoneBody, PushService};
use quietline_lab::sodium;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A subscription must have reached its nodes, and a message its provider, within this time.
const PATIENCE: Duration = Duration::from_secs(20);
/// Messages of the stream live as long as the clients' do.
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);

#[derive(Parser)]
#[command(
    version,
    about = "A push relay and everything around it, on this machine",
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
    /// Start fakes, phones and a notifier, and watch messages arrive until Ctrl-C (the default)
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
            if matches!(error, RunError::Lab(LabError::Notifier(NotifierError::NoBinary))) {
                screen::say("Build both with: cargo build --bin quietline-notifier --bin quietline-lab");
            } else {
                let log = arguments.folder.join("notifier.log");
                screen::say(&format!("What the notifier said is in {}", log.display()));
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &RunArguments) -> Result<bool, RunError> {
    screen::say("Quietline lab: a push relay and everything around it, on this machine. Nothing leaves it.\n");
    let mut stop = Stop::new().map_err(RunError::Signals)?;
    let settings = LabSettings {
        binary: arguments.notifier.clone(),
        swarms: arguments.swarms as usize,
        nodes_per_swarm: arguments.nodes_per_swarm as usize,
        oxend: OxendKind::Ipc,
        ..LabSettings::in_folder(&arguments.folder)
    };
    let mut lab = Lab::surround(settings)?;
    screen::world(&lab, arguments.phones);
    let started = Instant::now();
    tokio::select! {
        ready = lab.start_notifier() => ready?,
        () = stop.asked() => return Ok(true),
    }
    screen::notifier(&lab, started.elapsed());

    let finished = tokio::select! {
        finished = show(&lab, arguments) => Some(finished),
        () = stop.asked() => None,
    };
    let (ledger, phones) = match finished {
        Some(shown) => shown?,
        None => {
            screen::say("\nStopping before the stream began.");
            lab.stop_notifier(PATIENCE).await?;
            return Ok(true);
        }
    };
    stream(&mut lab, arguments, &ledger, &phones, &mut stop).await;
    close(&mut lab, &ledger, &mut stop).await
}

/// One message step by step, then everybody subscribes.
async fn show(lab: &Lab, arguments: &RunArguments) -> Result<(Arc<Ledger>, Vec<Phone>), RunError> {
    let phone = lab.phone(PushService::Apns);
    journey(lab, &phone).await?;

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
    Ok((ledger, phones))
}

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
async fn stream(lab: &mut Lab, arguments: &RunArguments, ledger: &Ledger, phones: &[Phone], stop: &mut Stop) {
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
            send_one(lab, ledger, phones);
            sent += 1;
        }
        if elapsed.as_secs() > lines {
            lines = elapsed.as_secs();
            screen::second(lines, ledger, lab.notifier().resident_bytes());
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

/// Waits for what is on the way, ends the notifier, sums up. `true` if all is well.
async fn close(lab: &mut Lab, ledger: &Ledger, stop: &mut Stop) -> Result<bool, RunError> {
    let deadline = Instant::now() + PATIENCE;
    while ledger.on_the_way() > 0 && Instant::now() < deadline {
        tokio::select! {
            () = stop.asked() => break,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let lost = ledger.on_the_way();
    let status = lab.stop_notifier(Duration::from_secs(60)).await?;
    let ended_well = status.is_none_or(|status| status.success());
    let complaints = lab.deliveries.complaints();
    screen::summary(ledger, lost, ended_well, &complaints);
    let totals = ledger.totals();
    Ok(lost == 0 && totals.strange == 0 && complaints.is_empty() && ended_well)
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
