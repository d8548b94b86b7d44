//! Requests, their failures, and pushes, against a listener in clear.

use super::super::frames;
use super::super::vectors::{identity, start};
use super::*;

#[test]
fn the_first_message_is_hi_and_hello_is_up_once() {
    let (mut rpc, now) = open();
    assert_eq!(said(&mut rpc), [[Bytes::from("HI")]]);
    feed(&mut rpc, &[b"HELLO"], now).unwrap();
    feed(&mut rpc, &[b"HELLO"], now).unwrap();
    feed(&mut rpc, &[b"HI"], now).unwrap();
    assert_eq!(events(&mut rpc), [RpcEvent::Up]);
    assert!(said(&mut rpc).is_empty());
}

#[test]
fn without_hello_the_link_ends_after_ten_seconds() {
    let (mut rpc, t0) = open();
    // The node lives: it is only no OxenMQ listener.
    feed(&mut rpc, &[b"x.y"], t0 + Duration::from_secs(9)).unwrap();
    assert_eq!(rpc.handle_timeout(t0 + Duration::from_millis(9_999)), Ok(()));
    assert_eq!(rpc.next_deadline(), t0 + Duration::from_secs(10));
    assert_eq!(
        rpc.handle_timeout(t0 + Duration::from_secs(10)),
        Err(LinkFault::NoHello)
    );
}

#[test]
fn replies_in_any_order_find_their_requests() {
    let (mut rpc, now) = up();
    for request in 0..3 {
        rpc.request(request, "monitor.messages", Some(b"le"), now).unwrap();
    }
    let tags = tags(&mut rpc);
    for request in [2, 0, 1] {
        feed(&mut rpc, &[b"REPLY", &tags[request], b"body", &[request as u8]], now).unwrap();
    }
    let replies = [2u8, 0, 1].map(|request| RpcEvent::Reply {
        request: u64::from(request),
        result: Ok(vec![Bytes::from("body"), Bytes::from(vec![request])]),
    });
    assert_eq!(events(&mut rpc), replies);
}

#[test]
fn late_second_and_foreign_replies_are_ignored() {
    let (mut rpc, t0) = up();
    rpc.request(7, "ping.ping", None, t0).unwrap();
    let tag = tags(&mut rpc).remove(0);
    let late = t0 + Duration::from_secs(15);
    rpc.handle_timeout(late).unwrap();
    assert_eq!(
        events(&mut rpc),
        [RpcEvent::Reply {
            request: 7,
            result: Err(RequestFailure::TimedOut)
        }]
    );
    let mut foreign = tag.to_vec();
    *foreign.first_mut().unwrap() ^= 1;
    for tag in [&tag[..], &foreign, b"", b"short", &[0; 40]] {
        feed(&mut rpc, &[b"REPLY", tag, b"pong"], late).unwrap();
    }
    feed(&mut rpc, &[b"REPLY"], late).unwrap();
    assert!(events(&mut rpc).is_empty());
}

#[test]
fn a_request_times_out_alone_while_others_wait() {
    let (mut rpc, t0) = up();
    rpc.request(1, "a.b", None, t0).unwrap();
    rpc.request(2, "a.b", None, t0 + Duration::from_secs(1)).unwrap();
    feed(&mut rpc, &[b"notify.message"], t0 + Duration::from_secs(14)).unwrap();
    rpc.handle_timeout(t0 + Duration::from_secs(15)).unwrap();
    assert_eq!(
        events(&mut rpc),
        [RpcEvent::Reply {
            request: 1,
            result: Err(RequestFailure::TimedOut)
        }]
    );
    assert_eq!(rpc.next_deadline(), t0 + Duration::from_secs(16));
}

#[test]
fn refusals_fail_their_request_by_tag_and_without_one_the_oldest_of_the_command() {
    let words: [(&[u8], RequestFailure); 5] = [
        (b"FORBIDDEN", RequestFailure::Forbidden),
        (b"FORBIDDEN_SN", RequestFailure::ForbiddenServiceNode),
        (b"NOT_A_SERVICE_NODE", RequestFailure::NotAServiceNode),
        (b"UNKNOWNCOMMAND", RequestFailure::UnknownCommand),
        (b"NO_REPLY_TAG", RequestFailure::NoReplyTag),
    ];
    for (word, failure) in words {
        let (mut rpc, now) = up();
        rpc.request(1, "other.one", None, now).unwrap();
        rpc.request(2, "a.b", None, now).unwrap();
        rpc.request(3, "a.b", None, now).unwrap();
        rpc.request(4, "a.b", None, now).unwrap();
        let tags = tags(&mut rpc);
        feed(&mut rpc, &[word, b"REPLY", &tags[2]], now).unwrap();
        feed(&mut rpc, &[word, b"a.b"], now).unwrap();
        // About nothing that was asked, or about nothing at all.
        feed(&mut rpc, &[word, b"c.d"], now).unwrap();
        feed(&mut rpc, &[word], now).unwrap();
        let refused = [3, 2].map(|request| RpcEvent::Reply {
            request,
            result: Err(failure),
        });
        assert_eq!(events(&mut rpc), refused);
        assert!(said(&mut rpc).is_empty(), "an error word is no command");
    }
}

