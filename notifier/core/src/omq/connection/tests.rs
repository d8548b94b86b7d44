//! Every trap of the wire, one test each.

use super::super::listener::Listener;
use super::super::vectors::{curve_connection_with, identity, shake_hands, start, take_output};
use super::*;
use proptest::prelude::*;

#[test]
fn messages_arrive_whole_in_pieces_of_any_size() {
    for piece in [1, 2, 3, 9, 10, 33, 64, 100, 1000, 100_000] {
        let (mut connection, mut listener, now) = open();
        let large = vec![b'x'; 70_000];
        let mut bytes = listener.message(&[b"notify.message", b"one"]);
        bytes.extend(listener.message(&[b"REPLY", b"", &large]));
        bytes.extend(listener.message(&[b"HELLO"]));
        for chunk in bytes.chunks_mut(piece) {
            connection.handle_bytes(chunk, now).unwrap();
            assert!(connection.held_bytes() < 70_100);
        }
        assert_eq!(
            messages(&mut connection),
            [
                vec![Bytes::from("notify.message"), Bytes::from("one")],
                vec![Bytes::from("REPLY"), Bytes::new(), Bytes::from(large)],
                vec![Bytes::from("HELLO")],
            ]
        );
        assert_eq!(connection.held_bytes(), 0, "a connection that waits holds no buffer");
    }
}

#[test]
fn a_whole_handshake_in_single_bytes_is_accepted() {
    let now = start();
    let (mut connection, mut listener) = (curve_connection_with(Limits::default(), now), Listener::new());
    let feed = |connection: &mut Connection, bytes: Vec<u8>| {
        bytes
            .into_iter()
            .for_each(|byte| connection.handle_bytes(&mut [byte], now).unwrap());
    };
    assert_eq!(take_output(&mut connection).len(), GREETING_LENGTH);
    feed(&mut connection, Listener::greeting());
    let hello = take_output(&mut connection);
    assert_eq!(hello.len(), 202);
    feed(&mut connection, listener.welcome(&hello));
    assert_eq!(take_output(&mut connection).len(), 325 + 9);
    feed(&mut connection, listener.ready(&frames::metadata(b"ROUTER", b"")));
    assert_eq!(connection.poll_event(), Some(Event::HandshakeDone));
}

#[test]
fn a_message_frame_has_no_command_bit_outside_and_its_nonce_grows_from_three() {
    let (mut connection, listener, _) = open();
    assert!(connection.send_message(&[b"a", b"b"]));
    let sent = take_output(&mut connection);
    assert_eq!(sent.first(), Some(&0));
    assert_eq!(sent.get(10..18), Some(&[0, 0, 0, 0, 0, 0, 0, 3][..]));
    assert_eq!(listener.open(&sent), [(1, b"a".to_vec()), (0, b"b".to_vec())]);
}

#[test]
fn a_large_part_is_sent_in_a_long_frame() {
    let (mut connection, listener, _) = open();
    let body = vec![7; 5_000_000];
    assert!(connection.send_message(&[&body]));
    let sent = take_output(&mut connection);
    assert_eq!(sent.first(), Some(&2));
    assert_eq!(listener.open(&sent), [(0, body)]);
    assert_eq!(connection.output.capacity(), 0, "what was written is freed");
}

#[test]
fn a_repeated_nonce_is_a_fault_and_a_gap_is_none() {
    let (mut connection, mut listener, now) = open();
    listener.next_nonce += 1000;
    assert_eq!(connection.handle_bytes(&mut listener.message(&[b"HELLO"]), now), Ok(()));
    listener.next_nonce -= 1;
    assert_eq!(
        connection.handle_bytes(&mut listener.message(&[b"HELLO"]), now),
        Err(LinkFault::NonceNotGrowing)
    );
    assert_eq!(messages(&mut connection).len(), 1);
    assert_eq!(
        connection.handle_bytes(&mut listener.message(&[b"HELLO"]), now),
        Err(LinkFault::NonceNotGrowing)
    );
}

#[test]
fn a_box_with_one_changed_bit_does_not_open() {
    for position in [18, 33, 35, 40] {
        let (mut connection, mut listener, now) = open();
        let mut frame = listener.frame(0, b"HELLO!!!");
        *frame.get_mut(position).unwrap() ^= 1;
        assert_eq!(
            connection.handle_bytes(&mut frame, now),
            Err(LinkFault::MessageBoxNotOpened),
            "{position}"
        );
        assert!(messages(&mut connection).is_empty());
    }
}

