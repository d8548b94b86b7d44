//! The body of a request, read within bounds of size, time and memory.
//!
//! In: a body, how much of it is wanted, a deadline. Out: its bytes, with the room they take, or why not. Never: gives memory for
//! bytes that were only announced, or more than its share to slow clients.

use axum::body::{Body, HttpBody};
use http_body_util::BodyExt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    TooLarge,
    TooSlow,
    Broken,
    /// Long bodies of others fill the room for them.
    NoRoom,
}

/// Bytes of a client; their room is free again when they are dropped.
pub struct KeptBody {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl KeptBody {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads bodies into a common room. The first 16 KiB of each are outside of it: clients send 1 to 100 KB, a request that is not a
/// large batch never waits for those of others, and the connections bound what that takes.
pub struct BodyReader {
    room: Arc<Semaphore>,
}

impl BodyReader {
    pub fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(ROOM / BLOCK)),
        }
    }

    /// At most `kept` bytes. A longer body is read on without being kept, up to a bound: a client that is still sending
    /// when we close would never see the answer.
    pub async fn read(&self, body: Body, kept: usize, deadline: Instant) -> Result<KeptBody, BodyFault> {
        let reading = self.read_without_deadline(body, kept);
        tokio::time::timeout_at(deadline, reading)
            .await
            .unwrap_or(Err(BodyFault::TooSlow))
    }

    async fn read_without_deadline(&self, mut body: Body, kept: usize) -> Result<KeptBody, BodyFault> {
        let most = kept.saturating_add(READ_ON);
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > most {
            return Err(BodyFault::TooLarge);
        }
        let mut fault = (announced > kept).then_some(BodyFault::TooLarge);
        let mut whole = KeptBody {
            bytes: Vec::with_capacity(announced.min(kept).min(FREE)),
            room: None,
        };
        let mut read = 0usize;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyFault::Broken)?.into_data() else {
                continue;
            };
            read = read.saturating_add(data.len());
            if read > most {
                return Err(BodyFault::TooLarge);
            }
            if read > kept {
                fault = fault.or(Some(BodyFault::TooLarge));
            } else if fault.is_none() && !self.make_room(&mut whole, read) {
                fault = Some(BodyFault::NoRoom);
            }
            match fault {
                None => whole.bytes.extend_from_slice(&data),
                Some(_) => {
                    whole = KeptBody {
                        bytes: Vec::new(),
                        room: None,
                    }
                }
            }
        }
        fault.map_or(Ok(whole), Err)
    }

    fn make_room(&self, body: &mut KeptBody, length: usize) -> bool {
        let has = FREE + body.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * BLOCK;
        if length > has {
            let blocks = u32::try_from((length - has).div_ceil(BLOCK)).unwrap_or(u32::MAX);
            let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(blocks) else {
                return false;
            };
            match &mut body.room {
                Some(room) => room.merge(more),
                none => *none = Some(more),
            }
        }
        true
    }
}

/// Bytes of a body that are read beyond those that are kept.
const READ_ON: usize = 4 << 20;
/// Bytes of each body that take no common room.
const FREE: usize = 16 << 10;
/// Bytes of all bodies together, beyond the free ones.
const ROOM: usize = 128 << 20;
const BLOCK: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn body(length: usize) -> Body {
        Body::from_stream(futures_util::stream::iter(
            (0..length.div_ceil(1000)).map(move |n| Ok::<_, std::io::Error>(vec![b'x'; (length - n * 1000).min(1000)])),
        ))
    }

    #[tokio::test]
    async fn a_body_is_kept_up_to_the_limit() {
        let reader = BodyReader::new();
        for (length, kept, expected) in [(0, 10, Ok(0)), (10, 10, Ok(10)), (50_000, 50_000, Ok(50_000))] {
            let read = reader
                .read(body(length), kept, soon())
                .await
                .map(|whole| whole.bytes().len());
            assert_eq!(read, expected, "{length}");
        }
        for (length, kept) in [(11, 10), (50_001, 50_000), (1, 0), (READ_ON + 2000, 10)] {
            let read = reader
                .read(body(length), kept, soon())
                .await
                .map(|whole| whole.bytes().len());
            assert_eq!(read, Err(BodyFault::TooLarge), "{length}");
        }
        assert_eq!(reader.room.available_permits(), ROOM / BLOCK, "all room is free again");
    }

    #[tokio::test]
    async fn long_bodies_share_a_bounded_room_and_short_ones_do_not_need_it() {
        let reader = BodyReader::new();
        let long = 1 << 20;
        let mut held = Vec::new();
        let full = loop {
            match reader.read(body(long), long, soon()).await {
                Ok(whole) => held.push(whole),
                Err(fault) => break fault,
            }
        };
        assert_eq!(full, BodyFault::NoRoom);
        assert!(
            (ROOM / long..ROOM / (long - FREE) + 1).contains(&held.len()),
            "{}",
            held.len()
        );
        assert!(reader.read(body(FREE), long, soon()).await.is_ok());
        held.pop();
        assert!(reader.read(body(long), long, soon()).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_or_stalls_is_a_fault() {
        let reader = BodyReader::new();
        let broken = Body::from_stream(futures_util::stream::iter([
            Ok(vec![1; 9]),
            Err(std::io::Error::other("gone")),
        ]));
        assert_eq!(reader.read(broken, 100, soon()).await.err(), Some(BodyFault::Broken));
        let stalled = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let deadline = Instant::now() + Duration::from_millis(1);
        assert_eq!(
            reader.read(stalled, 100, deadline).await.err(),
            Some(BodyFault::TooSlow)
        );
    }
}
