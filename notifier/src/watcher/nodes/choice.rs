//! Which of several node lists may be believed.
//!
//! In: the last good list, one list from each source in turn. Out: a list, or the wish for another opinion. Never: asks.

use super::Kind;
use notifier_core::swarm::NodeList;
use std::sync::Arc;

/// The sources' answers of one refresh. Each source is heard once.
pub(super) struct Round {
    last: Option<Arc<NodeList>>,
    max_change: f64,
    heard: Vec<Arc<NodeList>>,
}

pub(super) enum Choice {
    Take(Arc<NodeList>),
    AskAnother,
    /// Everybody was asked.
    Refuse,
}

impl Round {
    pub fn new(last: Option<Arc<NodeList>>, max_change: f64) -> Self {
        Self {
            last,
            max_change,
            heard: Vec::new(),
        }
    }

    pub fn heard(&self) -> usize {
        self.heard.len()
    }

    pub fn hear(&mut self, list: NodeList, kind: Kind) -> Choice {
        let list = Arc::new(list);
        let believed = match &self.last {
            Some(last) => self.near(last, &list),
            None => kind == Kind::Oxend,
        };
        let agreed = self.heard.iter().any(|other| self.near(other, &list));
        self.heard.push(Arc::clone(&list));
        if believed || agreed {
            Choice::Take(list)
        } else {
            Choice::AskAnother
        }
    }

    /// Nobody is left to ask.
    pub fn finish(&self) -> Choice {
        match (&self.last, self.heard.as_slice()) {
            (None, [only]) => Choice::Take(Arc::clone(only)),
            _ => Choice::Refuse,
        }
    }

    fn near(&self, one: &NodeList, other: &NodeList) -> bool {
        one.difference(other) <= self.max_change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notifier_core::swarm::{Node, NodeKey, SwarmId};
    use std::net::Ipv4Addr;

    fn list(numbers: std::ops::Range<u8>) -> NodeList {
        let node = |number: u8| Node {
            key: NodeKey([number; 32]),
            ip: Ipv4Addr::new(10, 0, 0, number),
            port: 22021,
            swarm: SwarmId(u64::from(number / 7)),
        };
        NodeList {
            nodes: numbers.map(node).collect(),
            height: 1,
            block_hash: [0; 32],
        }
    }

    fn round(last: Option<NodeList>) -> Round {
        Round::new(last.map(Arc::new), 0.2)
    }

    fn taken(choice: &Choice) -> Option<usize> {
        match choice {
            Choice::Take(list) => Some(list.nodes.len()),
            Choice::AskAnother | Choice::Refuse => None,
        }
    }

    #[test]
    fn a_list_near_the_last_is_taken_from_any_source() {
        let mut round = round(Some(list(0..100)));
        assert_eq!(taken(&round.hear(list(0..90), Kind::Seed)), Some(90));
    }

    #[test]
    fn a_jump_is_taken_only_if_a_second_source_agrees() {
        let mut round = round(Some(list(0..100)));
        assert_eq!(taken(&round.hear(list(100..200), Kind::Oxend)), None);
        assert_eq!(taken(&round.finish()), None);
        assert_eq!(taken(&round.hear(list(0..70), Kind::Seed)), None);
        assert_eq!(taken(&round.hear(list(100..199), Kind::Seed)), Some(99));
    }

    #[test]
    fn a_source_that_lies_does_not_keep_the_next_from_being_believed() {
        let mut round = round(Some(list(0..100)));
        assert_eq!(taken(&round.hear(list(100..200), Kind::Seed)), None);
        assert_eq!(taken(&round.hear(list(0..99), Kind::Seed)), Some(99));
    }

    #[test]
    fn the_first_list_is_believed_from_an_oxend_or_from_the_only_seed_that_answers() {
        assert_eq!(taken(&round(None).hear(list(0..9), Kind::Oxend)), Some(9));
        let mut round = round(None);
        assert_eq!(taken(&round.hear(list(0..9), Kind::Seed)), None);
        assert_eq!(taken(&round.finish()), Some(9));
    }

    #[test]
    fn of_first_lists_that_differ_none_is_believed_until_two_agree() {
        let mut round = round(None);
        assert_eq!(taken(&round.hear(list(0..50), Kind::Seed)), None);
        assert_eq!(taken(&round.hear(list(100..150), Kind::Seed)), None);
        assert_eq!(taken(&round.finish()), None);
        assert_eq!(taken(&round.hear(list(0..49), Kind::Seed)), Some(49));
    }
}
