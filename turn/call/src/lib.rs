//! One WebRTC call with itself through a relay, as a browser makes it: ICE that may use relayed addresses only, DTLS, a data channel.
//!
//! In: a TURN server over UDP, a name and its password, a deadline. Out: how long the call took to set up and each echo to come back, or how
//! far it came. Never: runs in a relay that serves: only its operator's `check` calls, and this crate is all that knows the library.
#![forbid(unsafe_code)]

use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout_at};
use webrtc::api::{APIBuilder, setting_engine::SettingEngine};
use webrtc::data_channel::RTCDataChannel;
use webrtc::data_channel::data_channel_init::RTCDataChannelInit;
use webrtc::ice_transport::ice_server::RTCIceServer;
use webrtc::peer_connection::RTCPeerConnection;
use webrtc::peer_connection::configuration::RTCConfiguration;
use webrtc::peer_connection::policy::ice_transport_policy::RTCIceTransportPolicy;

/// A TURN server as a browser is told of it.
pub struct Server {
    /// `turn:host:port?transport=udp`: the library knows no other transport.
    pub url: String,
    pub username: String,
    pub credential: String,
}

/// A call that came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// From the first packet to an open channel.
    pub set_up: Duration,
    /// Of each packet that came back; those that did not are lost.
    pub round_trips: Vec<Duration>,
    pub sent: u32,
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallFault {
    #[error("the WebRTC client could not be set up")]
    Client,
    #[error("the WebRTC client got no relayed address")]
    NoCandidate,
    #[error("the relayed addresses did not find each other")]
    NotConnected,
    #[error("the call was set up and nothing came back")]
    NoEcho,
}

/// Sends `packets` through the relay and back, one every 20 ms as an audio call does.
pub async fn call(server: &Server, packets: u32, within: Duration) -> Result<Call, CallFault> {
    let began = Instant::now();
    let deadline = tokio::time::Instant::now() + within;
    let (caller, callee) = (end(server).await?, end(server).await?);
    let result = timeout_at(deadline, converse(&caller, &callee, packets, began)).await;
    // The allocations go with their ends; what closing says changes nothing any more.
    let _ = timeout_at(tokio::time::Instant::now() + CLOSE, async {
        let _ = caller.connection.close().await;
        let _ = callee.connection.close().await;
    })
    .await;
    result.unwrap_or(Err(CallFault::NotConnected))
}

struct End {
    connection: RTCPeerConnection,
}

async fn end(server: &Server) -> Result<End, CallFault> {
    let mut engine = SettingEngine::default();
    // A relay on this machine's loopback is a relay.
    engine.set_include_loopback_candidate(true);
    // Nothing better than a relayed address comes: there is none to wait for.
    engine.set_relay_acceptance_min_wait(Some(Duration::ZERO));
    let configuration = RTCConfiguration {
        ice_servers: vec![RTCIceServer {
            urls: vec![server.url.clone()],
            username: server.username.clone(),
            credential: server.credential.clone(),
        }],
        ice_transport_policy: RTCIceTransportPolicy::Relay,
        ..Default::default()
    };
    let api = APIBuilder::new().with_setting_engine(engine).build();
    let connection = api.new_peer_connection(configuration).await;
    let connection = connection.map_err(|_| CallFault::Client)?;
    Ok(End { connection })
}

async fn converse(caller: &End, callee: &End, packets: u32, began: Instant) -> Result<Call, CallFault> {
    let (opened, mut is_open) = mpsc::channel(1);
    let (came, mut arrivals) = mpsc::channel::<u32>(64);
    // Like a call's packets: nothing is sent twice, nothing waits for what was sent before.
    let kind = RTCDataChannelInit {
        ordered: Some(false),
        max_retransmits: Some(0),
        ..Default::default()
    };
    let channel = caller.connection.create_data_channel("check", Some(kind)).await;
    let channel = channel.map_err(|_| CallFault::Client)?;
    channel.on_open(Box::new(move || {
        let _ = opened.try_send(());
        Box::pin(async {})
    }));
    channel.on_message(Box::new(move |message| {
        if let Some(number) = message.data.first_chunk() {
            // More than fit are more than were sent.
            let _ = came.try_send(u32::from_be_bytes(*number));
        }
        Box::pin(async {})
    }));
    callee
        .connection
        .on_data_channel(Box::new(|channel: Arc<RTCDataChannel>| {
            let echo = Arc::clone(&channel);
            channel.on_message(Box::new(move |message| {
                let echo = Arc::clone(&echo);
                Box::pin(async move {
                    let _ = echo.send(&message.data).await;
                })
            }));
            Box::pin(async {})
        }));
    shake_hands(&caller.connection, &callee.connection).await?;
    is_open.recv().await.ok_or(CallFault::NotConnected)?;
    let set_up = began.elapsed();
    let round_trips = echoes(&channel, &mut arrivals, packets).await;
    match round_trips.is_empty() {
        true => Err(CallFault::NoEcho),
        false => Ok(Call {
            set_up,
            round_trips,
            sent: packets,
        }),
    }
}

/// Offer and answer with all candidates in them.
async fn shake_hands(caller: &RTCPeerConnection, callee: &RTCPeerConnection) -> Result<(), CallFault> {
    let refused = |_| CallFault::NotConnected;
    let offer = caller.create_offer(None).await.map_err(refused)?;
    let offer = gathered(caller, offer).await?;
    callee.set_remote_description(offer).await.map_err(refused)?;
    let answer = callee.create_answer(None).await.map_err(refused)?;
    let answer = gathered(callee, answer).await?;
    caller.set_remote_description(answer).await.map_err(refused)
}

async fn gathered(connection: &RTCPeerConnection, description: Description) -> Result<Description, CallFault> {
    let mut complete = connection.gathering_complete_promise().await;
    let set = connection.set_local_description(description).await;
    set.map_err(|_| CallFault::Client)?;
    // The end of the channel is the message.
    let _ = complete.recv().await;
    let described = connection.local_description().await.ok_or(CallFault::NoCandidate)?;
    match described.sdp.contains(" typ relay") {
        true => Ok(described),
        false => Err(CallFault::NoCandidate),
    }
}

type Description = webrtc::peer_connection::sdp::session_description::RTCSessionDescription;

async fn echoes(channel: &RTCDataChannel, arrivals: &mut mpsc::Receiver<u32>, packets: u32) -> Vec<Duration> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent_at = Vec::new();
    let mut round_trips = Vec::new();
    let mut late = tokio::time::Instant::now() + LATE;
    while round_trips.len() < packets as usize {
        tokio::select! {
            _ = ticks.tick(), if sent_at.len() < packets as usize => {
                let mut packet = (sent_at.len() as u32).to_be_bytes().to_vec();
                packet.resize(LENGTH, 0);
                sent_at.push(Instant::now());
                let _ = channel.send(&Bytes::from(packet)).await;
                late = tokio::time::Instant::now() + LATE;
            }
            number = arrivals.recv() => match number {
                Some(number) => round_trips.extend(sent_at.get(number as usize).map(Instant::elapsed)),
                None => break,
            },
            () = tokio::time::sleep_until(late) => break,
        }
    }
    round_trips
}

/// As often as an audio call sends, and as much.
const EVERY: Duration = Duration::from_millis(20);
const LENGTH: usize = 172;
/// A packet that has not come by then is lost: nobody would still play it.
const LATE: Duration = Duration::from_secs(1);
const CLOSE: Duration = Duration::from_secs(1);