#[test]
fn the_number_of_open_requests_is_bounded() {
    let (mut rpc, now) = up();
    for request in 0..64 {
        assert!(rpc.takes_requests());
        rpc.request(request, "a.b", None, now).unwrap();
    }
    assert!(!rpc.takes_requests());
    assert_eq!(
        rpc.request(64, "a.b", None, now),
        Err(RequestRefused::TooManyOutstanding)
    );
    let tag = tags(&mut rpc).remove(0);
    feed(&mut rpc, &[b"REPLY", &tag], now).unwrap();
    assert!(rpc.takes_requests());
}

#[test]
fn a_request_before_the_handshake_is_refused_and_before_hello_it_is_sent() {
    let mut rpc = fresh(start());
    assert_eq!(rpc.request(1, "a.b", None, start()), Err(RequestRefused::NotOpen));
    let (mut rpc, now) = open();
    assert_eq!(rpc.request(1, "a.b", None, now), Ok(()));
    let said = said(&mut rpc);
    assert_eq!(said.last().map(Vec::len), Some(2), "command and tag");
}

#[test]
fn tags_are_never_empty_and_those_of_another_connection_differ() {
    let (mut rpc, now) = up();
    rpc.request(1, "a.b", None, now).unwrap();
    rpc.request(2, "a.b", None, now).unwrap();
    let tags = tags(&mut rpc);
    assert!(tags.iter().all(|tag| tag.len() == 15 && tag.starts_with(&[3; 7])));
    assert_ne!(tags.first(), tags.get(1));
}

#[test]
fn every_data_part_of_a_push_is_handed_out_and_a_block_is_told() {
    let (mut rpc, now) = up();
    feed(&mut rpc, &[b"notify.message", b"one", b"two"], now).unwrap();
    feed(&mut rpc, &[b"notify.message"], now).unwrap();
    feed(&mut rpc, &[b"notify.block", b"123", &[0; 32]], now).unwrap();
    let expected = [
        RpcEvent::Notify("one".into()),
        RpcEvent::Notify("two".into()),
        RpcEvent::BlockNotify,
    ];
    assert_eq!(events(&mut rpc), expected);
}

#[test]
fn a_push_beyond_the_limit_is_dropped_and_counted_and_the_others_are_handed_out() {
    let (mut rpc, now) = up();
    let limit = RpcLimits::default().max_push;
    let (largest, larger) = (vec![7; limit], vec![7; limit + 1]);
    feed(&mut rpc, &[b"notify.message", &larger, &largest, &larger, b"one"], now).unwrap();
    assert_eq!(
        events(&mut rpc),
        [RpcEvent::Notify(largest.into()), RpcEvent::Notify("one".into())]
    );
    assert_eq!(rpc.take_pushes_too_large(), 2);
    assert_eq!(rpc.take_pushes_too_large(), 0);
}

#[test]
fn unknown_commands_are_answered_but_not_for_ever_and_not_at_any_length() {
    let (mut rpc, now) = up();
    feed(&mut rpc, &[b"notify.nosuch", b"x"], now).unwrap();
    feed(&mut rpc, &[b""], now).unwrap();
    feed(&mut rpc, &[&[b'x'; 252]], now).unwrap();
    let word = Bytes::from("UNKNOWNCOMMAND");
    assert_eq!(
        said(&mut rpc),
        [[word.clone(), Bytes::from("notify.nosuch")], [word, Bytes::new()]]
    );
    for _ in 0..1000 {
        feed(&mut rpc, &[b"notify.nosuch"], now).unwrap();
    }
    assert!(
        rpc.output().len() < 64 * 60,
        "a peer that does not read is not answered for ever"
    );
}

