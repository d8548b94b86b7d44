use super::*;

const OUTAGE: Sign = Sign::Outage { until_ms: None };

#[test]
fn a_lane_rests_after_failures_in_a_row_and_probes_with_one_entry_at_a_time() {
    let mut lane = lane(100, 3);
    for push in 0..10 {
        lane.note_sent(push, 0);
    }
    answer(&mut lane, 0, OUTAGE, 0);
    answer(&mut lane, 1, OUTAGE, 0);
    answer(&mut lane, 2, Sign::Reached, 0);
    answer(&mut lane, 3, OUTAGE, 0);
    answer(&mut lane, 4, OUTAGE, 0);
    assert_eq!(lane.state(0), LaneState::Open);
    assert_eq!(answer(&mut lane, 5, OUTAGE, 0), Some(Turn::Rests));
    assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Resting, Some(1000)));
    answer(&mut lane, 6, OUTAGE, 500);
    assert_eq!(lane.opens_at(), Some(1000));
    lane.note_sent(10, 1000);
    assert_eq!(lane.opens_at(), None);
    answer(&mut lane, 10, OUTAGE, 1000);
    assert_eq!(lane.opens_at(), Some(3000));
    lane.note_sent(11, 3000);
    answer(&mut lane, 11, Sign::Reached, 3000);
    assert_eq!(lane.state(3000), LaneState::Open);
}

#[test]
fn one_token_that_fails_for_ever_rests_no_lane() {
    let mut lane = lane(100, 3);
    for push in 0..100 {
        lane.note_sent(push, push);
        for sign in [OUTAGE, Sign::Broken] {
            lane.note_answer(flight(push, 7, push), sign, push, 0);
        }
    }
    assert_eq!(lane.state(0), LaneState::Open);
    for target in 0..2 {
        lane.note_answer(flight(200, target, 200), OUTAGE, 200, 0);
    }
    assert_eq!(lane.state(200), LaneState::Resting);
}

#[test]
fn a_broken_connection_counts_once_however_many_pushes_it_takes_along() {
    let mut lane = lane(100, 3);
    for push in 0..50 {
        lane.note_sent(push, 0);
    }
    for push in 0..50 {
        answer(&mut lane, push, Sign::Broken, 10);
    }
    assert_eq!(lane.state(10), LaneState::Open);
    for push in [50, 51] {
        let now = 10 * push;
        lane.note_sent(push, now);
        lane.note_answer(flight(push, push as u64, now), Sign::Broken, now + 5, 0);
    }
    assert_eq!(lane.state(520), LaneState::Resting);
}

#[test]
fn a_lane_without_a_connection_rests_until_the_next_is_tried_and_then_sends_one() {
    let mut lane = lane(100, 8);
    for push in 0..3 {
        lane.note_sent(push, 0);
    }
    let unreachable = |until_ms| Sign::Unreachable { until_ms };
    assert_eq!(answer(&mut lane, 0, unreachable(700), 0), Some(Turn::Rests));
    assert_eq!(answer(&mut lane, 1, unreachable(700), 0), None);
    assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Resting, Some(700)));
    lane.note_sent(3, 700);
    assert_eq!(lane.opens_at(), None);
    answer(&mut lane, 3, unreachable(2_700), 700);
    assert_eq!(lane.opens_at(), Some(2_700));
    // An answer to what was sent before proves that the provider is there.
    answer(&mut lane, 2, Sign::Healthy, 800);
    assert_eq!(lane.state(800), LaneState::Open);
}

#[test]
fn a_push_without_time_for_an_answer_says_nothing_and_ends_its_probe() {
    let mut lane = lane(100, 2);
    for push in 0..10 {
        lane.note_sent(push, 0);
        answer(&mut lane, push, Sign::Unknown, 0);
    }
    assert_eq!((lane.state(0), lane.in_flight()), (LaneState::Open, 0));
    for (push, sign) in [(0, OUTAGE), (1, Sign::Unknown), (2, OUTAGE)] {
        lane.note_sent(push, 0);
        answer(&mut lane, push, sign, 0);
    }
    assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Resting, Some(1000)));
    lane.note_sent(3, 1000);
    assert_eq!(lane.opens_at(), None);
    answer(&mut lane, 3, Sign::Unknown, 1000);
    assert_eq!((lane.state(1000), lane.opens_at()), (LaneState::Resting, Some(2000)));

    let mut lane = super::tests::lane(100, 2);
    lane.note_sent(0, 0);
    answer(&mut lane, 0, Sign::CredentialRefused, 0);
    lane.note_sent(1, 30_000);
    assert_eq!(answer(&mut lane, 1, Sign::Unknown, 30_000), None);
    assert_eq!(
        (lane.state(30_000), lane.opens_at()),
        (LaneState::Stopped, Some(60_000))
    );
}

#[test]
fn a_provider_that_asks_for_rest_gets_it() {
    let mut lane = lane(100, 1);
    lane.note_sent(0, 0);
    answer(&mut lane, 0, Sign::Outage { until_ms: Some(70_000) }, 0);
    assert_eq!(lane.opens_at(), Some(70_000));
}