#[test]
fn a_frame_outside_of_a_box_is_a_fault() {
    let (mut connection, _, now) = open();
    let mut clear = Vec::new();
    frames::put_header(&mut clear, 0, 40);
    clear.extend([b'x'; 40]);
    assert_eq!(
        connection.handle_bytes(&mut clear, now),
        Err(LinkFault::UnexpectedFrame)
    );

    let (mut connection, mut listener, now) = open();
    let mut marked = listener.frame_with(frames::COMMAND, 0, b"HELLO");
    assert_eq!(
        connection.handle_bytes(&mut marked, now),
        Err(LinkFault::UnexpectedFrame)
    );
}

#[test]
fn reserved_flags_inside_of_a_box_are_a_fault() {
    for flags in [3, 4, 0x80] {
        let (mut connection, mut listener, now) = open();
        assert_eq!(
            connection.handle_bytes(&mut listener.frame(flags, b"x"), now),
            Err(LinkFault::ReservedFlags)
        );
    }
}

#[test]
fn a_box_that_is_cut_short_is_a_malformed_command() {
    for length in [0, 1, 7, 8, 15, 16, 31, 32] {
        let (mut connection, _, now) = open();
        let mut frame = vec![0, length];
        frame.extend(
            b"\x07MESSAGE\0\0\0\0\0\0\0\x09aaaaaaaaaaaaaaaa"
                .iter()
                .take(usize::from(length)),
        );
        assert_eq!(
            connection.handle_bytes(&mut frame, now),
            Err(LinkFault::MalformedCommand),
            "{length}"
        );
    }
}

#[test]
fn an_announced_length_beyond_the_limit_is_refused_before_its_body_comes() {
    let (mut connection, _, now) = open();
    let mut header = vec![2];
    header.extend((10u64 << 20).saturating_add(1).to_be_bytes());
    assert_eq!(
        connection.handle_bytes(&mut header, now),
        Err(LinkFault::FrameTooLarge {
            length: (10 << 20) + 1,
            limit: 10 << 20
        })
    );
    assert_eq!(connection.held_bytes(), 0);

    let (mut connection, _, now) = open();
    let mut endless = [[2; 1].as_slice(), &[255; 8]].concat();
    assert!(matches!(
        connection.handle_bytes(&mut endless, now),
        Err(LinkFault::FrameTooLarge { .. })
    ));
}

#[test]
fn memory_follows_what_came_and_not_what_was_announced() {
    let (mut connection, _, now) = open();
    let mut header = vec![2];
    header.extend((10u64 << 20).to_be_bytes());
    connection.handle_bytes(&mut header, now).unwrap();
    connection.handle_bytes(&mut [1; 100], now).unwrap();
    assert!(connection.held_bytes() < 1000);
}

#[test]
fn before_the_end_of_the_handshake_a_large_frame_is_refused() {
    let now = start();
    let mut connection = curve_connection_with(Limits::default(), now);
    connection.handle_bytes(&mut Listener::greeting(), now).unwrap();
    let mut header = vec![6, 0, 0, 0, 0, 0, 0, 0x10, 1];
    assert_eq!(
        connection.handle_bytes(&mut header, now),
        Err(LinkFault::FrameTooLarge {
            length: 4097,
            limit: 4096
        })
    );
}

#[test]
fn a_message_of_endless_parts_is_cut_off_by_count_and_by_size() {
    let (mut connection, mut listener, now) = open();
    for _ in 0..16 {
        connection.handle_bytes(&mut listener.frame(1, b""), now).unwrap();
    }
    assert_eq!(
        connection.handle_bytes(&mut listener.frame(1, b""), now),
        Err(LinkFault::TooManyParts { limit: 16 })
    );

    let limits = Limits {
        max_message: 1000,
        ..Limits::default()
    };
    let (mut connection, mut listener, now) = open_with(limits);
    connection.handle_bytes(&mut listener.frame(1, &[0; 600]), now).unwrap();
    let second = listener.frame(1, &[0; 600]);
    let mut header = second.get(..9).unwrap().to_vec();
    // The header is enough to know.
    assert_eq!(
        connection.handle_bytes(&mut header, now),
        Err(LinkFault::MessageTooLarge { limit: 1000 })
    );
    assert_eq!(connection.held_bytes(), 0);
}