#[test]
fn bye_ends_the_link() {
    let (mut rpc, now) = up();
    assert_eq!(feed(&mut rpc, &[b"BYE"], now), Err(LinkFault::Bye));
    assert_eq!(feed(&mut rpc, &[b"HELLO"], now), Err(LinkFault::Bye));
    assert_eq!(rpc.handle_timeout(now), Err(LinkFault::Bye));
}

#[test]
fn an_end_before_hello_is_another_fault_than_one_after() {
    assert_eq!(open().0.handle_end(), LinkFault::ClosedBeforeHello);
    assert_eq!(up().0.handle_end(), LinkFault::Closed);
    assert_eq!(fresh(start()).handle_end(), LinkFault::ClosedInGreeting);
}

#[test]
fn an_idle_client_holds_no_memory_beyond_its_own_size() {
    let (mut rpc, now) = up();
    for request in 0..64 {
        rpc.request(request, "a.b", Some(&[0; 1000]), now).unwrap();
    }
    for tag in tags(&mut rpc) {
        feed(&mut rpc, &[b"REPLY", &tag, &[1; 1000]], now).unwrap();
    }
    for _ in 0..100 {
        feed(&mut rpc, &[b"notify.message", &[2; 1000]], now).unwrap();
    }
    assert_eq!(events(&mut rpc).len(), 164);
    assert_eq!(
        (rpc.held_bytes(), rpc.outstanding.capacity(), rpc.events.capacity()),
        (0, 0, 0)
    );
    assert!(size_of::<Rpc>() < 800, "{}", size_of::<Rpc>());
}

#[test]
fn an_event_prints_nothing_private() {
    let parts = || vec![Bytes::from("canary")];
    let reply = |result| RpcEvent::Reply { request: 1, result };
    let events = [
        RpcEvent::Up,
        reply(Ok(parts())),
        reply(Err(RequestFailure::TimedOut)),
        RpcEvent::Notify("canary".into()),
        RpcEvent::BlockNotify,
    ];
    let messages = [Event::HandshakeDone, Event::Message(parts())];
    let printed = format!("{events:?} {events:#?} {messages:?} {messages:#?}");
    assert!(!printed.contains("canary"), "{printed}");
}

fn fresh(now: Instant) -> Rpc {
    let entropy = Entropy {
        ephemeral_secret: Secret::new([1; 32]),
        vouch_nonce: [2; 16],
        tag_prefix: [3; 7],
    };
    Rpc::new(Mechanism::Null, identity(), entropy, RpcLimits::default(), now)
}

fn open() -> (Rpc, Instant) {
    let now = start();
    let mut rpc = fresh(now);
    let mut bytes = Vec::new();
    frames::put_greeting(&mut bytes, frames::NULL_NAME, 0);
    frames::put_command(&mut bytes, b"READY", &frames::metadata(b"ROUTER", b""));
    rpc.handle_bytes(&mut bytes, now).unwrap();
    // Our greeting and READY are of no interest here.
    rpc.output_written(64 + 76);
    (rpc, now)
}

fn up() -> (Rpc, Instant) {
    let (mut rpc, now) = open();
    feed(&mut rpc, &[b"HELLO"], now).unwrap();
    assert_eq!(events(&mut rpc), [RpcEvent::Up]);
    said(&mut rpc);
    (rpc, now)
}

fn feed(rpc: &mut Rpc, parts: &[&[u8]], now: Instant) -> Result<(), LinkFault> {
    let mut bytes = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        frames::put_header(&mut bytes, u8::from(number + 1 < parts.len()), part.len());
        bytes.extend_from_slice(part);
    }
    rpc.handle_bytes(&mut bytes, now)
}

fn events(rpc: &mut Rpc) -> Vec<RpcEvent> {
    std::iter::from_fn(|| rpc.poll_event()).collect()
}

/// The messages that the client wrote since the last call.
fn said(rpc: &mut Rpc) -> Vec<Vec<Bytes>> {
    let output = rpc.output().to_vec();
    rpc.output_written(output.len());
    let (mut rest, mut messages, mut parts) = (output.as_slice(), Vec::new(), Vec::new());
    while let Ok(frames::HeaderRead::Whole(header)) = frames::read_header(rest) {
        let (frame, after) = rest.split_at(header.length + header.body_length as usize);
        parts.push(Bytes::copy_from_slice(frame.get(header.length..).unwrap()));
        if !header.more {
            messages.push(std::mem::take(&mut parts));
        }
        rest = after;
    }
    messages
}

fn tags(rpc: &mut Rpc) -> Vec<Bytes> {
    said(rpc).into_iter().map(|mut parts| parts.remove(1)).collect()
}