#[test]
fn only_the_probes_own_success_resumes_a_stopped_lane() {
    let mut lane = lane(100, 3);
    lane.note_sent(0, 0);
    lane.note_sent(1, 0);
    assert_eq!(answer(&mut lane, 0, Sign::CredentialRefused, 0), Some(Turn::Stopped));
    assert_eq!(answer(&mut lane, 1, Sign::Healthy, 0), None);
    assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Stopped, Some(30_000)));
    lane.note_sent(2, 31_000);
    assert_eq!(lane.opens_at(), None);
    assert_eq!(answer(&mut lane, 2, Sign::CredentialRefused, 31_000), None);
    assert_eq!(lane.opens_at(), Some(61_000));
    lane.note_sent(3, 61_000);
    assert_eq!(answer(&mut lane, 3, Sign::Healthy, 61_000), Some(Turn::Resumed));
    assert_eq!(lane.state(61_000), LaneState::Open);
}

#[test]
fn too_fast_halves_the_limit_once_and_deliveries_win_it_back() {
    let mut lane = lane(8, 3);
    for _ in 0..5 {
        lane.slow_down(Duration::from_secs(60), 0);
    }
    assert_eq!(
        (lane.limit(), lane.state(59_999), lane.state(60_000)),
        (4, LaneState::Paused, LaneState::Open)
    );
    lane.slow_down(Duration::from_secs(60), 60_000);
    assert_eq!(lane.limit(), 2);
    for _ in 0..1000 {
        lane.note_delivered(130_000);
    }
    assert_eq!(lane.limit(), 8);
    for hour in 1..20 {
        lane.slow_down(Duration::from_secs(1), hour * 3_600_000);
    }
    assert_eq!(lane.limit(), 1);
}

#[test]
fn too_fast_halves_the_rate_as_well_and_the_lane_keeps_to_it() {
    let mut lane = lane(1_000, 3);
    for push in 0..200 {
        lane.note_sent(push, 1_000);
        answer(&mut lane, push, Sign::Healthy, 1_000);
    }
    assert_eq!(lane.rate(), 50_000);
    lane.slow_down(Duration::from_secs(1), 1_500);
    assert_eq!((lane.rate(), lane.opens_at()), (100, Some(2_500)));
    for _ in 0..10 {
        lane.note_sent(1, 2_500);
    }
    assert_eq!(lane.opens_at(), Some(2_510));
}

#[test]
fn after_a_rest_a_lane_sends_twice_what_it_sent_before_and_slowly_more() {
    let mut lane = lane(1_000, 3);
    for push in 0..2_000 {
        let now_ms = push / 2;
        lane.note_sent(push, now_ms);
        answer(&mut lane, push, Sign::Healthy, now_ms);
    }
    lane.note_sent(2_000, 1_000);
    answer(&mut lane, 2_000, Sign::Unreachable { until_ms: 61_000 }, 1_000);
    assert_eq!(lane.rate(), 50_000);
    lane.note_sent(2_001, 61_000);
    answer(&mut lane, 2_001, Sign::Healthy, 61_000);
    assert_eq!((lane.state(61_000), lane.rate()), (LaneState::Open, 4_000));
    // A minute of deliveries later it is as fast as ever.
    for second in 62..122 {
        lane.note_delivered(second * 1_000);
    }
    assert_eq!(lane.rate(), 50_000);
}

#[test]
fn a_lane_that_rested_before_it_sent_anything_begins_with_a_small_part() {
    let mut lane = lane(1_000, 3);
    for push in 0..2 {
        lane.note_sent(push, 0);
        answer(&mut lane, push, Sign::CredentialRefused, 0);
    }
    lane.note_sent(2, 30_000);
    assert_eq!(answer(&mut lane, 2, Sign::Healthy, 30_000), Some(Turn::Resumed));
    assert_eq!(lane.rate(), 50_000 / 32);
}

#[test]
fn another_credential_must_prove_itself_before_a_token_is_deleted() {
    let mut lane = lane(8, 3);
    lane.note_delivered(0);
    assert!(lane.believes_gone(false, 1000) && lane.believes_gone(true, 1000));
    lane.forget_health(1000);
    assert!(!lane.believes_gone(false, 1000) && !lane.believes_gone(true, 1000));
}

fn lane(concurrency: u32, breaker_failures: u32) -> Lane {
    let settings = LaneSettings {
        breaker_failures,
        ..LaneSettings::with_concurrency(concurrency)
    };
    Lane::new(&settings)
}

const fn flight(push: i64, target: u64, sent_at_ms: i64) -> Flight {
    Flight {
        push,
        target,
        sent_at_ms,
    }
}

/// The answer to a push to a token of its own, sent at 0.
fn answer(lane: &mut Lane, push: i64, sign: Sign, now_ms: i64) -> Option<Turn> {
    lane.note_answer(flight(push, push.unsigned_abs(), 0), sign, now_ms, 0)
}