#[test]
fn a_ping_between_the_parts_of_a_message_is_answered_and_the_message_stays_whole() {
    let (mut connection, mut listener, now) = open();
    let mut bytes = listener.frame(1, b"notify.message");
    bytes.extend(listener.frame(2, b"\x04PING\0\0abc"));
    bytes.extend(listener.frame(0, b"body"));
    connection.handle_bytes(&mut bytes, now).unwrap();
    assert_eq!(
        messages(&mut connection),
        [[Bytes::from("notify.message"), Bytes::from("body")]]
    );
    assert_eq!(
        listener.open(&take_output(&mut connection)),
        [(2, b"\x04PONGabc".to_vec())]
    );
}

#[test]
fn malformed_pings_are_faults_and_unknown_commands_are_ignored() {
    for bad in [
        &b"\x04PING"[..],
        b"\x04PING\0",
        b"\x04PING\x00\x000123456789abcdefg",
        b"",
        b"\0",
        b"\xffPING",
    ] {
        let (mut connection, mut listener, now) = open();
        assert_eq!(
            connection.handle_bytes(&mut listener.frame(2, bad), now),
            Err(LinkFault::MalformedCommand)
        );
    }
    let (mut connection, mut listener, now) = open();
    assert_eq!(
        connection.handle_bytes(&mut listener.frame(2, b"\x09SUBSCRIBEx"), now),
        Ok(())
    );
    let late_error = &mut listener.frame(2, b"\x05ERROR\x03400");
    assert_eq!(
        connection.handle_bytes(late_error, now),
        Err(LinkFault::RefusedByPeer { status: 400 })
    );
}

#[test]
fn a_peer_that_pings_and_does_not_read_is_not_answered_for_ever() {
    let (mut connection, mut listener, now) = open();
    for _ in 0..10_000 {
        connection
            .handle_bytes(&mut listener.frame(2, b"\x04PING\0\0"), now)
            .unwrap();
    }
    assert_eq!(listener.open(connection.output()).len(), usize::from(ANSWERS_UNREAD));
    // Once it has read, it is answered again.
    take_output(&mut connection);
    connection
        .handle_bytes(&mut listener.frame(2, b"\x04PING\0\0"), now)
        .unwrap();
    assert_eq!(listener.open(connection.output()).len(), 1);
}

#[test]
fn silence_is_pinged_after_ten_seconds_and_is_death_after_twenty() {
    let (mut connection, listener, t0) = open();
    let at = |seconds| t0 + Duration::from_secs(seconds);
    assert_eq!(connection.next_deadline(), at(10));
    connection.handle_timeout(at(10)).unwrap();
    assert_eq!(
        listener.open(&take_output(&mut connection)),
        [(2, b"\x04PING\0\0".to_vec())]
    );
    assert_eq!(connection.next_deadline(), at(20));
    connection.handle_timeout(at(19)).unwrap();
    assert_eq!(take_output(&mut connection).len(), 0, "one ping is enough");
    assert_eq!(connection.handle_timeout(at(20)), Err(LinkFault::PeerSilent));
}

#[test]
fn any_byte_is_life() {
    let (mut connection, mut listener, t0) = open();
    let at = |seconds| t0 + Duration::from_secs(seconds);
    connection.handle_timeout(at(10)).unwrap();
    connection
        .handle_bytes(&mut listener.frame(2, b"\x04PONG"), at(19))
        .unwrap();
    assert_eq!(connection.next_deadline(), at(29));
    assert_eq!(connection.handle_timeout(at(20)), Ok(()));
}

#[test]
fn a_trickle_that_never_completes_a_frame_is_a_fault_after_a_minute() {
    let (mut connection, mut listener, t0) = open();
    let mut frame = listener.frame(0, &[0; 1000]);
    for (second, byte) in (0..60).zip(frame.iter_mut()) {
        let now = t0 + Duration::from_secs(second);
        connection.handle_bytes(std::slice::from_mut(byte), now).unwrap();
        connection.handle_timeout(now).unwrap();
    }
    assert!(connection.next_deadline() <= t0 + Duration::from_secs(60));
    assert_eq!(
        connection.handle_timeout(t0 + Duration::from_secs(60)),
        Err(LinkFault::FrameStalled)
    );
}

