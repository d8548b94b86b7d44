//! A channel into a thread that sleeps in `zmq::poll`.
//!
//! In: commands from any thread. Out: the same, in order. Never: rings again before the thread has looked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use zmq::{Context, DONTWAIT, POLLIN, PollItem, Socket};

/// The end outside of the thread.
pub struct Caller<T> {
    queue: mpsc::Sender<T>,
    rung: Arc<AtomicBool>,
    bell: Mutex<Socket>,
}

/// The end inside the thread.
pub struct Door<T> {
    queue: mpsc::Receiver<T>,
    rung: Arc<AtomicBool>,
    bell: Socket,
}

pub fn doorbell<T>(context: &Context) -> Result<(Caller<T>, Door<T>), zmq::Error> {
    let (inside, outside) = (context.socket(zmq::PAIR)?, context.socket(zmq::PAIR)?);
    inside.bind("inproc://doorbell")?;
    outside.connect("inproc://doorbell")?;
    outside.set_linger(0)?;
    let (sender, queue) = mpsc::channel();
    let rung = Arc::new(AtomicBool::new(false));
    let caller = Caller {
        queue: sender,
        rung: Arc::clone(&rung),
        bell: Mutex::new(outside),
    };
    Ok((
        caller,
        Door {
            queue,
            rung,
            bell: inside,
        },
    ))
}

impl<T> Caller<T> {
    /// `false` if the thread is gone.
    pub fn call(&self, command: T) -> bool {
        if self.queue.send(command).is_err() {
            return false;
        }
        if !self.rung.swap(true, Ordering::AcqRel) {
            let bell = self.bell.lock().expect("nobody panics while holding the bell");
            // At most one ring is under way, so the bell's queue cannot be full.
            let _ = bell.send("", DONTWAIT);
        }
        true
    }
}

impl<T> Door<T> {
    pub fn poll_item(&self) -> PollItem<'_> {
        self.bell.as_poll_item(POLLIN)
    }

    /// Call after each poll and before `next`: what is sent from now on rings again.
    pub fn hush(&self) {
        let _ = self.bell.recv_bytes(DONTWAIT);
        // A swap and not a store: `next` may not look before others see that the bell is free, or what they bring would lie there
        // unannounced.
        self.rung.swap(false, Ordering::AcqRel);
    }

    pub fn next(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }
}
