//! The outbox in numbers.
//!
//! In: the machine. Out: metrics `outbox_*`. Never: a label that is not an enum.

use notifier_core::account::Service;
use notifier_core::outbox::{DropReason, LaneState, Outbox, RetryReason};
use notifier_core::seal::Class;

pub fn report(machine: &Outbox, now_ms: i64) {
    metrics::gauge!("outbox_entries").set(machine.len() as f64);
    metrics::gauge!("outbox_memory_bytes").set((machine.memory() + machine.overhead()) as f64);
    for service in Service::ALL {
        report_lane(machine, service, now_ms);
    }
}

fn report_lane(machine: &Outbox, service: Service, now_ms: i64) {
    let lane = service.name();
    metrics::gauge!("outbox_in_flight", "service" => lane).set(f64::from(machine.in_flight(service)));
    metrics::gauge!("outbox_limit", "service" => lane).set(f64::from(machine.limit(service)));
    metrics::gauge!("outbox_rate", "service" => lane).set(f64::from(machine.rate(service)));
    let state = machine.lane_state(service, now_ms);
    for each in LaneState::ALL {
        metrics::gauge!("outbox_lane_state", "service" => lane, "state" => each.label()).set(if each == state {
            1.0
        } else {
            0.0
        });
    }

    let counters = machine.counters(service);
    metrics::counter!("outbox_accepted_total", "service" => lane).absolute(counters.accepted);
    metrics::counter!("outbox_restored_total", "service" => lane).absolute(counters.restored);
    metrics::counter!("outbox_delivered_total", "service" => lane).absolute(counters.delivered);
    metrics::counter!("outbox_fallbacks_total", "service" => lane).absolute(counters.fallbacks);
    metrics::counter!("outbox_rests_total", "service" => lane).absolute(counters.rests);
    metrics::counter!("outbox_stops_total", "service" => lane).absolute(counters.stops);
    metrics::counter!("outbox_held_total", "service" => lane).absolute(counters.held);
    metrics::counter!("outbox_stalls_total", "service" => lane).absolute(counters.stalls);
    for reason in DropReason::ALL {
        let dropped = counters.dropped(reason);
        metrics::counter!("outbox_dropped_total", "service" => lane, "reason" => reason.label()).absolute(dropped);
    }
    for reason in RetryReason::ALL {
        let retried = counters.retried(reason);
        metrics::counter!("outbox_retried_total", "service" => lane, "reason" => reason.label()).absolute(retried);
    }
    for class in Class::ALL {
        let label = class.label();
        metrics::gauge!("outbox_queued", "service" => lane, "class" => label)
            .set(machine.queued(service, class) as f64);
        metrics::counter!("outbox_shed_total", "service" => lane, "class" => label).absolute(counters.shed(class));
        metrics::counter!("outbox_refused_total", "service" => lane, "class" => label)
            .absolute(counters.refused(class));
    }
}