#[test]
fn a_message_whose_parts_trickle_in_whole_frames_is_a_fault_after_a_minute() {
    let (mut connection, mut listener, t0) = open();
    for tens in 0..6 {
        let now = t0 + Duration::from_secs(10 * tens);
        connection.handle_bytes(&mut listener.frame(1, b"part"), now).unwrap();
        connection.handle_timeout(now).unwrap();
    }
    assert!(connection.next_deadline() <= t0 + Duration::from_secs(60));
    // Another frame is life, and yet no end of the message.
    let late = t0 + Duration::from_secs(60);
    connection.handle_bytes(&mut listener.frame(1, b"part"), late).unwrap();
    assert_eq!(connection.handle_timeout(late), Err(LinkFault::MessageStalled));
    assert_eq!(connection.held_bytes(), 0);
}

#[test]
fn a_pause_of_ours_does_not_count_against_a_begun_message() {
    let (mut connection, mut listener, t0) = open();
    let at = |seconds| t0 + Duration::from_secs(seconds);
    connection.handle_bytes(&mut listener.frame(1, b"part"), t0).unwrap();
    connection.set_reading_paused(true, at(1));
    connection.handle_timeout(at(300)).unwrap();
    connection.set_reading_paused(false, at(300));
    connection
        .handle_bytes(&mut listener.frame(0, b"end"), at(301))
        .unwrap();
    connection.handle_timeout(at(310)).unwrap();
    assert_eq!(messages(&mut connection), [["part", "end"].map(Bytes::from)]);
}

#[test]
fn while_reading_is_paused_the_peer_is_pinged_and_cannot_die() {
    let (mut connection, mut listener, t0) = open();
    let at = |seconds| t0 + Duration::from_secs(seconds);
    let mut cut = listener.frame(0, b"x");
    connection.handle_bytes(cut.get_mut(..5).unwrap(), t0).unwrap();
    connection.set_reading_paused(true, t0);
    for minute in 1..10 {
        connection.handle_timeout(at(60 * minute)).unwrap();
        assert_eq!(
            listener.open(&take_output(&mut connection)).len(),
            1,
            "a ping each time"
        );
    }
    connection.set_reading_paused(false, at(1000));
    assert_eq!(connection.next_deadline(), at(1010), "silence counts anew");
    connection.handle_timeout(at(1010)).unwrap();
    assert_eq!(connection.handle_timeout(at(1020)), Err(LinkFault::PeerSilent));
}

#[test]
fn a_handshake_that_is_not_over_in_ten_seconds_is_a_fault_however_far_it_came() {
    let now = start();
    let late = now + Duration::from_secs(10);
    for steps in 0..3 {
        let (mut connection, mut listener) = (curve_connection_with(Limits::default(), now), Listener::new());
        take_output(&mut connection);
        if steps > 0 {
            connection
                .handle_bytes(&mut Listener::greeting(), late - Duration::from_millis(1))
                .unwrap();
        }
        if steps > 1 {
            let hello = take_output(&mut connection);
            connection.handle_bytes(&mut listener.welcome(&hello), now).unwrap();
        }
        assert_eq!(connection.next_deadline(), late);
        assert_eq!(connection.handle_timeout(late - Duration::from_millis(1)), Ok(()));
        assert_eq!(connection.handle_timeout(late), Err(LinkFault::HandshakeTimeout));
    }
}

#[test]
fn where_the_peer_closed_is_told() {
    let now = start();
    let (mut connection, mut listener) = (curve_connection_with(Limits::default(), now), Listener::new());
    assert_eq!(connection.handle_end(), LinkFault::ClosedInGreeting);
    let mut connection = curve_connection_with(Limits::default(), now);
    shake_hands(
        &mut connection,
        &mut listener,
        Listener::greeting(),
        &frames::metadata(b"ROUTER", b""),
        now,
    );
    assert_eq!(connection.handle_end(), LinkFault::Closed);
    assert_eq!(
        connection.handle_bytes(&mut [0], now),
        Err(LinkFault::Closed),
        "the first fault stays"
    );
}

