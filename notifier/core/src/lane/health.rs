//! Whether pushes succeed with the present credential: a wrong key or topic may never empty the table of tokens.
//!
//! In: deliveries and tokens said to be dead, the clock (Unix milliseconds). Out: whether a token may be deleted. Never: deletes one.

#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    delivered_at_ms: Option<i64>,
    /// Lately: halved every ten minutes.
    delivered: u64,
    gone: u64,
    halved_at_ms: i64,
}

impl Health {
    pub fn note_delivered(&mut self, now_ms: i64) {
        self.halve(now_ms);
        self.delivered += 1;
        self.delivered_at_ms = Some(now_ms);
    }

    /// One more token is said to be dead.
    pub fn believes_gone(&mut self, certain: bool, now_ms: i64) -> bool {
        if certain {
            return self.is_recent(now_ms);
        }
        self.halve(now_ms);
        self.gone += 1;
        self.is_recent(now_ms) && self.has_few_gone()
    }

    fn halve(&mut self, now_ms: i64) {
        let halvings = now_ms.saturating_sub(self.halved_at_ms) / HALVING_MS;
        if halvings > 0 {
            let shift = u32::try_from(halvings).unwrap_or(u32::MAX);
            self.delivered = self.delivered.checked_shr(shift).unwrap_or(0);
            self.gone = self.gone.checked_shr(shift).unwrap_or(0);
            self.halved_at_ms = now_ms;
        }
    }

    fn is_recent(&self, now_ms: i64) -> bool {
        self.delivered_at_ms
            .is_some_and(|at| now_ms.saturating_sub(at) <= HEALTHY_MS)
    }

    fn has_few_gone(&self) -> bool {
        self.gone <= GONE_FEW || self.gone * 100 <= (self.gone + self.delivered) * GONE_PERCENT
    }
}

const HALVING_MS: i64 = 600_000;

/// A credential is healthy for an hour after a delivery.
const HEALTHY_MS: i64 = 3_600_000;

/// More dead tokens among the answers than this are not believed: few devices disappear at once.
const GONE_PERCENT: u64 = 20;

/// So few are believed whatever their share is: where little is sent, one is half of it.
const GONE_FEW: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_tokens_are_believed_only_from_a_healthy_credential() {
        let mut health = Health::default();
        assert!(!health.believes_gone(false, 0) && !health.believes_gone(true, 0));
        let mut health = Health::default();
        health.note_delivered(0);
        for gone in 1..=5 {
            assert!(health.believes_gone(false, 0), "{gone} are few");
        }
        assert!(!health.believes_gone(false, 0), "six of seven");
        assert!(health.believes_gone(true, 0));
        for _ in 0..100 {
            health.note_delivered(0);
        }
        assert!(health.believes_gone(false, 1000));
    }

    #[test]
    fn a_delivery_of_long_ago_proves_nothing() {
        let mut health = Health::default();
        for _ in 0..1_000_000 {
            health.note_delivered(0);
        }
        for certain in [true, false] {
            assert!(health.believes_gone(certain, HEALTHY_MS));
            assert!(!health.believes_gone(certain, HEALTHY_MS + 1));
        }
    }

    #[test]
    fn a_wrong_topic_empties_no_table() {
        let mut health = Health::default();
        for _ in 0..1000 {
            health.note_delivered(0);
        }
        let believed = (0..100_000)
            .filter(|push| health.believes_gone(false, push * 10))
            .count();
        assert!(believed <= 250, "{believed}");
    }
}