#[test]
fn a_listener_with_another_mechanism_is_known_by_its_greeting() {
    let now = start();
    let mut null = Connection::new(
        Mechanism::Null,
        identity(),
        Secret::new([1; 32]),
        [2; 16],
        Limits::default(),
        now,
    );
    assert_eq!(
        null.handle_bytes(&mut Listener::greeting(), now),
        Err(LinkFault::MechanismMismatch)
    );
}

#[test]
fn commands_of_the_handshake_out_of_order_are_faults() {
    let now = start();
    for (name, fault) in [
        (&b"READY"[..], LinkFault::UnexpectedFrame),
        (b"HELLO", LinkFault::UnexpectedFrame),
        (b"MESSAGE", LinkFault::UnexpectedFrame),
        (b"ERROR", LinkFault::MalformedCommand),
        (b"WELCOME", LinkFault::MalformedCommand),
    ] {
        let mut connection = curve_connection_with(Limits::default(), now);
        connection.handle_bytes(&mut Listener::greeting(), now).unwrap();
        let mut frame = Vec::new();
        frames::put_command(&mut frame, name, b"");
        assert_eq!(connection.handle_bytes(&mut frame, now), Err(fault));
    }
    let mut connection = curve_connection_with(Limits::default(), now);
    connection.handle_bytes(&mut Listener::greeting(), now).unwrap();
    let mut frame = Vec::new();
    frames::put_header(&mut frame, 0, 3);
    frame.extend(b"abc");
    assert_eq!(
        connection.handle_bytes(&mut frame, now),
        Err(LinkFault::UnexpectedFrame)
    );
}

#[test]
fn a_welcome_or_ready_from_another_key_does_not_open() {
    let now = start();
    let mut connection = curve_connection_with(Limits::default(), now);
    take_output(&mut connection);
    connection.handle_bytes(&mut Listener::greeting(), now).unwrap();
    let mut welcome = Vec::new();
    frames::put_command(&mut welcome, b"WELCOME", &[9; 160]);
    assert_eq!(
        connection.handle_bytes(&mut welcome, now),
        Err(LinkFault::HandshakeBoxNotOpened)
    );

    let (mut connection, mut listener) = (curve_connection_with(Limits::default(), now), Listener::new());
    take_output(&mut connection);
    connection.handle_bytes(&mut Listener::greeting(), now).unwrap();
    let hello = take_output(&mut connection);
    connection.handle_bytes(&mut listener.welcome(&hello), now).unwrap();
    let mut ready = listener.ready(&frames::metadata(b"ROUTER", b""));
    *ready.last_mut().unwrap() ^= 1;
    assert_eq!(
        connection.handle_bytes(&mut ready, now),
        Err(LinkFault::HandshakeBoxNotOpened)
    );
    assert!(
        !connection.send_message(&[b"HI"]),
        "nothing is sent before the handshake is over"
    );
}

#[test]
fn what_was_whole_before_a_fault_is_given_out() {
    let (mut connection, mut listener, now) = open();
    let mut bytes = listener.message(&[b"notify.message", b"last"]);
    bytes.extend([0xff; 10]);
    assert_eq!(connection.handle_bytes(&mut bytes, now), Err(LinkFault::ReservedFlags));
    assert_eq!(messages(&mut connection).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_of_a_listener_make_the_client_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        super::super::fuzz_connection(&bytes, start());
    }

    #[test]
    fn no_payload_in_a_good_box_makes_the_client_panic(
        frames in proptest::collection::vec((0u8..3, proptest::collection::vec(any::<u8>(), 0..80)), 0..40),
    ) {
        let (mut connection, mut listener, now) = open();
        for (flags, payload) in frames {
            let _ = connection.handle_bytes(&mut listener.frame(flags, &payload), now);
        }
    }
}

fn open() -> (Connection, Listener, Instant) {
    open_with(Limits::default())
}

fn open_with(limits: Limits) -> (Connection, Listener, Instant) {
    let now = start();
    let (mut connection, mut listener) = (curve_connection_with(limits, now), Listener::new());
    shake_hands(
        &mut connection,
        &mut listener,
        Listener::greeting(),
        &frames::metadata(b"ROUTER", b""),
        now,
    );
    (connection, listener, now)
}

fn messages(connection: &mut Connection) -> Vec<Vec<Bytes>> {
    std::iter::from_fn(|| connection.poll_event())
        .map(|event| match event {
            Event::Message(parts) => parts,
            Event::HandshakeDone => panic!("a second handshake"),
        })
        .collect()
}
